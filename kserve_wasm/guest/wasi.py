"""WASI preview 1 for guests whose toolchain links it: no files, no network, no arguments, no environment.

What such a guest prints becomes log lines. It may ask for the time and for random bytes; it may not sleep, because a
host call that blocks is not ended by the deadline.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from kserve_wasm.wasi_nn.host_function import HostFunction

MODULE = "wasi_snapshot_preview1"
_NOTSUP = 58  # wasi_snapshot_preview1 errno


def _poll_oneoff(_state: Any, _subscriptions: int, _events: int, _count: int, _stored: int) -> int:
    return _NOTSUP


REPLACED = (HostFunction(MODULE, "poll_oneoff", "iiii", _poll_oneoff),)
"""Functions of the engine's own WASI that are defined anew over it."""

# wasmtime.WasiConfig.stdout_custom keeps its callbacks in a list that two threads can confuse.
_sinks: dict[int, Callable[[memoryview], None]] = {}
_next_sink = itertools.count(1)


@ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.POINTER(ctypes.c_ubyte), ctypes.c_size_t)  # type: ignore[untyped-decorator, unused-ignore]
def _write(sink: int, data: Any, size: int) -> int:
    try:
        if size:
            written = (ctypes.c_ubyte * size).from_address(ctypes.addressof(data.contents))
            _sinks[sink](memoryview(written).cast("B"))
    except Exception:
        return -5  # EIO
    return size


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # type: ignore[untyped-decorator, unused-ignore]
def _finalize(sink: int) -> None:
    _sinks.pop(sink, None)


def deny_all(log: Callable[[memoryview], None]) -> wasmtime.WasiConfig:
    """A configuration that grants nothing; what is written to both standard streams is ``log``'s until it returns."""
    config = wasmtime.WasiConfig()
    for attach in (ffi.wasi_config_set_stdout_custom, ffi.wasi_config_set_stderr_custom):
        sink = next(_next_sink)
        _sinks[sink] = log
        attach(config.ptr(), _write, sink, _finalize)
    return config
