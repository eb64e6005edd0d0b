"""What is written is read back; what was tampered with is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_wasm.artifact import GraphEntry, Manifest, load_model_dir, read_artifact
from kserve_wasm.artifact import write as writing
from kserve_wasm.artifact.write import ALIGNMENT, Blob, NewGraph, write_artifact
from kserve_wasm.errors import ArtifactError, ModelLoadError
from kserve_wasm.tensors import DTYPES, TensorSpec
from tests.artifact.modules import CODE, artifact, custom, write
from tests.support.counts import count

MANIFEST = Manifest(
    "tensor",
    name="model",
    version="7",
    inputs=(TensorSpec("x", DTYPES["FP32"], ("n", None, 3)),),
    outputs=(TensorSpec("y", DTYPES["BYTES"], ()),),
    batching={"max_batch_size": 8},
    producer="a test",
)
TWO_GRAPHS = (
    (GraphEntry("first", "onnx", options={"intra_op_threads": 1}), (b"a" * 100, b"b" * 70_000, b"c")),
    (GraphEntry("second", "onnx"), ()),
)


@given(st.lists(st.lists(st.integers(1, 100_000), max_size=5), max_size=3))
def test_every_weight_lies_where_its_graph_says_on_aligned_pages(tmp_path_factory, lengths):
    graphs = [
        (GraphEntry(f"g{i}", "onnx"), [bytes([65 + i * 8 + j]) * n for j, n in enumerate(group)])
        for i, group in enumerate(lengths)
    ]
    data = artifact(MANIFEST, graphs)
    count("artefacts written and read")
    found = read_artifact(write(tmp_path_factory.mktemp("a") / "model.wasm", data))
    assert data[: found.code_length] == CODE
    assert [g.entry.name for g in found.graphs] == [e.name for e, _ in graphs]
    for graph, (_, weights) in zip(found.graphs, graphs, strict=True):
        offsets = list(map(int, data[graph.section.offset : graph.section.end].split()))
        assert [data[o : o + len(w)] for o, w in zip(offsets, weights, strict=True)] == list(weights)
        for section in graph.weights:
            assert section.offset % ALIGNMENT == 0
        for offset, weight in zip(offsets, weights, strict=True):
            assert offset % (4096 if len(weight) >= ALIGNMENT else 64) == 0
            assert any(s.offset <= offset and offset + len(weight) <= s.end for s in graph.weights)
    wasmtime.Module(wasmtime.Engine(), data)


def test_manifest_comes_back_as_it_was_written(tmp_path):
    found = read_artifact(write(tmp_path / "model.wasm", artifact(MANIFEST, TWO_GRAPHS)))
    assert found.manifest is not None
    assert (found.manifest.name, found.manifest.version, found.manifest.abi) == ("model", "7", "tensor")
    assert found.manifest.inputs == MANIFEST.inputs
    assert found.manifest.outputs == MANIFEST.outputs
    assert found.manifest.batching == {"max_batch_size": 8}
    assert found.graphs[0].entry.options == {"intra_op_threads": 1}
    assert found.graphs[1].weights == ()


def test_digest_is_of_the_code_alone(tmp_path):
    for name in ("a", "b"):
        found = read_artifact(write(tmp_path / f"{name}.wasm", artifact(Manifest("tensor", name=name))))
        assert found.digest() == "sha256:" + hashlib.sha256(CODE).hexdigest()


def test_weights_above_a_sections_limit_are_spread_over_several(tmp_path, monkeypatch):
    # A section ends at 4 GiB; the same rule with a limit that a test can afford.
    monkeypatch.setattr(writing, "MAX_CONTENTS", 200_064)
    weights = [bytes([i]) * 90_000 for i in range(5)]
    data = artifact(MANIFEST, [(GraphEntry("g", "onnx"), weights)])
    (graph,) = read_artifact(write(tmp_path / "model.wasm", data)).graphs
    offsets = list(map(int, data[graph.section.offset : graph.section.end].split()))
    assert [data[o : o + 90_000] for o in offsets] == weights
    assert len(graph.weights) == 3
    assert all(section.length <= 200_000 for section in graph.weights)


def test_a_weight_above_a_sections_limit_is_refused():
    graph = NewGraph(GraphEntry("g", "onnx"), [Blob(2**32, lambda: b"")], lambda _: b"")
    with pytest.raises(ArtifactError, match="less than 4 GiB"):
        write_artifact(BytesIO(), Blob(len(CODE), lambda: CODE), MANIFEST, [graph])


def test_a_source_that_is_too_short_is_noticed(tmp_path):
    source = write(tmp_path / "weights", b"x" * 99)
    graph = NewGraph(GraphEntry("g", "onnx"), [Blob(100, (source, 0))], lambda _: b"")
    with pytest.raises(ArtifactError, match="1 bytes too early"):
        write_artifact(BytesIO(), Blob(len(CODE), lambda: CODE), MANIFEST, [graph])


def test_a_module_without_our_sections_is_all_code(tmp_path):
    found = read_artifact(write(tmp_path / "m.wasm", CODE + custom("producers", b"zig")))
    assert (found.manifest, found.graphs) == (None, ())
    assert found.code_length == len(CODE + custom("producers", b"zig"))


def _manifest(**changes: object) -> bytes:
    return custom("kserve-wasm.manifest", json.dumps({"abi": "tensor", **changes}).encode())


GRAPH = custom("kserve-wasm.graph", b"g")
WEIGHTS = custom("kserve-wasm.weights", b"w")


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (GRAPH, "one section 'kserve-wasm.manifest' before"),
        (
            GRAPH + _manifest(graphs=[{"name": "g", "encoding": "onnx"}]),
            "one section 'kserve-wasm.manifest' before",
        ),
        (_manifest() + _manifest(), "got 2"),
        (_manifest() + GRAPH, "lists 0 graphs, but the file carries 1"),
        (_manifest(graphs=[{"name": "g", "encoding": "onnx"}]), "lists 1 graphs, but the file carries 0"),
        (_manifest() + WEIGHTS, "before the first"),
        (
            _manifest(graphs=[{"name": "g", "encoding": "onnx"}]) + GRAPH + WEIGHTS,
            "not where the manifest says",
        ),
        (_manifest() + b"\x01\x01\x00", "code must come first"),
        (_manifest() + custom("kserve-wasm.future", b""), "newer kserve_wasm"),
        (custom("kserve-wasm.manifest", b" " * (4 * 2**20 + 1)), "at most 4194304 bytes"),
    ],
)
def test_sections_that_do_not_fit_together_are_refused(tail, message, tmp_path):
    with pytest.raises(ArtifactError, match=message):
        read_artifact(write(tmp_path / "model.wasm", CODE + tail))


def test_moved_weights_are_noticed(tmp_path):
    """A tool that adds or drops a section before them shifts every offset that the graph holds."""
    data = artifact(MANIFEST, TWO_GRAPHS)
    shifted = CODE + custom("name", b"\0") + data[len(CODE) :]
    with pytest.raises(ArtifactError, match="not where the manifest says"):
        read_artifact(write(tmp_path / "model.wasm", shifted))


DATA = artifact(MANIFEST, TWO_GRAPHS)
HEADERS = 1500  # code, manifest, graph and padding headers lie here; weights follow


@settings(max_examples=1000)
@given(st.lists(st.tuples(st.integers(0, HEADERS), st.integers(0, 255)), min_size=1, max_size=8), st.data())
def test_doctored_artefacts_are_read_or_refused_and_nothing_else(tmp_path_factory, changes, data):
    doctored = bytearray(DATA)
    for at, value in changes:
        doctored[at] = value
    end = data.draw(st.sampled_from([len(doctored)]) | st.integers(0, len(doctored)), label="cut at")
    path = write(tmp_path_factory.getbasetemp() / "doctored.wasm", bytes(doctored[:end]))
    count("doctored or truncated wasm files")
    try:
        (config,) = load_model_dir(path, "m")
    except ModelLoadError:
        return
    assert config.code_length <= end
    for graph in config.graphs:
        assert graph.length is not None
        assert graph.offset + graph.length <= end


def test_copying_reports_all_bytes(tmp_path):
    source = write(tmp_path / "weights", bytes(9 << 20))
    told: list[int] = []
    out = tmp_path / "model.wasm"
    with out.open("wb") as file:
        graph = NewGraph(GraphEntry("g", "onnx"), [Blob(9 << 20, (source, 0))], lambda _: b"")
        write_artifact(file, Blob(len(CODE), lambda: CODE), MANIFEST, [graph], told.append)
    assert sum(told) == out.stat().st_size
    assert max(told) <= 4 << 20


def test_reading_imports_no_framework():
    code = (
        "import sys, kserve_wasm.artifact; "
        "print([m for m in ('kserve', 'onnx', 'onnxruntime', 'wasmtime') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"
