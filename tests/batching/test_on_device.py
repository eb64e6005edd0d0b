"""Batches on a device: what is on the host goes there in one copy for each input, what is there stays."""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from kserve_wasm.artifact.config import Batching, Padding
from kserve_wasm.backends import Graph, GraphSource
from kserve_wasm.batching import BatchScheduler, Caller
from kserve_wasm.batching.merge import MergingGraph, Run
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.tensors import DTYPES, Tensor
from kserve_wasm.tensors.devices import Accelerator
from tests.support.devices import DEVICES, allocations, make_device, open_over

FP32 = DTYPES["FP32"]
Values = Mapping[str, Tensor]

AFFINE = """(float[n, m] x, float[n, m] b) => (float[n, m] y) {
    two = Constant<value = float {2}>() d = Mul(x, two) y = Add(d, b) }"""
SUM = "(float[n, m] y) => (float[n, k] s) { s = ReduceSum<keepdims = 1>(y, axes) }"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Accelerator:
    return make_device(request.param)


def opened(device: Accelerator, text: str) -> Graph:
    text = text.replace("{ s", "<int64[1] axes = {1}> { s")
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    return open_over(device, GraphSource("g", "onnx", data=proto.SerializeToString()))


def affine(device: Accelerator, **options: object) -> MergingGraph:
    return MergingGraph(
        opened(device, AFFINE), Batching(**{"declared": True, "max_batch_size": 64, **options})
    )  # type: ignore[arg-type]


def run(graph: MergingGraph, requests: list[Values]) -> Run:
    fits = [fit for request in requests if (fit := graph.fit(request)) is not None]
    assert len(fits) == len(requests)
    return graph.run(requests, fits)


def fixed(array: np.ndarray) -> Tensor:
    """A tensor as a request has it: of memory that cannot change."""
    return Tensor.from_buffer(FP32, array.shape, array.tobytes())


def some(count: int, width: int = 7, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {name: rng.standard_normal((1 + i % 3, width), dtype=np.float32) for name in ("x", "b")}
        for i in range(count)
    ]


def check(answers: Run, requests: list[dict[str, np.ndarray]]) -> None:
    for outcome, request in zip(answers.outcomes, requests, strict=True):
        assert isinstance(outcome, Mapping)
        assert outcome["y"].device != "cpu"
        np.testing.assert_allclose(outcome["y"].numpy(), 2 * request["x"] + request["b"], rtol=1e-6)


def test_a_batch_of_32_is_one_copy_for_each_input(device: Accelerator) -> None:
    requests = some(32)
    graph = affine(device, max_batch_size=96)
    answers = run(graph, [{name: fixed(a) for name, a in request.items()} for request in requests])
    assert device.copies("to_device") == 2
    assert device.copied_bytes("to_device") == sum(a.nbytes for r in requests for a in r.values())
    assert device.copies("to_host") == device.copies("on_device") == 0
    check(answers, requests)
    assert device.copies("to_host") == 1
    assert device.copied_bytes("to_host") == sum(request["x"].nbytes for request in requests)


def test_one_staging_buffer_serves_batch_after_batch(device: Accelerator) -> None:
    graph = affine(device)
    for seed in range(50):
        requests = some(8, seed=seed)
        check(run(graph, [{n: fixed(a) for n, a in request.items()} for request in requests]), requests)
    assert allocations(device) <= 8  # staging, inputs, outputs, answers


def test_answers_of_one_batch_are_not_the_next_ones(device: Accelerator) -> None:
    graph = affine(device)
    batches = [some(4, seed=seed) for seed in range(5)]
    answers = [run(graph, [{n: fixed(a) for n, a in r.items()} for r in requests]) for requests in batches]
    for answer, requests in zip(answers, batches, strict=True):
        check(answer, requests)


