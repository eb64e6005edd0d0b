from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kserve_wasm.artifact.config import Batching
from kserve_wasm.backends import GraphSource
from kserve_wasm.errors import DeadlineExceeded, GuestTrap, QueueFull, WasmServingError
from ray_app.wire import Answer, delivered_source, local_source, make_offer, read_content


@pytest.fixture
def source(tmp_path: Path) -> GraphSource:
    """A graph in the middle of a file, and weights in another."""
    (tmp_path / "model.wasm").write_bytes(b"code" + b"graph" + b"more")
    (tmp_path / "weights").write_bytes(bytes(range(256)))
    return GraphSource("g", "onnx", tmp_path / "model.wasm", 4, 5, weights=tmp_path / "weights")


def test_the_content_is_the_graphs_range_and_the_whole_file_of_weights(source: GraphSource) -> None:
    graph, weights = read_content(source)
    assert graph.tobytes() == b"graph"
    assert weights is not None
    assert weights.tobytes() == bytes(range(256))
    rest, _ = read_content(replace(source, length=None, weights=None))
    assert rest.tobytes() == b"graphmore"
    assert read_content(GraphSource("g", "onnx", data=b"bytes"))[0].tobytes() == b"bytes"


def test_a_key_follows_everything_that_answers_depend_on(source: GraphSource) -> None:
    key = make_offer(source, "cpu", Batching()).key
    assert make_offer(source, "cpu", Batching()).key == key
    assert (
        make_offer(GraphSource("g", "onnx", data=b"graph", weights=source.weights), "cpu", Batching()).key
        == key
    )
    others = [
        make_offer(source, "gpu", Batching()),
        make_offer(source, "cpu", Batching(max_batch_size=8)),
        make_offer(replace(source, name="h"), "cpu", Batching()),
        make_offer(replace(source, options={"intra_op_threads": 1}), "cpu", Batching()),
        make_offer(replace(source, length=4), "cpu", Batching()),
        make_offer(replace(source, weights=None), "cpu", Batching()),
    ]
    assert len({key, *(offer.key for offer in others)}) == 7


def test_files_at_the_same_paths_are_used_only_when_they_are_the_same(source: GraphSource) -> None:
    offer = make_offer(source, "cpu", Batching())
    assert local_source(offer) == source
    assert source.weights is not None
    source.weights.write_bytes(bytes(256))
    assert local_source(offer) is None
    source.weights.unlink()
    assert local_source(offer) is None
    assert local_source(make_offer(GraphSource("g", "onnx", data=b"graph"), "cpu", Batching())) is None


def test_what_was_delivered_is_what_was_offered(source: GraphSource, tmp_path: Path) -> None:
    offer = make_offer(source, "cpu", Batching())
    folder = tmp_path / "there"
    folder.mkdir()
    delivered = delivered_source(offer, read_content(source), folder)
    assert (delivered.data, delivered.path, delivered.name) == (b"graph", None, "g")
    assert delivered.weights is not None
    assert delivered.weights.parent == folder
    assert make_offer(delivered, "cpu", Batching()).key == offer.key


def test_an_offer_holds_none_of_the_bytes() -> None:
    data = np.random.default_rng(0).bytes(1 << 20)
    offer = make_offer(GraphSource("g", "onnx", data=data), "cpu", Batching())
    assert len(pickle.dumps(offer)) < 4096


@pytest.mark.parametrize(
    "error", [QueueFull("full", 7.0), GuestTrap("trap", "stack_overflow"), DeadlineExceeded("late")]
)
def test_errors_keep_their_class_and_facts_on_the_way_but_no_cause(error: WasmServingError) -> None:
    error.__cause__ = OSError("/secret/path")
    there = pickle.loads(pickle.dumps(Answer(error))).outcome
    assert type(there) is type(error)
    assert (str(there), vars(there)) == (str(error), vars(error))
    assert there.__cause__ is None
    assert there.__traceback__ is None
