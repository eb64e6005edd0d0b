"""Several requests in one run, on ONNX Runtime: the same answers as alone, also from graphs that cannot be merged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from kserve_wasm.artifact.config import Batching, Padding
from kserve_wasm.backends import Graph, GraphSource, open_graph
from kserve_wasm.batching.merge import TRIALS, MergingGraph, Run
from kserve_wasm.batching.signature import Fit
from kserve_wasm.errors import DeadlineExceeded, InvalidRequest, ModelLoadError
from kserve_wasm.tensors import Tensor
from tests.backends import models
from tests.batching import graphs
from tests.batching.graphs import NumpyGraph, Values, fp32


class Counted:
    """A graph, and how often it ran."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.runs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)

    def run(self, *arguments: Any) -> Mapping[str, Tensor]:
        self.runs += 1
        return self._graph.run(*arguments)


def onnx_graph(model: onnx.ModelProto) -> Counted:
    return Counted(open_graph(GraphSource("g", "onnx", data=model.SerializeToString()), "cpu"))


def merged(graph: Any, **options: Any) -> MergingGraph:
    return MergingGraph(graph, Batching(**{"declared": True, **options}))


def run(graph: MergingGraph, *requests: Values) -> Run:
    fits = [fit for request in requests if (fit := graph.fit(request)) is not None]
    assert len(fits) == len(requests)
    assert len({fit.key for fit in fits}) == 1
    return graph.run(requests, fits)


