"""A graph on a GPU at batch 32: this runtime's scheduler and ONNX backend against loops written by hand.

Usage: ``python hack/bench/gpu.py [--device gpu] [--rounds 5] [--seconds 1] [--models wide,cnn,…] [--quick]``

Every side takes its rows from host memory and has the answers there, 32 rows a run. The loops are ONNX Runtime with
bound values on the device that are written anew for each run, and PyTorch, where it is installed, with the same layers
in FP32, from page-locked memory. This runtime is asked by one client for 32 rows at a time, by two, and by 64 that ask
for one row each, which it has to put together itself. Sides take turns; figures are medians of the rounds. Ratios are
of the three over a loop. ``--device cpu`` sees that it works where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from _models import BATCHABLE, MAKERS

from kserve_wasm.artifact.config import Batching
from kserve_wasm.backends import Graph, GraphSource, open_graph
from kserve_wasm.backends.base import device_of
from kserve_wasm.batching import BatchScheduler, Caller
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.tensors import DTYPES, Tensor

ROWS = 32
CLIENTS = 64
Side = Callable[[float], float]
"""Runs for so many seconds, and gives rows a second."""


def until(seconds: float, step: Callable[[], object]) -> float:
    """Rows a second of ``step``, over and over."""
    began = time.perf_counter()
    runs = 0
    while not runs or time.perf_counter() < began + seconds:
        step()
        runs += 1
    return runs * ROWS / (time.perf_counter() - began)


# --- By hand


def onnx_runtime(model: bytes, x: npt.NDArray[Any], device: str, expected: npt.NDArray[Any]) -> Side:
    """The same session's work: one value for the input and one for the output, both on the device."""
    kind = "cuda" if device == "gpu" else "cpu"
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"][kind == "cpu" :]
    session = ort.InferenceSession(model, providers=providers)
    given = ort.OrtValue.ortvalue_from_numpy(x, kind, 0)
    result = ort.OrtValue.ortvalue_from_shape_and_type(expected.shape, expected.dtype, kind, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", given)
    binding.bind_ortvalue_output("y", result)

    def step() -> npt.NDArray[Any]:
        given.update_inplace(x)
        session.run_with_iobinding(binding)
        return result.numpy()

    np.testing.assert_allclose(step(), expected, rtol=1e-2, atol=1e-2)
    return lambda seconds: until(seconds, step)


def pytorch(
    proto: onnx.ModelProto, x: npt.NDArray[Any], device: str, expected: npt.NDArray[Any]
) -> Side | None:
    """The same layers in eager PyTorch; None where it has one that is not known here."""
    import torch

    known = layers_of(torch)
    if not {node.op_type for node in proto.graph.node} <= known.keys():
        return None
    where = torch.device("cuda" if device == "gpu" else "cpu")
    weights = {
        w.name: torch.from_numpy(onnx.numpy_helper.to_array(w).copy()).to(where)
        for w in proto.graph.initializer
    }
    layers = [(n.op_type, list(n.input), n.output[0], attributes(n)) for n in proto.graph.node]
    host = torch.from_numpy(x)
    answer = torch.empty(expected.shape)
    if device == "gpu":
        host, answer = host.pin_memory(), answer.pin_memory()
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # TF32, as ONNX Runtime multiplies

    @torch.inference_mode()
    def step() -> npt.NDArray[Any]:
        values = {**weights, "x": host.to(where, non_blocking=True)}
        for kind, inputs, output, found in layers:
            values[output] = known[kind](*(values[name] for name in inputs), **found)
        answer.copy_(values["y"])
        return answer.numpy()

    np.testing.assert_allclose(step(), expected, rtol=1e-2, atol=1e-2)
    return lambda seconds: until(seconds, step)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type != "Conv":
        return {}
    stride, pads = found.get("strides", [1, 1]), found.get("pads", [0] * 4)
    return {"stride": tuple(stride), "padding": tuple(pads[:2]), "groups": found.get("group", 1)}


def layers_of(torch: Any) -> dict[str, Callable[..., Any]]:
    """The operators that PyTorch's loop knows."""
    return {
        "Add": torch.add,
        "Clip": torch.clamp,
        "Conv": torch.nn.functional.conv2d,
        "Flatten": lambda x: x.flatten(1),
        "Gemm": lambda a, b, c: torch.addmm(c, a, b),
        "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
        "Identity": lambda x: x,
        "MatMul": torch.matmul,
        "Relu": torch.relu,
    }


# --- This runtime


def clients(
    scheduler: BatchScheduler, x: npt.NDArray[Any], rows: int, count: int, expected: npt.NDArray[Any]
) -> Side:
    """``count`` threads that each send ``rows`` rows as soon as they have the last answer."""
    raw = [x[i * rows % ROWS :][:rows].tobytes() for i in range(count)]
    shape = (rows, *x.shape[1:])

    def ask(i: int) -> npt.NDArray[Any]:
        given = Tensor.from_buffer(DTYPES["FP32"], shape, raw[i])
        return scheduler.compute({"x": given}, Caller())["y"].numpy()

    for i in (0, count - 1):
        np.testing.assert_allclose(ask(i), expected[i * rows % ROWS :][:rows], rtol=1e-2, atol=1e-2)

    def side(seconds: float) -> float:
        done = [0] * count
        start = threading.Barrier(count + 1)

        def loop(i: int) -> None:
            start.wait()
            while not done[i] or time.perf_counter() < end:
                ask(i)
                done[i] += 1

        threads = [threading.Thread(target=loop, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        began = time.perf_counter()
        end = began + seconds
        start.wait()
        for thread in threads:
            thread.join()
        assert all(done), "a client failed"
        return sum(done) * rows / (time.perf_counter() - began)

    return side


@contextlib.contextmanager
def ours(model: bytes, device: str) -> Iterator[tuple[Graph, BatchScheduler]]:
    source = GraphSource("default", "onnx", data=model)
    graph = open_graph(source, "gpu" if device == "gpu" else "cpu")
    metrics = ModelMetrics("bench", "1")
    scheduler = BatchScheduler(
        graph, Batching(declared=True, max_batch_size=ROWS), 2, metrics.graph("default")
    )
    try:
        yield graph, scheduler
    finally:
        scheduler.close()
        metrics.remove()


def measure(name: str, device: str, rounds: int, seconds: float) -> tuple[str, dict[str, float]]:
    """What ran the graph, and rows a second of each side."""
    proto = MAKERS[name]()
    model = proto.SerializeToString()
    shape = [ROWS, *(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:])]
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    (expected,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    with ours(model, device) as (graph, scheduler):
        sides = {
            "ours: 1 x 32": clients(scheduler, x, ROWS, 1, expected),
            "ours: 2 x 32": clients(scheduler, x, ROWS, 2, expected),
            f"ours: {CLIENTS} x 1": clients(scheduler, x, 1, CLIENTS, expected),
            "ONNX Runtime": onnx_runtime(model, x, device, expected),
        }
        by_hand = pytorch(proto, x, device, expected) if find_spec("torch") else None
        if by_hand is not None:
            sides["PyTorch"] = by_hand
        for side in sides.values():
            side(seconds)
        results = [{label: side(seconds) for label, side in sides.items()} for _ in range(rounds)]
        runs_on = device_of(graph)
    return runs_on, {label: statistics.median(r[label] for r in results) for label in sides}


def device_name(device: str) -> str:
    """The device in its maker's words."""
    if device == "gpu":
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        return "GPU"
    return f"{len(os.sched_getaffinity(0))} CPUs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["wide", "cnn", "mobilenet"])
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    args = parser.parse_args()
    unknown = [name for name in args.models if name not in MAKERS]
    if unknown:
        parser.error(f"unknown models {unknown}; known: {', '.join(BATCHABLE)}, cnn")
    rounds, seconds = (1, 0.1) if args.quick else (args.rounds, args.seconds)
    print(f"{device_name(args.device)}, ONNX Runtime {ort.__version__}; rows a second, {ROWS} rows a run\n")
    columns = ("ours: 1 x 32", "ours: 2 x 32", f"ours: {CLIENTS} x 1", "ONNX Runtime", "PyTorch")
    print(f"| graph | runs on | {' | '.join(columns)} | over ONNX Runtime | over PyTorch |")
    print("|---" * (len(columns) + 4) + "|")
    for name in args.models:
        runs_on, rates = measure(name, args.device, rounds, seconds)
        cells = [f"{rates[c]:.0f}" if c in rates else "" for c in columns]
        for loop in columns[-2:]:
            ratios = [f"{rates[c] / rates[loop]:.2f}" for c in columns[:3]] if loop in rates else []
            cells.append(" / ".join(ratios))
        print(f"| {name} | {runs_on} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
