"""Host functions as plain data, so that any way of binding them to an engine can serve the same table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

SUCCESS = 0
INVALID_ARGUMENT = 1
INVALID_ENCODING = 2
MISSING_MEMORY = 3
BUSY = 4
RUNTIME_ERROR = 5
UNSUPPORTED_OPERATION = 6
TOO_LARGE = 7
NOT_FOUND = 8
"""WASI-NN's ``nn_errno`` (wasi-nn.witx); the tensor ABI of ``kserve_wasm.h`` uses the same numbers."""

ERRNO_NAMES = (
    "success",
    "invalid_argument",
    "invalid_encoding",
    "missing_memory",
    "busy",
    "runtime_error",
    "unsupported_operation",
    "too_large",
    "not_found",
)
"""Their names, for messages."""


class MemoryFault(Exception):
    """A guest named a range outside its linear memory. It becomes ``MISSING_MEMORY``, for that call only."""


class GuestMemory(Protocol):
    """The linear memory of one instance, checked at every access. Addresses and lengths are unsigned 32-bit."""

    def view(self, address: int, length: int) -> memoryview:
        """The range as writable bytes; valid only until the host function returns.

        Raises:
            MemoryFault: the range leaves the memory.
        """

    def read_u32(self, address: int) -> int:
        """The little-endian u32 at ``address``. Raises MemoryFault."""

    def write_u32(self, address: int, value: int) -> None:
        """Stores a little-endian u32. Raises MemoryFault."""


@dataclass(frozen=True, slots=True)
class HostFunction:
    """One import that the host offers.

    Attributes:
        module: the import's module name.
        name: the import's name.
        params: a letter a parameter: ``i`` for i32 and ``I`` for i64, which arrive as **unsigned** Python integers;
            ``F`` for f64.
        function: called as ``function(state, *arguments)`` with the instance's state; returns an errno (i32). It may
            raise: MemoryFault becomes ``MISSING_MEMORY``; any other exception is kept on the instance as the cause,
            and the guest sees ``RUNTIME_ERROR``.
    """

    module: str
    name: str
    params: str
    function: Callable[..., int]
    has_result: bool = True
