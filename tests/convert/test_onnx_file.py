"""ONNX files read without their weights, against the onnx package reading them whole."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from kserve_wasm.convert.errors import ConversionError
from kserve_wasm.convert.onnx_file import LARGE, read_onnx
from kserve_wasm.convert.weights import slim
from tests.support.counts import count


def _model(sizes: list[int], names: list[str]) -> onnx.ModelProto:
    tensors = [
        numpy_helper.from_array(np.random.default_rng(i).integers(0, 255, n, np.uint8), name)
        for i, (n, name) in enumerate(zip(sizes, names, strict=True))
    ]
    nodes = [helper.make_node("Identity", ["x"], ["y"], doc_string="d" * 300)]
    spec = helper.make_tensor_value_info("x", 1, ["n"])
    return helper.make_model(helper.make_graph(nodes, "g", [spec], [spec], tensors), producer_name="p")


SIZES = st.lists(st.integers(0, 3 * LARGE), max_size=6)


@given(SIZES, st.data())
def test_what_is_read_and_what_is_left_out_make_the_model(tmp_path_factory, sizes, data):
    names = data.draw(st.lists(st.text(max_size=5), min_size=len(sizes), max_size=len(sizes)))
    model = _model(sizes, names)
    whole = model.SerializeToString()
    path = tmp_path_factory.getbasetemp() / "whole.onnx"
    path.write_bytes(whole)
    count("ONNX files read without their weights")
    found = read_onnx(path)
    assert sorted(found.raw) == [i for i, n in enumerate(sizes) if n >= LARGE]
    for index, part in found.raw.items():
        tensor = found.model.graph.initializer[index]
        assert not tensor.HasField("raw_data")
        tensor.raw_data = whole[part.offset : part.offset + part.length]
    assert found.model == model


SOUND = _model([LARGE, 10, 2 * LARGE], ["a", "b", "c"]).SerializeToString()


@settings(max_examples=1000)
@given(
    st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(SOUND)),
)
def test_damaged_files_are_read_or_refused(tmp_path_factory, changes, end):
    damaged = bytearray(SOUND)
    for at, byte in changes:
        damaged[at] = byte
    path: Path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(damaged[:end] if end % 2 else damaged)
    count("damaged ONNX files")
    with suppress(ConversionError):
        slim(read_onnx(path))


def test_a_graph_in_two_parts_is_merged(tmp_path):
    """Protocol Buffers merge a message that comes twice; indices of initializers go on counting."""
    one = _model([2 * LARGE], ["a"])
    two = onnx.ModelProto(
        graph=onnx.GraphProto(initializer=_model([10, LARGE], ["b", "c"]).graph.initializer)
    )
    (tmp_path / "m.onnx").write_bytes(one.SerializeToString() + two.SerializeToString())
    found = read_onnx(tmp_path / "m.onnx")
    assert [t.name for t in found.model.graph.initializer] == ["a", "b", "c"]
    assert sorted(found.raw) == [0, 2]


@pytest.mark.parametrize("data", [b"\x0b\x0c", b"\x80" * 12, b"\x3a\x05abc"])
def test_what_is_no_protobuf_is_refused(data, tmp_path):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ConversionError, match=r"/m\.onnx' is not an ONNX model"):
        read_onnx(tmp_path / "m.onnx")
