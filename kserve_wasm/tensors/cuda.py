"""CUDA's memory functions, through ctypes: the one file that calls them.

Source: CUDA Runtime API, "Memory Management", "Stream Management" and "Stream synchronization behavior".
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from kserve_wasm.errors import BackendError, DeviceUnavailable
from kserve_wasm.tensors.devices import Direction

_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_KINDS: dict[Direction, int] = {"to_device": 1, "to_host": 2, "on_device": 3}  # cudaMemcpyKind
_PER_THREAD = ctypes.c_void_p(2)
"""``cudaStreamPerThread``: every thread's own. It waits for the legacy stream, which is PyTorch's default, and not for
the non-blocking ones, which are ONNX Runtime's."""

_SIGNATURES = {
    "cudaGetDeviceCount": (ctypes.c_void_p,),
    "cudaSetDevice": (ctypes.c_int,),
    "cudaMalloc": (ctypes.c_void_p, ctypes.c_size_t),
    "cudaFree": (ctypes.c_void_p,),
    "cudaMallocHost": (ctypes.c_void_p, ctypes.c_size_t),
    "cudaFreeHost": (ctypes.c_void_p,),
    "cudaMemcpyAsync": (
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
    ),
    "cudaStreamSynchronize": (ctypes.c_void_p,),
    "cudaDeviceSynchronize": (),
}


class CudaRuntime:
    """One CUDA device; implements :class:`~kserve_wasm.tensors.devices.DeviceRuntime`.

    Raises:
        DeviceUnavailable: the runtime library or the device is not there.
    """

    kind = "cuda"
    dlpack = 2  # kDLCUDA

    def __init__(self, index: int) -> None:
        self.index = index
        self._library = _load()
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        for name, types in _SIGNATURES.items():
            getattr(self._library, name).argtypes = types
        count = ctypes.c_int()
        try:
            self._call("cudaGetDeviceCount", ctypes.byref(count))
        except BackendError as error:
            raise DeviceUnavailable(f"no CUDA device: {error}; check the driver") from error
        if not 0 <= index < count.value:
            raise DeviceUnavailable(
                f"there is no CUDA device {index}: this host has {count.value}, from 0 on"
            )

    def allocate(self, nbytes: int) -> int:
        """New device memory; ``cudaMalloc`` aligns it to 256 bytes."""
        return self._new("cudaMalloc", nbytes)

    def free(self, pointer: int) -> None:
        """Frees device memory, after all that runs."""
        self._on_device("cudaFree", pointer)

    def allocate_pinned(self, nbytes: int) -> int:
        """New page-locked host memory."""
        return self._new("cudaMallocHost", nbytes)

    def free_pinned(self, pointer: int) -> None:
        """Frees page-locked host memory."""
        self._on_device("cudaFreeHost", pointer)

    def copy(self, target: int, source: int, nbytes: int, direction: Direction) -> None:
        """Begins to copy, on the calling thread's stream; from pageable memory it returns when that was read."""
        self._on_device("cudaMemcpyAsync", target, source, nbytes, _KINDS[direction], _PER_THREAD)

    def synchronize(self) -> None:
        """Waits for the calling thread's stream."""
        self._on_device("cudaStreamSynchronize", _PER_THREAD)

    def synchronize_all(self) -> None:
        """Waits for all streams."""
        self._on_device("cudaDeviceSynchronize")

    def _new(self, function: str, nbytes: int) -> int:
        pointer = ctypes.c_void_p()
        self._on_device(function, ctypes.byref(pointer), nbytes)
        return pointer.value or 0

    def _on_device(self, function: str, *arguments: Any) -> None:
        self._call("cudaSetDevice", self.index)  # each thread has its own, the first one unless it is set
        self._call(function, *arguments)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            self._library.cudaGetLastError()  # else the next call by anybody would find this error
            reason = self._library.cudaGetErrorString(status).decode(errors="replace")
            raise BackendError(f"{function} failed on device cuda:{self.index}: {reason} ({status})")


def _load() -> ctypes.CDLL:
    """CUDA's runtime: the one that this process has loaded already, with a framework, or else the newest."""
    for mode in (os.RTLD_NOLOAD, 0):
        for name in _LIBRARIES:
            try:
                return ctypes.CDLL(name, os.RTLD_LAZY | mode)
            except OSError:  # noqa: PERF203
                continue
    raise DeviceUnavailable(
        f"CUDA's runtime library is not here ({', '.join(_LIBRARIES)}); install the 'cuda' extra"
    )
