"""WASI preview 1 for guests whose toolchain links it: no files, no network, no arguments, no environment.

What such a guest prints becomes log lines. It may ask for the time and for random bytes; it may not sleep, because a
host call that blocks is not ended by the deadline.
"""

from __future__ import annotations

import struct

from kserve_wasm.guest.state import InstanceState
from kserve_wasm.wasi_nn.host_function import HostFunction, MemoryFault

MODULE = "wasi_snapshot_preview1"
_SUCCESS, _BADF, _FAULT, _INVAL, _NOTSUP = 0, 8, 21, 28, 58  # wasi_snapshot_preview1 errno
_MAX_VECTORS = 1024
_VECTOR = struct.Struct("<II")


def _fd_write(state: InstanceState, descriptor: int, vectors: int, count: int, written_out: int) -> int:
    """Logs what is written to a standard stream; copies no more of it than the request may still log.

    The engine's own would call Python back from threads of its own, some of them while the interpreter ends, which
    aborts the process.
    """
    if descriptor not in (1, 2):
        return _BADF
    if count > _MAX_VECTORS:
        return _INVAL
    text, total = bytearray(), 0
    try:
        memory = state.memory
        for address, length in _VECTOR.iter_unpack(memory.view(vectors, count * _VECTOR.size)):
            view = memory.view(address, length)
            total += length
            if len(text) < state.log_left:
                text += view[: state.log_left - len(text)]
        if total >= 1 << 32:
            return _INVAL
        memory.write_u32(written_out, total)
    except MemoryFault:
        return _FAULT
    state.print(text.decode(errors="replace"))
    return _SUCCESS


def _poll_oneoff(_state: InstanceState, _subscriptions: int, _events: int, _count: int, _stored: int) -> int:
    return _NOTSUP


REPLACED = (
    HostFunction(MODULE, "fd_write", "iiii", _fd_write),
    HostFunction(MODULE, "poll_oneoff", "iiii", _poll_oneoff),
)
"""Functions of the engine's own WASI that are defined anew over it."""
