"""A guest that chains graphs on a device: handles cross the sandbox, bytes neither it nor the bus."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from prometheus_client import REGISTRY

from kserve_wasm.artifact.config import Batching, ModelConfig
from kserve_wasm.backends import GraphSource
from kserve_wasm.batching import BatchScheduler, Caller, GraphScheduler
from kserve_wasm.guest import GuestModel
from kserve_wasm.guest.pending import PendingResponse
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.request import InferenceRequest
from kserve_wasm.tensors import DTYPES, Tensor
from kserve_wasm.tensors.devices import Accelerator
from tests.guest.support import config_of
from tests.support.devices import DEVICES, allocations, make_device, open_over

CALLS = """
  (import "kserve_wasm" "input_by_index" (func $input (param i32 i32) (result i32)))
  (import "kserve_wasm" "output_set" (func $output (param i32 i32 i32) (result i32)))
  (import "kserve_wasm" "tensor_read" (func $read (param i32 i64 i32 i32) (result i32)))
  (import "kserve_wasm" "dispatch" (func $dispatch (param i32 i32 i32 i32 i32) (result i32)))
  (import "kserve_wasm" "run_graph" (func $run_graph (param i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "load_by_name" (func $load (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "double")
  (data (i32.const 8) "sum")
  (data (i32.const 16) "s")
"""
CHAIN = """(module {calls}
  (func (export "infer") (result i32)
    (drop (call $load (i32.const 0) (i32.const 6) (i32.const 32)))
    (drop (call $load (i32.const 8) (i32.const 3) (i32.const 36)))
    (drop (call $input (i32.const 0) (i32.const 40)))
    (drop (call $dispatch (i32.load (i32.const 32)) (i32.const 40) (i32.const 1) (i32.const 44) (i32.const 1)))
    (drop (call $dispatch (i32.load (i32.const 36)) (i32.const 44) (i32.const 1) (i32.const 48) (i32.const 1)))
    {reads}
    (call $output (i32.const 16) (i32.const 1) (i32.load (i32.const 48)))))"""
PASS = """(module {calls}
  (func (export "infer") (result i32) (call $run_graph (i32.const 0) (i32.const 6))))"""
READS = "(drop (call $read (i32.load (i32.const 44)) (i64.const 0) (i32.const 64) (i32.const 12)))"
GRAPHS = {
    "double": "(float[n, m] x) => (float[n, m] y) { y = Add(x, x) }",
    "sum": "(float[n, m] x) => (float[n, k] s) <int64[1] axes = {1}> { s = ReduceSum<keepdims = 1>(x, axes) }",
}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Accelerator:
    return make_device(request.param)


def open_model(directory: Path, device: Accelerator, wat: str) -> GuestModel:
    graphs = []
    for name, text in GRAPHS.items():
        proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
        graphs.append(GraphSource(name, "onnx", data=proto.SerializeToString()))

    def on_device(source: GraphSource, _: ModelConfig, metrics: ModelMetrics) -> GraphScheduler:
        return BatchScheduler(
            open_over(device, source), Batching(declared=True), 2, metrics.graph(source.name)
        )

    config = replace(config_of(directory, wat, name="chain"), graphs=tuple(graphs))
    model = GuestModel(config, open_scheduler=on_device)
    model.load()
    return model


def fixed(array: np.ndarray) -> Tensor:
    return Tensor.from_buffer(DTYPES["FP32"], array.shape, array.tobytes())


def copied(direction: str) -> float:
    labels = {"model": "chain", "version": "1", "direction": direction}
    value = REGISTRY.get_sample_value("kserve_wasm_guest_copy_bytes_total", labels)
    assert value is not None
    return value


def test_a_chain_moves_the_input_and_the_answer_and_nothing_through_the_guest(
    tmp_path: Path, device: Accelerator
) -> None:
    model = open_model(tmp_path, device, CHAIN.format(calls=CALLS, reads=""))
    before = copied("to_guest"), copied("from_guest")
    x = np.arange(3000, dtype=np.float32).reshape(3, 1000)
    answer = model.infer(InferenceRequest({"x": fixed(x)}))
    assert device.copied_bytes("to_device") == x.nbytes
    assert device.copied_bytes("to_host") == 3 * 4
    np.testing.assert_allclose(answer.outputs["s"].numpy(), 2 * x.sum(1, keepdims=True), rtol=1e-5)
    assert device.copied_bytes("to_host") == 3 * 4
    assert (copied("to_guest"), copied("from_guest")) == before
    model.close()


def test_what_a_guest_reads_is_counted_on_the_bus_and_at_the_sandbox(
    tmp_path: Path, device: Accelerator
) -> None:
    model = open_model(tmp_path, device, CHAIN.format(calls=CALLS, reads=READS))
    before = copied("to_guest")
    x = np.ones((2, 50), np.float32)
    model.infer(InferenceRequest({"x": fixed(x)}))
    assert device.copied_bytes("to_host") == x.nbytes + 2 * 4
    assert copied("to_guest") == before + 12
    model.close()


def test_an_answer_that_was_put_off_comes_to_the_host_where_it_may_take_time(
    tmp_path: Path, device: Accelerator
) -> None:
    model = open_model(tmp_path, device, PASS.format(calls=CALLS))
    x = np.ones((2, 50), np.float32)
    for wanted, moved in ((None, x.nbytes), (["y"], x.nbytes), ([], 0)):
        before = device.copied_bytes("to_host")
        caller = Caller()
        caller.defers = True
        pending = model.begin(InferenceRequest({"x": fixed(x)}, wanted), caller)
        assert isinstance(pending, PendingResponse)
        outputs = pending.scheduler.compute(pending.inputs, Caller())
        assert device.copied_bytes("to_host") == before
        pending.fetch(outputs)
        assert device.copied_bytes("to_host") == before + moved
        answer = pending.complete(outputs).outputs
        assert list(answer) == (["y"] if moved else [])
        for y in answer.values():
            np.testing.assert_array_equal(y.numpy(), 2 * x)
        assert device.copied_bytes("to_host") == before + moved
    model.close()


def test_requests_leave_nothing_on_the_device(tmp_path: Path, device: Accelerator) -> None:
    model = open_model(tmp_path, device, CHAIN.format(calls=CALLS, reads=READS))
    for i in range(10_000):
        x = np.full((1 + i % 3, 30), i, np.float32)
        answer = model.infer(InferenceRequest({"x": fixed(x)}))
        if not i % 100:
            np.testing.assert_allclose(answer.outputs["s"].numpy(), 2 * x.sum(1, keepdims=True), rtol=1e-5)
    del answer
    gc.collect()
    assert device.held_bytes == 0
    assert allocations(device) < 40
    model.close()


def test_metrics_say_which_device_runs_a_graph(tmp_path: Path, device: Accelerator) -> None:
    def value(name: str) -> Any:
        labels = {"model": "chain", "version": "1", "graph": name, "device": device.name}
        return REGISTRY.get_sample_value("kserve_wasm_graph_device", labels)

    model = open_model(tmp_path, device, CHAIN.format(calls=CALLS, reads=""))
    assert (value("double"), value("sum")) == (1, 1)
    model.close()
