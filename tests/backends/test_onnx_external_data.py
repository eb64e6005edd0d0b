"""Weights beside the graph: found whatever the file is called, mapped in place, and nothing else is ever read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.backends.onnx import wire
from kserve_wasm.backends.onnx.external_data import CHILDREN, relocate
from kserve_wasm.errors import BackendError
from kserve_wasm.tensors import Tensor
from tests.backends import models

WIDTH = 64


def answers(graph: bytes, weights: Path | None, **options: Any) -> None:
    """Two layers answer the mean of each row, three times as large."""
    x = np.random.default_rng(0).random((3, WIDTH), dtype=np.float32)
    source = GraphSource("g", "onnx", data=graph, weights=weights, options=options)
    y = open_graph(source, "cpu").run({"x": Tensor.from_numpy(x)})["y"].numpy()
    np.testing.assert_allclose(y, np.repeat(3 * x.mean(1, keepdims=True), WIDTH, 1), rtol=1e-4)


@pytest.mark.parametrize("prepacking", [True, False])
@pytest.mark.parametrize(
    "location", ["model.wasm", "other.wasm", "../up", "/etc/hostname", "*/_ORT_MEM_ADDR_/*"]
)
def test_weights_are_found_whatever_the_graph_calls_their_file(
    tmp_path: Path, location: str, prepacking: bool
) -> None:
    weights = tmp_path / "model.wasm"
    answers(models.external_mlp(weights, location, 2, WIDTH), weights, prepacking=prepacking)


def test_weights_are_found_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    real = tmp_path / "..data" / "blob"
    graph = models.external_mlp(real, "model.wasm", 2, WIDTH)
    (tmp_path / "mounted").mkdir()
    link = tmp_path / "mounted" / "model.wasm"
    link.symlink_to(real)
    answers(graph, link)


def test_graph_and_weights_lie_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "model é.wasm"
    graph = models.external_mlp(file, "x", 2, WIDTH)
    with file.open("ab") as f:
        offset = f.tell()
        f.write(graph)
    source = GraphSource("g", "onnx", path=file, offset=offset, length=len(graph), weights=file)
    y = open_graph(source, "cpu").run({"x": Tensor.from_numpy(np.ones((1, WIDTH), np.float32))})["y"]
    np.testing.assert_allclose(y.numpy(), np.full((1, WIDTH), 3), rtol=1e-5)


def test_a_graph_without_a_weights_file_reads_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime would look
    graph = models.external_mlp(tmp_path / "secret", "secret", 1, WIDTH)
    with pytest.raises(BackendError, match="graph 'g': the graph keeps tensors in another file"):
        answers(graph, None)


def test_external_tensors_of_a_nested_graph_are_found(tmp_path: Path) -> None:
    weights = tmp_path / "model.wasm"
    weights.write_bytes(bytes(64) + np.full(3, 5, "<f4").tobytes())
    nested = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["out"])],
        "then",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [3])],
        [models.external_tensor("w", [3], "elsewhere", 64)],
    )
    node = helper.make_node("If", ["x"], ["y"], then_branch=nested, else_branch=nested)
    graph = models.model([node], {"x": ("BOOL", [])}, {"y": ("FP32", [3])}).SerializeToString()
    source = GraphSource("g", "onnx", data=graph, weights=weights)
    y = open_graph(source, "cpu").run({"x": Tensor.from_numpy(np.array(True))})["y"]
    assert y.numpy().tolist() == [5, 5, 5]


def test_several_files_are_refused(tmp_path: Path) -> None:
    tensors = [models.external_tensor(n, [4], f"{n}.bin", 0) for n in "ab"]
    node = helper.make_node("Add", ["a", "b"], ["y"])
    graph = models.model([node], {}, {"y": ("FP32", [4])}, external=tensors).SerializeToString()
    with pytest.raises(BackendError, match="in 2 files"):
        open_graph(GraphSource("g", "onnx", data=graph, weights=tmp_path / "a.bin"), "cpu")


@pytest.mark.parametrize("offset", [-4, 1 << 20, 1 << 62])
def test_weights_beyond_their_file_are_refused_without_its_path(tmp_path: Path, offset: int) -> None:
    weights = tmp_path / "model.wasm"
    weights.write_bytes(bytes(64))
    node = helper.make_node("Add", ["x", "w"], ["y"])
    external = [models.external_tensor("w", [4], "model.wasm", offset)]
    graph = models.model([node], {"x": ("FP32", [4])}, {"y": ("FP32", [4])}, external=external)
    source = GraphSource("g", "onnx", data=graph.SerializeToString(), weights=weights)
    with pytest.raises(BackendError, match="graph 'g' cannot be opened") as caught:
        open_graph(source, "cpu")
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_weights_file_is_refused_without_its_path(tmp_path: Path) -> None:
    graph = models.external_mlp(tmp_path / "gone", "gone", 1, WIDTH)
    (tmp_path / "gone").unlink()
    with pytest.raises(BackendError) as caught:
        answers(graph, tmp_path / "gone")
    assert str(tmp_path) not in str(caught.value)


def test_a_graph_that_keeps_its_weights_in_itself_asks_for_no_file(tmp_path: Path) -> None:
    x = np.ones((1, 4), np.float32)
    for words in ("", "location"):
        model = models.mlp()
        model.doc_string = words
        source = GraphSource("g", "onnx", data=model.SerializeToString(), weights=tmp_path / "none")
        y = open_graph(source, "cpu").run({"x": Tensor.from_numpy(x)})["y"].numpy()
        np.testing.assert_allclose(y, models.mlp_oracle(x), rtol=1e-5)


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.tensors import Tensor

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

options = eval(sys.argv[3])
warm = open_graph(GraphSource("g", "onnx", data=Path(sys.argv[2] + ".small").read_bytes()), "cpu")
graph, weights = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
before = anonymous()
opened = open_graph(GraphSource("g", "onnx", data=graph, weights=weights, options=options), "cpu")
opened.run({"x": Tensor.from_numpy(np.ones((1, 1024), np.float32))})
print(anonymous() - before)
"""


