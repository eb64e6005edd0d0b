from __future__ import annotations

import pytest

from kserve_wasm.wasi_nn.encodings import recognise
from tests.backends import models

ONNX = models.add_and_subtract().SerializeToString()
TFLITE = b"\x1c\x00\x00\x00TFL3\x14\x00"
XML = b'<?xml version="1.0"?><net name="m" version="11"/>'


@pytest.mark.parametrize(
    ("builders", "name"),
    [
        ([ONNX], "onnx"),
        ([TFLITE], "tensorflowlite"),
        ([b"PK\x03\x04TFL3"], "tensorflowlite"),
        ([b"PK\x03\x04\x00\x00\x08\x08"], "pytorch"),
        ([b"GGUF\x03\x00\x00\x00"], "ggml"),
        ([XML, b"weights"], "openvino"),
        ([b"\xef\xbb\xbf\r\n" + XML, b""], "openvino"),
    ],
)
@pytest.mark.parametrize("declared", [0, 1, 4, 5, 6, 0xFFFFFFFF])
def test_the_bytes_win_over_the_declared_number(builders: list[bytes], name: str, declared: int) -> None:
    assert recognise(builders, declared) == name


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        (0, "openvino"),
        (1, "onnx"),
        (2, "tensorflow"),
        (3, "pytorch"),
        (4, "tensorflowlite"),
        (5, None),
        (6, None),
    ],
)
def test_bytes_that_say_nothing_leave_it_to_the_number(declared: int, name: str | None) -> None:
    assert recognise([b"\x12\x07nothing"], declared) == name
    assert recognise([b""], declared) == name


def test_a_saved_model_begins_like_onnx_and_is_told_by_its_number() -> None:
    assert recognise([b"\x08\x01\x12"], 2) == "tensorflow"


def test_xml_without_weights_is_no_openvino_graph() -> None:
    assert recognise([XML], 5) is None
