"""ONNX graphs over device memory. The device is made of host memory: binding, addresses and lifetimes are the same."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from kserve_wasm.backends import Graph, GraphSource
from kserve_wasm.backends.onnx.bound import BoundRuns
from kserve_wasm.errors import BackendError, DeadlineExceeded, InvalidRequest
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec
from kserve_wasm.tensors.devices import ALIGNMENT, Accelerator
from tests.backends import models
from tests.backends.contract import some_tensor
from tests.backends.test_onnx_contract import TestOnnx as OnnxContract
from tests.backends.test_onnx_contract import source
from tests.support.devices import DEVICES, HostRuntime, allocations, make_device, open_over

FP32 = DTYPES["FP32"]


class TestOverDeviceMemory(OnnxContract):
    """The whole contract."""

    @pytest.fixture(autouse=True, params=DEVICES)
    def _device(self, request: pytest.FixtureRequest) -> None:
        self.memory = make_device(request.param)
        self.device = "gpu" if request.param == "cuda" else "cpu"

    def open(self, source: GraphSource) -> Graph:
        return open_over(self.memory, source)


class TestCaptured(OnnxContract):
    """The whole contract, with fixed addresses as CUDA graphs need them."""

    def open(self, source: GraphSource) -> Graph:
        options = {**source.options, "cuda_graphs": True}
        return open_over(
            Accelerator(HostRuntime()), GraphSource(source.name, "onnx", data=source.data, options=options)
        )


@pytest.fixture(params=[False, True], ids=["bound", "captured"])
def captured(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Accelerator:
    return make_device(request.param)


def opened(device: Accelerator, text: str, *, cuda_graphs: bool = False) -> Graph:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    options = {"cuda_graphs": cuda_graphs}
    return open_over(device, GraphSource("g", "onnx", data=proto.SerializeToString(), options=options))


DOUBLE = "(float[n, m] x) => (float[n, m] y) { y = Add(x, x) }"


def moved(device: Accelerator) -> tuple[int, int]:
    """Bytes to the device, and to the host."""
    return device.copied_bytes("to_device"), device.copied_bytes("to_host")


def test_a_chain_moves_its_input_and_its_answer(device: Accelerator, captured: bool) -> None:
    double = opened(device, DOUBLE, cuda_graphs=captured)
    sums = opened(
        device,
        "(float[n, m] x) => (float[n] s) { s = ReduceSum<keepdims = 0>(x, axes) }".replace(
            "{ s", "<int64[1] axes = {1}> { s"
        ),
        cuda_graphs=captured,
    )
    x = np.arange(600, dtype=np.float32).reshape(6, 100)
    first = double.run({"x": Tensor.from_numpy(x)})["y"]
    second = double.run({"x": first})["y"]
    answer = sums.run({"x": second})["s"]
    assert {t.device for t in (first, second, answer)} == {device.name}
    assert moved(device) == (x.nbytes, 0)
    np.testing.assert_allclose(answer.numpy(), 4 * x.sum(1), rtol=1e-6)
    assert moved(device) == (x.nbytes, 6 * 4)
    assert device.copies("to_device") == 1


def test_an_input_that_cannot_change_goes_to_the_device_once(device: Accelerator) -> None:
    graph = opened(device, DOUBLE)
    x = Tensor.from_buffer(FP32, [2, 2], np.float32([[1, 2], [3, 4]]).tobytes())
    for _ in range(3):
        graph.run({"x": x})
    assert moved(device) == (16, 0)


def test_outputs_of_known_shape_have_their_memory_beforehand(device: Accelerator) -> None:
    graph = opened(device, DOUBLE)
    y = graph.run({"x": some_tensor(FP32, (3, 4))})["y"]
    where = opened(device, "(float[n] x) => (int64[r, k] at) { at = NonZero(x) }")
    at = where.run({"x": Tensor.from_numpy(np.ones(3, np.float32))})["at"]
    assert at.nbytes == 24
    assert y.nbytes == 48
    assert device.held_bytes == 256 + 24  # y, in memory of the smallest size, and what ONNX Runtime took


def test_answers_of_many_runs_are_apart(device: Accelerator, captured: bool) -> None:
    graph = opened(device, DOUBLE, cuda_graphs=captured)
    answers = [
        (i, graph.run({"x": Tensor.from_numpy(np.full((2, 3), i, np.float32))})["y"]) for i in range(20)
    ]
    for i, answer in answers:
        np.testing.assert_array_equal(answer.numpy(), np.full((2, 3), 2 * i, np.float32))


def test_an_input_that_is_an_output_is_copied(device: Accelerator, captured: bool) -> None:
    graph = opened(device, "(float[n] x) => (float[n] x, float[n] y) { y = Neg(x) }", cuda_graphs=captured)
    (x,) = Tensor.move([Tensor.from_numpy(np.float32([1, 2, 3]))], device)
    out = graph.run({"x": x})
    assert not out["x"].may_share_memory(x)
    assert out["x"].numpy().tolist() == [1, 2, 3]
    assert out["y"].numpy().tolist() == [-1, -2, -3]


def test_shapes_that_depend_on_values_come_out_as_they_are(device: Accelerator, captured: bool) -> None:
    graph = opened(device, "(float[n] x) => (int64[r, k] at) { at = NonZero(x) }", cuda_graphs=captured)
    given = [[0, 5, 0, 7], [1, 0, 0, 1], [1, 1], [0, 0, 0], [0, 1, 1, 0]]
    found = [graph.run({"x": Tensor.from_numpy(np.float32(values))})["at"] for values in given]
    for values, at in zip(given, found, strict=True):  # when all are there: each has memory of its own
        np.testing.assert_array_equal(at.numpy(), np.nonzero(np.array(values)))


def test_a_graph_may_say_what_is_not_so_of_its_outputs(device: Accelerator) -> None:
    node = onnx.helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    graph = open_over(
        device, source(models.model([node], {"x": ("FP32", ["n", 2])}, {"y": ("FP32", ["n", 2])}))
    )
    for n in (1, 3):
        x = np.full((n, 2), n, np.float32)
        y = graph.run({"x": Tensor.from_numpy(x)})["y"]
        np.testing.assert_array_equal(y.numpy(), np.concatenate([x, x]))


def test_rows_of_a_batch_reach_kernels_aligned(device: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[int] = []
    original = ort.IOBinding.bind_input

    def bind_input(self: object, *arguments: object) -> None:
        bound.append(int(arguments[-1]))  # type: ignore[call-overload]
        original(self, *arguments)

    monkeypatch.setattr(ort.IOBinding, "bind_input", bind_input)
    graph = opened(device, DOUBLE)
    x = np.arange(33, dtype=np.float32).reshape(11, 3)
    (batch,) = Tensor.move([Tensor.from_numpy(x)], device)
    for i in range(11):
        np.testing.assert_array_equal(graph.run({"x": batch.rows(i, i + 1)})["y"].numpy(), 2 * x[i : i + 1])
    assert [pointer % ALIGNMENT for pointer in bound] == [0] * 11
    assert device.copies("to_device") == 1


def test_nothing_is_left_after_10000_runs(device: Accelerator, captured: bool) -> None:
    graph = opened(device, DOUBLE, cuda_graphs=captured)
    for i in range(10_000):
        n = 1 + i % 7
        y = graph.run({"x": Tensor.from_numpy(np.full((n, 5), i, np.float32))})["y"]
        if not i % 100:
            assert y.numpy()[0, 0] == 2 * i
    del y
    gc.collect()
    fixed = 2 * 7 * 256 if captured else 0  # an input and an output for each of the shapes
    assert device.held_bytes == fixed
    assert allocations(device) < 40


def test_a_full_device_fails_the_run_and_leaves_the_graph_fit() -> None:
    device = Accelerator(HostRuntime(capacity=1 << 16))
    graph = opened(device, DOUBLE)
    with pytest.raises(BackendError, match=r"graph 'g' failed.*bytes left"):
        graph.run({"x": some_tensor(FP32, (1000, 1000))})
    assert graph.run({"x": Tensor.from_numpy(np.ones((1, 1), np.float32))})["y"].numpy() == 2
    gc.collect()
    assert device.held_bytes == 0


def test_memory_of_a_run_that_was_stopped_is_free_when_the_device_is_done() -> None:
    runtime = HostRuntime()
    graph = open_over(Accelerator(runtime), source(models.count()))
    with pytest.raises(DeadlineExceeded):
        graph.run({"n": Tensor.from_numpy(np.array(1 << 60))}, time.monotonic() + 0.1)
    assert runtime.settled == 1
    assert graph.run({"n": Tensor.from_numpy(np.array(3))})["y"].numpy() == [3]
    assert runtime.settled == 1


def test_dimensions_of_one_name_that_differ_are_told(device: Accelerator) -> None:
    graph = opened(device, "(float[n] a, float[n] b) => (float[n] y) { y = Add(a, b) }")
    with pytest.raises(InvalidRequest, match="'n' is 2 in 'a' and 3 in 'b'"):
        graph.run({"a": some_tensor(FP32, (2,)), "b": some_tensor(FP32, (3,))})


def test_graphs_with_text_take_and_give_host_memory(device: Accelerator) -> None:
    graph = open_over(device, source(models.strings()))
    assert graph.accelerator is None
    text = Tensor.from_numpy(np.array(["a", "b"]))
    answer = graph.run({"a": text, "b": text})
    assert answer["joined"].numpy().tolist() == [b"aa", b"bb"]
    assert answer["equal"].device == "cpu"


def test_memory_of_onnx_runtime_is_freed_before_the_session_that_frees_it(device: Accelerator) -> None:
    order: list[str] = []

    class Lives:
        def __init__(self, name: str) -> None:
            self.name = name

        def __del__(self) -> None:
            order.append(self.name)

        def data_ptr(self) -> int:
            return 4096

        def shape(self) -> list[int]:
            return [2]

    output = BoundRuns(device, (), ())._output(
        TensorSpec("y", FP32, (2,)), Lives("value"), None, (), Lives("session")
    )
    assert order == []
    del output
    gc.collect()
    assert order == ["value", "session"]


def test_what_was_captured_of_a_run_that_failed_is_not_replayed(
    device: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime ends a capture however the run ended: a replay would leave the former answer in place."""
    graph = opened(device, DOUBLE, cuda_graphs=True)
    ran: list[tuple[str, str]] = []
    fails = [False]
    original = ort.InferenceSession.run_with_iobinding

    def run_with_iobinding(self: Any, binding: Any, options: Any) -> None:
        ran.append((threading.current_thread().name, options.get_run_config_entry("gpu_graph_id")))
        if fails[0]:
            raise RuntimeError("stopped")
        original(self, binding, options)

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", run_with_iobinding)

    def ask(value: float) -> None:
        answer = graph.run(
            {"x": Tensor.from_numpy(np.full((1, 1), value, np.float32))}, time.monotonic() + 60
        )
        assert answer["y"].numpy() == 2 * value

    fails[0] = True
    with pytest.raises(BackendError, match="stopped"):
        ask(1)
    fails[0] = False
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, range(6)))
    assert [number for _, number in ran] == ["1"] + ["2"] * 6
    assert len({thread for thread, _ in ran}) == 1
    gc.collect()
    assert device.held_bytes == 2 * 256