@pytest.mark.parametrize(
    ("options", "private"), [({}, False), ({"prepacking": False}, False), ({"prepacking": True}, True)]
)
def test_100_mb_of_weights_stay_in_their_file_unless_prepacked(
    tmp_path: Path, options: dict[str, Any], private: bool
) -> None:
    weights = tmp_path / "model.wasm"
    (tmp_path / "graph").write_bytes(models.external_mlp(weights, "model.wasm", 25, 1024))
    (tmp_path / "model.wasm.small").write_bytes(models.mlp().SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "graph", weights, repr(options)],
        capture_output=True,
        text=True,
        check=True,
    )
    weights.unlink()
    assert (int(done.stdout) > 50 << 10) is private, f"{done.stdout.strip()} KiB of private memory"


def test_the_way_to_external_data_is_the_whole_way() -> None:
    """Fails when a new release of ONNX can hold tensors in another place."""
    model = onnx.ModelProto.DESCRIPTOR
    seen: dict[str, Descriptor] = {}

    def collect(message: Descriptor) -> None:
        if message.name not in seen:
            seen[message.name] = message
            for f in message.fields:
                if f.message_type is not None:
                    collect(f.message_type)

    collect(model)
    ways: dict[str, dict[int, str]] = {
        "TensorProto": {TensorProto.EXTERNAL_DATA_FIELD_NUMBER: "StringStringEntryProto"}
    }
    while True:
        more = {
            name: {
                f.number: f.message_type.name
                for f in message.fields
                if f.message_type is not None and f.message_type.name in ways
            }
            for name, message in seen.items()
            if name != "TensorProto"
        }
        grown = {"TensorProto": ways["TensorProto"]} | {name: way for name, way in more.items() if way}
        if grown == ways:
            break
        ways = grown
    assert ways == CHILDREN


def every_location(message: Any) -> list[str]:
    """By reflection, independently of the walk under test."""
    found = []
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        # In protobuf a repeated field's value is a container of messages, a single field's the message.
        for child in [value] if hasattr(value, "ListFields") else value:
            if isinstance(message, TensorProto) and descriptor.name == "external_data":
                found += [child.value] if child.key == "location" else []
            else:
                found += every_location(child)
    return found


def seeds() -> list[bytes]:
    tensor = models.external_tensor("w", [3], "a", 0)
    nested = helper.make_graph([], "n", [], [], [tensor])
    node = helper.make_node("If", ["x"], ["y"], then_branch=nested, value=tensor)
    model = models.model([node], {"x": ("BOOL", [])}, {"y": ("FP32", [3])}, external=[tensor])
    function = model.functions.add(name="f", domain="d")
    function.node.append(node)
    sparse = helper.make_sparse_tensor(tensor, models.external_tensor("i", [3], "a", 0), [9])
    model.graph.sparse_initializer.append(sparse)
    model.training_info.add().initialization.initializer.append(tensor)
    return [model.SerializeToString(), models.mlp().SerializeToString()]


def test_every_location_is_replaced_and_nothing_else_changes() -> None:
    expected = onnx.ModelProto.FromString(seeds()[0])
    assert len(every_location(expected)) >= 7
    relocated = onnx.ModelProto.FromString(relocate(seeds()[0], b"model.wasm" * 30))
    assert set(every_location(relocated)) == {"model.wasm" * 30}
    assert relocate(relocated.SerializeToString(), b"a") == seeds()[0]


@given(st.data())
def test_no_location_survives_in_doctored_graphs(data: st.DataObject) -> None:
    graph = bytearray(data.draw(st.sampled_from(seeds())))
    for _ in range(data.draw(st.integers(0, 8))):
        at = data.draw(st.integers(0, len(graph) - 1))
        graph[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        relocated = onnx.ModelProto.FromString(relocate(bytes(graph), b"mine"))
    except (BackendError, DecodeError):  # neither this walk nor protobuf reads it
        return
    assert set(every_location(relocated)) <= {"mine"}


def test_deep_nesting_ends_with_an_error_and_not_the_stack() -> None:
    graph = b"location"
    for _ in range(2000):  # graph → node → attribute → graph …
        for number in (6, 5, 1):
            graph = wire.encode(number, graph)
    with pytest.raises(BackendError, match="nested more than 100 deep"):
        relocate(wire.encode(7, graph), b"mine")