def some(*rows: int, width: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
    rng = np.random.default_rng(seed)
    return [fp32(*rng.standard_normal((n, width), dtype=np.float32)) for n in rows]


def values(run: Run, name: str = "y") -> list[Any]:
    answers = []
    for outcome in run.outcomes:
        assert isinstance(outcome, Mapping), outcome
        answers.append(outcome[name].numpy())
    return answers


def x(request: Values) -> Any:
    return request["x"].numpy()


def test_requests_run_together_and_each_gets_its_own() -> None:
    graph = onnx_graph(models.mlp())
    requests = some(1, 3, 2, width=4)
    done = run(merged(graph), *requests)
    assert graph.runs == 1
    for request, y in zip(requests, values(done), strict=True):
        np.testing.assert_allclose(y, models.mlp_oracle(x(request)), rtol=1e-4, atol=1e-5)
    assert min(done.input_ns, done.infer_ns, done.output_ns) > 0


def test_the_memory_of_batches_is_used_again_but_answers_stay() -> None:
    """Also where the graph hands its input through, as NumPy graphs and an Identity may."""
    seen: list[int] = []

    def through(inputs: Values) -> Mapping[str, Tensor]:
        seen.append(x(inputs).ctypes.data)
        return {"y": inputs["x"]}

    graph = merged(NumpyGraph(through))
    requests = [some(2, 3, seed=i) for i in range(5)]
    answers = [values(run(graph, *two)) for two in requests]
    assert len(set(seen)) == 1
    for two, ys in zip(requests, answers, strict=True):
        for request, y in zip(two, ys, strict=True):
            np.testing.assert_array_equal(y, x(request))
            assert not np.shares_memory(y, x(request))


def test_a_view_of_the_input_is_an_input_handed_through() -> None:
    def last_first(inputs: Values) -> Mapping[str, Tensor]:
        array = x(inputs)
        return {"y": Tensor(inputs["x"].dtype, array.shape, array[:, ::-1])}

    graph = merged(NumpyGraph(last_first))
    requests = some(1, 1)
    first = values(run(graph, *requests))
    np.testing.assert_array_equal(first, [x(request)[:, ::-1] for request in requests])
    kept = [y.copy() for y in first]
    run(graph, *some(1, 1, seed=9))
    np.testing.assert_array_equal(first, kept)


def test_what_was_padded_comes_back_as_long_as_it_was() -> None:
    padding = {"length": Padding((4, 8))}
    graph = onnx_graph(graphs.twice_plus_one())
    mine = merged(graph, padding=padding)
    requests = [*some(1, 2, width=2), *some(1, width=4), *some(3, width=0)]
    for request, y in zip(requests, values(run(mine, *requests)), strict=True):
        np.testing.assert_array_equal(y, 2 * x(request) + 1, strict=True)
    assert graph.runs == 1


# --- Whether entries are independent


def test_an_undeclared_graph_that_merges_well_is_merged_after_a_few_trials() -> None:
    graph = onnx_graph(models.mlp())
    mine = merged(graph, declared=False)
    for i in range(TRIALS):
        requests = some(1, 2, width=4, seed=i)
        before = graph.runs
        for request, y in zip(requests, values(run(mine, *requests)), strict=True):
            alone = open_graph(GraphSource("g", "onnx", data=models.mlp().SerializeToString()), "cpu").run(
                request
            )
            np.testing.assert_array_equal(y, alone["y"].numpy())  # a trial's answers are those of runs alone
        assert graph.runs == before + 4  # merged, two alone, and one beside far larger values
    before = graph.runs
    run(mine, *some(1, 2, 3, width=4, seed=99))
    assert graph.runs == before + 1
    assert mine.merges


def test_a_declared_graph_is_not_compared() -> None:
    graph = onnx_graph(models.mlp())
    run(merged(graph), *some(1, 2, width=4))
    assert graph.runs == 1


def attention() -> onnx.ModelProto:
    """FP32 ``x`` [batch, 3] → ``y``: each row a mixture of all."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"]),
        helper.make_node("MatMul", ["weights", "x"], ["y"]),
    ]
    return models.model(nodes, {"x": ("FP32", ["batch", 3])}, {"y": ("FP32", ["batch", 3])})


def attended(values: Any) -> Any:
    scores = values @ values.T
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ values


def at_most_one(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """FP32 ``x`` [batch, 3] → ``y``, where ``small`` is the shape of x, and at most [1, 3]; ONNX cannot know."""
    nodes = (
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Min", ["shape", "one"], ["small"]),
        *nodes,
    )
    constants = {"one": np.array([1, 3]), "zeros": np.array([0, 0])}
    return models.model(list(nodes), {"x": ("FP32", ["batch", 3])}, {"y": ("FP32", ["batch", 3])}, constants)


def fixed_reshape() -> onnx.ModelProto:
    """``y`` = x, and fails for more than one row."""
    return at_most_one(helper.make_node("Reshape", ["x", "small"], ["y"]))


def first_row() -> onnx.ModelProto:
    """``y`` = the first row."""
    return at_most_one(helper.make_node("Slice", ["x", "zeros", "small"], ["y"]))


def share_of_the_largest() -> onnx.ModelProto:
    """FP32 ``x`` [batch, 3] → ``y``: x over the largest value of all rows, as a quantized tensor's scale."""
    nodes = [
        helper.make_node("Abs", ["x"], ["size"]),
        helper.make_node("ReduceMax", ["size"], ["largest"], keepdims=0),
        helper.make_node("Div", ["x", "largest"], ["y"]),
    ]
    return models.model(nodes, {"x": ("FP32", ["batch", 3])}, {"y": ("FP32", ["batch", 3])})


def test_rows_that_depend_on_each_other_only_by_their_size_are_found_out() -> None:
    """Normalised rows all have the same largest value; another client's would not."""
    mine = merged(onnx_graph(share_of_the_largest()), declared=False)
    rows = [np.array([[1.0, 0.5, n / 10]], np.float32) for n in range(2)]
    answers = values(run(mine, *({"x": Tensor.from_numpy(row)} for row in rows)))
    np.testing.assert_array_equal(answers, rows)
    assert not mine.merges


DEPENDENT = {
    "mean": (graphs.minus_mean, lambda v: v - v.mean(axis=0, keepdims=True)),
    "attention": (attention, attended),
    "fails when merged": (fixed_reshape, lambda v: v),
    "loses rows": (first_row, lambda v: v[:1]),
}


@pytest.mark.parametrize("what", DEPENDENT)
def test_a_graph_that_cannot_be_merged_is_found_out_by_the_first_trial(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, oracle = DEPENDENT[what]
    graph = onnx_graph(model())
    mine = merged(graph, declared=False)
    rows = (1, 1) if what in ("fails when merged", "loses rows") else (1, 3, 2)
    requests = some(*rows)
    with caplog.at_level(logging.WARNING):
        answers = values(run(mine, *requests))
    for request, y in zip(requests, answers, strict=True):
        np.testing.assert_allclose(y, oracle(x(request)), rtol=1e-4, atol=1e-5)
    (record,) = caplog.records
    assert "graph 'g' is not batched" in record.getMessage()
    assert "batching.max_batch_size" in record.getMessage()
    assert not mine.merges
    assert mine.fit(requests[0]) is None
    before = graph.runs
    late = mine.run(requests, [Fit(n, (), ()) for n in rows])  # it was formed before
    for request, y in zip(requests, values(late), strict=True):
        np.testing.assert_allclose(y, oracle(x(request)), rtol=1e-4, atol=1e-5)
    assert graph.runs > before


@pytest.mark.parametrize("what", ["mean", "attention"])
def test_clients_that_all_send_the_same_hide_nothing(what: str) -> None:
    """The mean of equal rows is each of them: only what differs tells, and so each is tried beside such."""
    model, oracle = DEPENDENT[what]
    mine = merged(onnx_graph(model()), declared=False)
    (same,) = some(1)
    for y in values(run(mine, same, same, same)):
        np.testing.assert_allclose(y, oracle(x(same)), rtol=1e-4, atol=1e-5)
    assert not mine.merges


def test_clients_that_all_send_the_same_are_merged_after_a_few_trials() -> None:
    graph = onnx_graph(models.mlp())
    mine = merged(graph, declared=False)
    (same,) = some(2, width=4)
    for _ in range(TRIALS):
        run(mine, same, dict(same))
    before = graph.runs
    for y in values(run(mine, same, dict(same))):
        np.testing.assert_allclose(y, models.mlp_oracle(x(same)), rtol=1e-4, atol=1e-5)
    assert graph.runs == before + 1
    run(mine, *some(1, 1, width=4))  # these differ
    assert graph.runs == before + 1 + 4


def test_requests_that_fail_alone_say_nothing_of_the_graph(caplog: pytest.LogCaptureFixture) -> None:
    mine = merged(onnx_graph(graphs.lookup()), declared=False)

    def asked(*rows: int) -> dict[str, Tensor]:
        return {"i": Tensor.from_numpy(np.array(rows))}

    for _ in range(TRIALS + 1):
        good, bad, other = run(mine, asked(1, 2), asked(99), asked(3)).outcomes
        assert isinstance(bad, InvalidRequest)
        assert isinstance(good, Mapping)
        assert isinstance(other, Mapping)
        np.testing.assert_array_equal(good["y"].numpy(), graphs.TABLE[[1, 2]])
        np.testing.assert_array_equal(other["y"].numpy(), graphs.TABLE[[3]])
    assert mine.merges
    assert not caplog.records


def test_padding_that_shows_is_found_out() -> None:
    """A mean over the padded dimension, where nobody declared that it does not matter."""
    model = models.model(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)],
        {"x": ("FP32", ["batch", "length"])},
        {"y": ("FP32", ["batch"])},
    )
    mine = merged(onnx_graph(model), declared=False, padding={"length": Padding((8,))})
    requests = [*some(1, width=2), *some(1, width=5)]
    for request, y in zip(requests, values(run(mine, *requests)), strict=True):
        np.testing.assert_allclose(y, x(request).mean(axis=1), rtol=1e-5)
    assert not mine.merges


