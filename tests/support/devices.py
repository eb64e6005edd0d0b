"""A device made of host memory, for the code above the few functions of a device's own library."""

from __future__ import annotations

import ctypes
import os
import threading
from bisect import bisect_right
from pathlib import Path
from unittest.mock import patch

import onnxruntime as ort

from kserve_wasm.backends import GraphSource
from kserve_wasm.backends.onnx import backend
from kserve_wasm.backends.onnx.graph import OnnxGraph
from kserve_wasm.backends.onnx.options import CPU, CUDA
from kserve_wasm.errors import BackendError
from kserve_wasm.tensors.cuda import CudaRuntime
from kserve_wasm.tensors.devices import ALIGNMENT, Accelerator, Direction

POISON = 0xDB


class HostRuntime:
    """Keeps device memory on the host; implements :class:`~kserve_wasm.tensors.devices.DeviceRuntime`.

    Stricter than a device: copies are made at the latest moment, when their thread synchronises, so that reading
    before that gives old bytes; freed memory is poisoned; copies whose ends are on the wrong side are refused.

    Args:
        capacity: bytes of the device.

    Attributes:
        allocated: bytes that are allocated and not freed.
        allocations: how often memory was allocated.
        settled: how often somebody waited for all that the device does.
    """

    kind = "cpu"  # what ONNX Runtime calls the memory
    index = 0
    dlpack = 1

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.allocated = 0
        self.allocations = self.settled = 0
        self._memory: dict[int, ctypes.Array[ctypes.c_uint8]] = {}
        self._sizes: dict[int, int] = {}
        self._pinned: dict[int, int] = {}
        self._begun = threading.local()
        self._lock = threading.Lock()

    def allocate(self, nbytes: int) -> int:
        with self._lock:
            if self.allocated + nbytes > self.capacity:
                raise BackendError(f"the device has no {nbytes} bytes left")
            self.allocated += nbytes
            return self._new(nbytes, self._sizes)

    def free(self, pointer: int) -> None:
        with self._lock:
            self.allocated -= self._end(pointer, self._sizes)

    def allocate_pinned(self, nbytes: int) -> int:
        with self._lock:
            return self._new(nbytes, self._pinned)

    def free_pinned(self, pointer: int) -> None:
        with self._lock:
            self._end(pointer, self._pinned)

    def _new(self, nbytes: int, sizes: dict[int, int]) -> int:
        assert nbytes > 0
        memory = (ctypes.c_uint8 * (nbytes + ALIGNMENT))()
        pointer = -(-ctypes.addressof(memory) // ALIGNMENT) * ALIGNMENT
        ctypes.memset(pointer, POISON, nbytes)
        self._memory[pointer] = memory
        sizes[pointer] = nbytes
        self.allocations += 1
        return pointer

    def _end(self, pointer: int, sizes: dict[int, int]) -> int:
        nbytes = sizes.pop(pointer)
        ctypes.memset(pointer, POISON, nbytes)
        del self._memory[pointer]
        return nbytes

    def copy(self, target: int, source: int, nbytes: int, direction: Direction) -> None:
        assert nbytes > 0
        if direction != "to_host":
            assert self.holds(target, nbytes), "the target is no memory of the device"
        if direction == "to_device":
            assert not self.holds(source, nbytes), "the source is on the device already"
        if direction == "to_host":
            assert not self.holds(target, nbytes), "the target is on the device"
        self._begun.__dict__.setdefault("copies", []).append((target, source, nbytes))

    def synchronize(self) -> None:
        copies = self._begun.__dict__.pop("copies", [])
        for copy in copies:
            ctypes.memmove(*copy)

    def synchronize_all(self) -> None:
        self.settled += 1

    def holds(self, pointer: int, nbytes: int) -> bool:
        """Whether these bytes were allocated as the device's, and not freed."""
        with self._lock:
            starts = sorted(self._sizes)
            i = bisect_right(starts, pointer) - 1
            return i >= 0 and pointer + nbytes <= starts[i] + self._sizes[starts[i]]


class CountingCuda(CudaRuntime):
    """CUDA's device memory.

    Attributes:
        allocations: how often memory was allocated.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.allocations = 0

    def _new(self, function: str, nbytes: int) -> int:
        self.allocations += 1
        return super()._new(function, nbytes)


DEVICES = ("host", "cuda") if os.environ.get("KSERVE_WASM_TEST_DEVICE") == "gpu" else ("host",)
"""What tests over device memory run on: the one above, and where a GPU is asked for, that."""


def has_cuda() -> bool:
    """Whether ONNX Runtime can use an NVIDIA GPU here."""
    return CUDA in ort.get_available_providers() and Path("/dev/nvidiactl").exists()


def make_device(kind: str) -> Accelerator:
    """One of :data:`DEVICES`, whose counters begin at 0."""
    if kind == "host":
        return Accelerator(HostRuntime())
    assert has_cuda(), "KSERVE_WASM_TEST_DEVICE=gpu, and there is no NVIDIA GPU, or no ONNX Runtime with CUDA"
    ort.preload_dlls()
    return Accelerator(CountingCuda(0))


def allocations(device: Accelerator) -> int:
    """How often memory was allocated on a device of :func:`make_device`, page-locked memory included."""
    assert isinstance(device.runtime, HostRuntime | CountingCuda)
    return device.runtime.allocations


def open_over(device: Accelerator, source: GraphSource) -> OnnxGraph:
    """Opens an ONNX graph on ``device``. For one made of host memory that is as on a GPU, but for the kernels."""
    with patch.object(backend, "cuda", lambda _: device):
        if device.runtime.kind == "cuda":
            return backend.OnnxBackend().open(source, "gpu")
        with patch.object(backend, "_CUDA_MEMORY", frozenset({CPU})):
            return backend.OnnxBackend().open(source, "cpu")
