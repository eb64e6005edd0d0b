"""A graph in NumPy that tests hold, slow down and let fail; it implements :class:`kserve_wasm.backends.base.Graph`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kserve_wasm.backends.base import Device
from kserve_wasm.errors import BackendError, DeadlineExceeded, ModelNotReady
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec

Values = Mapping[str, Tensor]


def doubled(inputs: Values) -> dict[str, Tensor]:
    """``y = 2 x + 1``."""
    return {"y": Tensor.from_numpy(2 * inputs["x"].numpy() + 1)}


class NumpyGraph:
    """FP32 ``x`` [batch, "length"] → ``y`` of the same shape, unless told otherwise.

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
