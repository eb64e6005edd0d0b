"""Graphs of these tests: one in NumPy, which they hold and let fail, and some in ONNX."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kserve_wasm.backends.base import Device
from kserve_wasm.errors import BackendError, DeadlineExceeded, ModelNotReady
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec
from tests.backends import models

Values = Mapping[str, Tensor]


def doubled(inputs: Values) -> dict[str, Tensor]:
    """``y = 2 x + 1``."""
    return {"y": Tensor.from_numpy(2 * inputs["x"].numpy() + 1)}


class NumpyGraph:
    """FP32 ``x`` [batch, length] → ``y`` of the same shape, unless told otherwise; a Graph of the backends' seam.

    Attributes:
        runs: the number of entries in each run, in the order in which they began.
        active: the inputs of each run that has not ended.
        most: runs there were at a time, at most.
        gate: a run waits until it is set; set at first.
        began: released once for every run that began.

    Args:
        function: what it computes.
        inputs: its inputs.
        outputs: its outputs.
    """

    device: Device = "cpu"
    name = "numpy"

    def __init__(
        self,
        function: Callable[[Values], Mapping[str, Tensor]] = doubled,
        inputs: Sequence[TensorSpec] = (TensorSpec("x", DTYPES["FP32"], ("batch", "length")),),
        outputs: Sequence[TensorSpec] = (TensorSpec("y", DTYPES["FP32"], ("batch", "length")),),
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.function = function
        self.runs: list[int] = []
        self.active: list[Values] = []
        self.most = 0
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Semaphore(0)
        self._closed = False
        self._lock = threading.Lock()

    def run(self, inputs: Values, deadline: float = math.inf) -> Mapping[str, Tensor]:
        """As :meth:`kserve_wasm.backends.base.Graph.run`."""
        with self._lock:
            if self._closed:
                raise ModelNotReady("graph 'numpy' is closed")
            self.active.append(inputs)
            self.most = max(self.most, len(self.active))
            self.runs.append(inputs[self.inputs[0].name].shape[0])
        self.began.release()
        try:
            if time.monotonic() >= deadline:
                raise DeadlineExceeded("graph 'numpy': the deadline passed before the run")
            if not self.gate.wait(min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)):
                raise DeadlineExceeded("graph 'numpy': the deadline passed during the run")
            return self.function(inputs)
        finally:
            with self._lock:
                self.active = [other for other in self.active if other is not inputs]

    def close(self) -> None:
        """Refuses further runs."""
        with self._lock:
            assert not self.active, "closed during a run"
            self._closed = True


def fp32(*rows: Sequence[float]) -> dict[str, Tensor]:
    """``x`` of these rows."""
    return {"x": Tensor.from_numpy(np.array(rows, np.float32))}


def failing_for(
    marker: float, function: Callable[[Values], Mapping[str, Tensor]] = doubled
) -> Callable[[Values], Mapping[str, Tensor]]:
    """``function``, which fails where an ``x`` begins with ``marker``."""

    def run(inputs: Values) -> Mapping[str, Tensor]:
        if (inputs["x"].numpy()[:, 0] == marker).any():
            raise BackendError(f"graph 'numpy' failed: {marker} is not for it")
        return function(inputs)

    return run


# --- In ONNX

TABLE = np.random.default_rng(0).standard_normal((10, 2), dtype=np.float32)
"""What :func:`lookup` looks up."""


def twice_plus_one() -> onnx.ModelProto:
    """FP32 ``x`` [batch, length] → ``y`` = 2 x + 1."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["twice"]),
        helper.make_node("Add", ["twice", "one"], ["y"]),
    ]
    spec: tuple[str, list[int | str | None]] = ("FP32", ["batch", "length"])
    constants = {"one": np.array(1, np.float32), "two": np.array(2, np.float32)}
    return models.model(nodes, {"x": spec}, {"y": spec}, constants)


def minus_mean() -> onnx.ModelProto:
    """FP32 ``x`` [batch, 3] → ``y``: without the mean over the first dimension, so entries are not independent."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    spec: tuple[str, list[int | str | None]] = ("FP32", ["batch", 3])
    return models.model(nodes, {"x": spec}, {"y": spec})


def lookup() -> onnx.ModelProto:
    """INT64 ``i`` [batch] → ``y`` [batch, 2] = TABLE[i]: fails inside the run when an index is out of bounds."""
    node = helper.make_node("Gather", ["table", "i"], ["y"])
    return models.model([node], {"i": ("INT64", ["batch"])}, {"y": ("FP32", ["batch", 2])}, {"table": TABLE})


def slow() -> onnx.ModelProto:
    """INT64 ``n`` [batch] → ``y`` = n, after a Loop of as many steps as the largest says."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "one"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.INT64, [1]),
        ],
        [numpy_helper.from_array(np.ones(1, np.int64), "one")],
    )
    nodes = [
        helper.make_node("ReduceMax", ["n"], ["steps"], keepdims=0),
        helper.make_node("Loop", ["steps", "true", "zero"], ["counted"], body=body),
        helper.make_node("Sub", ["counted", "counted"], ["nothing"]),
        helper.make_node("Add", ["n", "nothing"], ["y"]),
    ]
    constants = {"true": np.array(True), "zero": np.zeros(1, np.int64)}
    return models.model(nodes, {"n": ("INT64", ["batch"])}, {"y": ("INT64", ["batch"])}, constants)