def test_a_captured_run_that_comes_too_late_is_not_begun(device: Accelerator) -> None:
    graph = opened(device, DOUBLE, cuda_graphs=True)
    options = ort.RunOptions()
    options.terminate = True
    with pytest.raises(RuntimeError, match="until it was stopped"):
        graph._run(graph._session, {"x": some_tensor(FP32, (1, 1))}, options)  # type: ignore[attr-defined]
    assert device.held_bytes == 0


def test_only_so_many_shapes_are_captured(device: Accelerator) -> None:
    graph = opened(device, DOUBLE, cuda_graphs=True)
    for n in (*range(1, 40), 3, 39):
        x = np.full((n, 2), n, np.float32)
        np.testing.assert_array_equal(graph.run({"x": Tensor.from_numpy(x)})["y"].numpy(), 2 * x)
    gc.collect()
    assert device.held_bytes == 16 * 2 * 256


def test_captured_runs_of_many_threads_get_their_own_answers(device: Accelerator) -> None:
    graph = opened(device, DOUBLE, cuda_graphs=True)

    def work(seed: int) -> None:
        for i in range(50):
            x = np.full((1 + i % 3, 2), seed * 1000 + i, np.float32)
            y = graph.run({"x": Tensor.from_numpy(x)}, time.monotonic() + 60)["y"]
            np.testing.assert_array_equal(y.numpy(), 2 * x)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
