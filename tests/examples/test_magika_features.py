"""The feature extraction of examples/magika, built natively, against the code of the package ``magika``."""

from __future__ import annotations

import ctypes
import io
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.examples.magika import MAGIKA

SHIM = """
#include "features.h"
int extract(const uint8_t *first, const uint8_t *last, uint32_t size, int32_t *row) {
  return extract_features(first, last, size, row);
}
int utf8(const uint8_t *bytes, uint32_t size) { return is_utf8(bytes, size); }
"""

# Whitespace by Python's bytes.strip, its neighbours, and bytes on the edges of UTF-8's ranges.
edges = st.sampled_from(
    b"\t\n\v\f\r \b\x0e\x00ab\x7f\x80\x8f\x90\x9f\xa0\xbf\xc1\xc2\xdf\xe0\xed\xef\xf0\xf4\xf5\xff"
)
short = st.lists(edges, max_size=40).map(bytes)
files = st.builds(
    lambda head, fill, count, tail: head + fill * count + tail,
    short | st.binary(max_size=40),
    st.sampled_from([b" ", b"\n", b"x", b"\xc3\xa9", b"\x00"]),
    st.sampled_from([0, 1, 7, 1000, 1023, 1024, 2047, 2048, 4000, 4090, 4095, 4096, 4097, 9000]),
    short | st.binary(max_size=40),
)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory, build: ModuleType) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("features")
    (folder / "labels.h").write_text(build.labels_header(build.package()))
    (folder / "shim.c").write_text(SHIM)
    library = folder / "features.so"
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-shared",
        "-fPIC",
        "-O2",
        "-nostdlib",
        "-ffreestanding",
    ]
    command += [f"-I{folder}", f"-I{MAGIKA}", str(folder / "shim.c"), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def extract(native: ctypes.CDLL) -> Callable[[bytes], tuple[bool, list[int]]]:
    def call(content: bytes) -> tuple[bool, list[int]]:
        row = np.zeros(2048, np.int32)
        size = min(len(content), 4096)
        enough = native.extract(
            content[:4096], content[len(content) - size :], size, row.ctypes.data_as(ctypes.c_void_p)
        )
        return bool(enough), row.tolist()

    return call


@given(content=files)
@example(content=b"")
@example(content=b" " * 5000)
@example(content=b" " * 4096 + b"after the first block")
def test_rows_are_those_of_magika(
    content: bytes, extract: Callable[[bytes], tuple[bool, list[int]]], oracle: ModuleType
) -> None:
    features = oracle.magika.Magika._extract_features_from_seekable(
        oracle.types.Seekable(io.BytesIO(content)), 1024, 0, 1024, 256, 4096, False
    )
    enough, row = extract(content)
    assert row == features.beg + features.end
    assert enough == (features.beg[7] != 256)


@given(content=files | st.text().map(str.encode))
def test_utf8_is_what_python_decodes(content: bytes, native: ctypes.CDLL) -> None:
    try:
        content.decode()
        valid = True
    except UnicodeDecodeError:
        valid = False
    assert bool(native.utf8(content, len(content))) == valid
