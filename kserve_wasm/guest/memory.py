"""An instance's linear memory as host functions see it: every range checked, no view kept."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

from kserve_wasm.wasi_nn.host_function import MemoryFault

_U32 = struct.Struct("<I")


class LinearMemory:
    """Implements :class:`kserve_wasm.wasi_nn.host_function.GuestMemory`.

    The engine is configured so that a memory never moves while its instance lives: growing only makes the known
    range too small, never wrong. So the range is asked for again just when an access leaves it.

    Args:
        locate: gives the memory's base address and size in bytes at this moment.
    """

    __slots__ = ("_bytes", "_locate", "_size")

    def __init__(self, locate: Callable[[], tuple[int, int]]) -> None:
        self._locate = locate
        self._size = 0
        self._bytes = memoryview(bytearray())  # writable, as every view is

    def _grown(self, end: int) -> None:
        """Takes the present range; raises MemoryFault when ``end`` is still outside."""
        base, size = self._locate()
        if end > size:
            raise MemoryFault(f"address {end - 1:#x} is outside the guest's memory of {size} bytes")
        self._size = size
        self._bytes = memoryview((ctypes.c_ubyte * size).from_address(base)).cast("B")

    def view(self, address: int, length: int) -> memoryview:
        """The range as writable bytes, until the host function returns. Raises MemoryFault."""
        end = address + length
        if end > self._size:
            self._grown(end)
        return self._bytes[address:end]

    def read_u32(self, address: int) -> int:
        """The little-endian u32 at ``address``. Raises MemoryFault."""
        if address + 4 > self._size:
            self._grown(address + 4)
        value: int = _U32.unpack_from(self._bytes, address)[0]
        return value

    def write_u32(self, address: int, value: int) -> None:
        """Stores a little-endian u32. Raises MemoryFault."""
        if address + 4 > self._size:
            self._grown(address + 4)
        _U32.pack_into(self._bytes, address, value)