def test_a_trial_that_takes_too_long_is_no_verdict() -> None:
    mine = merged(onnx_graph(graphs.slow()), declared=False)
    requests = [{"n": Tensor.from_numpy(np.array([n]))} for n in (1, 1 << 60)]
    fits = [fit for request in requests if (fit := mine.fit(request))]
    with pytest.raises(DeadlineExceeded):
        mine.run(requests, fits, 0.0)
    assert mine.merges


def test_what_is_declared_and_cannot_be_is_an_error() -> None:
    with pytest.raises(ModelLoadError, match="cannot be merged"):
        merged(onnx_graph(models.reshape()))
    mine = merged(onnx_graph(models.reshape()), declared=False)
    assert not mine.merges
    assert mine.fit({}) is None


def test_run_all_gives_each_its_own_error() -> None:
    mine = merged(onnx_graph(graphs.lookup()))
    requests = [{"i": Tensor.from_numpy(np.array([i]))} for i in (4, 50, 60, 7)]
    fits = [fit for request in requests if (fit := mine.fit(request))]
    outcomes = mine.run_all(requests, fits).outcomes
    for i, outcome in zip((4, 50, 60, 7), outcomes, strict=True):
        if i < 10:
            assert isinstance(outcome, Mapping)
            np.testing.assert_array_equal(outcome["y"].numpy(), graphs.TABLE[[i]])
        else:
            assert isinstance(outcome, InvalidRequest)
            assert f"idx={i}" in str(outcome)
            assert outcome.__traceback__ is None