def test_rows_of_two_batches_are_merged_without_the_host(device: Accelerator) -> None:
    graph = affine(device)
    requests = some(6)
    first = run(graph, [{n: fixed(a) for n, a in r.items()} for r in requests[:3]])
    second = run(graph, [{n: fixed(a) for n, a in r.items()} for r in requests[3:]])
    before = device.copied_bytes("to_device"), device.copied_bytes("to_host")
    mixed = [first.outcomes[2], second.outcomes[0], first.outcomes[0], second.outcomes[1]]
    given = [{"x": o["y"], "b": o["y"]} for o in mixed if isinstance(o, Mapping)]
    del first, second, mixed
    gc.collect()
    answers = run(graph, given)
    assert (device.copied_bytes("to_device"), device.copied_bytes("to_host")) == before
    for outcome, request in zip(answers.outcomes, [requests[i] for i in (2, 3, 0, 4)], strict=True):
        assert isinstance(outcome, Mapping)
        np.testing.assert_allclose(outcome["y"].numpy(), 3 * (2 * request["x"] + request["b"]), rtol=1e-5)


def test_rows_on_the_host_join_rows_on_the_device(device: Accelerator) -> None:
    graph = affine(device)
    requests = some(5)
    tensors = [{name: Tensor.from_numpy(a) for name, a in request.items()} for request in requests]
    for i in (1, 3):
        (tensors[i]["x"],) = Tensor.move([tensors[i]["x"]], device)
    before = device.copies("to_device")
    answers = run(graph, tensors)
    assert device.copies("to_device") == before + 3 + 1  # rows of x, and b as a whole
    assert device.copies("on_device") == 2
    check(answers, requests)


def test_padded_batches_are_cut_on_the_host(device: Accelerator) -> None:
    graph = affine(device, padding={"m": Padding((16,))})
    rng = np.random.default_rng(0)
    requests = [
        {name: rng.standard_normal((2, width), dtype=np.float32) for name in ("x", "b")}
        for width in (3, 16, 9)
    ]
    moved = [Tensor.move([Tensor.from_numpy(a) for a in r.values()], device) for r in requests]
    answers = run(graph, [dict(zip(("x", "b"), tensors, strict=True)) for tensors in moved])
    for outcome, request in zip(answers.outcomes, requests, strict=True):
        assert isinstance(outcome, Mapping)
        np.testing.assert_allclose(outcome["y"].numpy(), 2 * request["x"] + request["b"], rtol=1e-6)


def test_what_is_found_out_about_rows_is_found_out_on_a_device_too(device: Accelerator) -> None:
    for text, merges in (
        (AFFINE, True),
        (
            AFFINE.replace("d = Mul(x, two)", "z = ReduceMean<keepdims = 1, axes = [0]>(x) d = Mul(z, two)"),
            False,
        ),
    ):
        graph = MergingGraph(opened(device, text.replace("17", "13")), Batching(max_batch_size=64))
        for seed in range(6):
            fits = []
            requests = [{n: fixed(a) for n, a in r.items()} for r in some(4, seed=seed)]
            if not graph.merges:
                break
            fits = [fit for request in requests if (fit := graph.fit(request)) is not None]
            graph.run(requests, fits)
        assert graph.merges is merges


def test_clients_of_a_chain_move_their_inputs_and_answers_alone(device: Accelerator) -> None:
    batching = Batching(declared=True, max_batch_size=32, adaptive=False)
    metrics = ModelMetrics("chained", "1")
    first, second = (
        BatchScheduler(opened(device, text), batching, 1, metrics.graph(name))
        for name, text in (("first", AFFINE), ("second", SUM))
    )
    requests = [some(1, width=64, seed=seed)[0] for seed in range(200)]
    answers: dict[int, np.ndarray] = {}

    def client(number: int) -> None:
        for i in range(number, len(requests), 16):
            y = first.compute({name: fixed(a) for name, a in requests[i].items()}, Caller())
            answers[i] = second.compute(y, Caller())["s"].numpy()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first.close()
    second.close()
    metrics.remove()
    for i, request in enumerate(requests):
        expected = (2 * request["x"] + request["b"]).sum(1, keepdims=True)
        np.testing.assert_allclose(answers[i], expected, rtol=1e-4, atol=1e-4)
    assert device.copied_bytes("to_device") == sum(a.nbytes for r in requests for a in r.values())
    assert device.copied_bytes("to_host") == sum(answer.nbytes for answer in answers.values())
    answers.clear()
    gc.collect()
    assert device.held_bytes == 0
