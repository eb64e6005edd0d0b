"""Section headers, of sound files and of damaged ones."""

from __future__ import annotations

from io import BytesIO

import pytest
import wasmtime
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kserve_wasm.artifact.sections import MODULE_PREAMBLE, parse_sections, read_sections
from kserve_wasm.errors import ArtifactError
from tests.artifact.modules import CODE, custom, leb
from tests.support.counts import count


def test_sections_of_a_module_are_found_where_the_assembler_put_them():
    found = parse_sections(BytesIO(CODE))
    assert [s.name for s in found] == ["type", "function", "memory", "export", "code", "data"]
    assert found[0].start == 8
    assert [s.start for s in found[1:]] == [s.end for s in found[:-1]]
    assert found[-1].end == len(CODE)
    # (data "x"): one segment, passive, of one byte.
    assert CODE[found[-1].offset : found[-1].end] == b"\x01\x01\x01x"


@given(st.lists(st.tuples(st.text(max_size=40), st.binary(max_size=300)), max_size=6))
def test_custom_sections_are_found_with_name_and_payload(sections):
    module = CODE + b"".join(custom(name, payload) for name, payload in sections)
    count("wasm files walked")
    found = [s for s in parse_sections(BytesIO(module)) if s.id == 0]
    assert [(s.name, module[s.offset : s.end]) for s in found] == sections


@pytest.mark.parametrize("width", [1, 2, 5])
def test_lengths_may_be_padded_as_linkers_write_them(width):
    length = bytes((7 >> 7 * i & 0x7F) | (0x80 if i < width - 1 else 0) for i in range(width))
    module = MODULE_PREAMBLE + b"\0" + length + custom("abc", b"xyz")[2:]
    (section,) = parse_sections(BytesIO(module))
    assert (section.name, module[section.offset : section.end]) == ("abc", b"xyz")


@pytest.mark.parametrize("end", range(len(CODE)))
def test_a_module_cut_anywhere_but_between_sections_is_refused(end):
    whole = {s.end for s in parse_sections(BytesIO(CODE))} | {8}
    if end in whole:
        parse_sections(BytesIO(CODE[:end]))
        return
    with pytest.raises(ArtifactError, match=r"truncated|empty|first bytes"):
        parse_sections(BytesIO(CODE[:end]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"(module (memory 1))", "text format"),
        (b"  ;; comment\n(module)", "text format"),
        (b"\x7fELF\x02\x01\x01\x00", "7f 45 4c 46"),
        (b"\0asm\x0d\0\x01\0", "component"),
        (b"\0asm\x02\0\0\0", "version 2"),
        (b"\0asm\x01\0", "truncated"),
        (MODULE_PREAMBLE + b"\x2a\0", "unknown section id 42"),
        (MODULE_PREAMBLE + b"\0\x05\xff\xff\xff\xff\x7f", r"above 2\^32"),
        (MODULE_PREAMBLE + b"\0\x80\x80\x80\x80\x80\0" + bytes(20), r"above 2\^32"),
        (MODULE_PREAMBLE + b"\0\xff\xff\xff\xff\x0f", "truncated"),
        (MODULE_PREAMBLE + b"\0\x02\x05a", "longer than itself"),
        (MODULE_PREAMBLE + b"\0\0", "truncated"),
        (MODULE_PREAMBLE + custom("a" * 5000, b""), "name of 5000 bytes"),
        (MODULE_PREAMBLE + b"\0\x03\x02\xff\xfe", "not UTF-8"),
        (MODULE_PREAMBLE + custom("", b"") * 10_001, "more than 10000 sections"),
    ],
)
def test_what_is_no_core_module_is_refused_in_words(data, message, tmp_path):
    (tmp_path / "model.wasm").write_bytes(data)
    with pytest.raises(ArtifactError, match=message):
        read_sections(tmp_path / "model.wasm")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read 'none\.wasm'"):
        read_sections(tmp_path / "none.wasm")


@settings(max_examples=1000)
@given(st.binary(max_size=200))
@example(b"\0" + leb(2**32 - 1))
def test_arbitrary_bytes_after_the_preamble_are_read_or_refused(data):
    count("wasm files walked")
    try:
        found = parse_sections(BytesIO(MODULE_PREAMBLE + data))
    except ArtifactError:
        return
    at = 8
    for section in found:
        assert section.start == at < section.offset <= section.end
        at = section.end
    assert at == 8 + len(data)


def test_wasmtime_agrees_that_the_written_sections_are_a_module():
    wasmtime.Module(wasmtime.Engine(), CODE + custom("kserve-wasm.padding", bytes(100)))
