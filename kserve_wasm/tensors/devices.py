"""Memory of devices: how it is taken, kept for use again, copied, and counted.

What a device's own library has to offer is the few functions of :class:`DeviceRuntime`. All else is here and the same
for every device. Bytes that a :class:`DeviceMemory` holds are complete: whoever makes one waits until nothing on the
device writes them any more, and so nobody who reads them has to.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from kserve_wasm.errors import BackendError, DeviceUnavailable
from kserve_wasm.metrics import DEVICE_COPY_BYTES

Direction: TypeAlias = Literal["to_device", "to_host", "on_device"]
"""Where bytes are copied to: from the host, to the host, or from one place of the device to another."""

ALIGNMENT = 256
"""Bytes that addresses of device memory are multiples of: CUDA's own, and what kernels may rely on."""

_KEPT_BYTES = 256 << 20
"""Memory of each kind that is kept while nobody uses it."""
_KEPT = 256
"""Pieces kept at most: clients choose the sizes."""
_MAX_PINNED = 1 << 30
"""Bytes of page-locked memory in use at most, beyond which ordinary memory serves: the rest of the host needs pages."""


class DeviceRuntime(Protocol):
    """One device. Errors are BackendError. Any thread may call.

    Attributes:
        kind: ``cuda``: ONNX Runtime's name of its memory.
        index: the device's number.
        dlpack: DLPack's number of its kind (``DLDeviceType``).
    """

    kind: str
    index: int
    dlpack: int

    def allocate(self, nbytes: int) -> int:
        """The address of ``nbytes`` (> 0) of new device memory, a multiple of :data:`ALIGNMENT`."""

    def free(self, pointer: int) -> None:
        """Frees what :meth:`allocate` gave."""

    def allocate_pinned(self, nbytes: int) -> int:
        """The address of ``nbytes`` (> 0) of new page-locked host memory."""

    def free_pinned(self, pointer: int) -> None:
        """Frees what :meth:`allocate_pinned` gave."""

    def copy(self, target: int, source: int, nbytes: int, direction: Direction) -> None:
        """Begins to copy; may return before it is done. Copies of one thread are done in their order."""

    def synchronize(self) -> None:
        """Returns when the calling thread's copies are done."""

    def synchronize_all(self) -> None:
        """Returns when the device has nothing more to do, for whomever."""


class Block:
    """Memory that goes back to its pool when nobody refers to it any more; until then the pool is there.

    Attributes:
        pointer: its address.
        size: its bytes; at least those that were asked for.
        owner: what frees it, where that is not the pool.
    """

    __slots__ = ("_pool", "owner", "pointer", "size")

    def __init__(self, pool: Pool, pointer: int, size: int, owner: object = None) -> None:
        self.pointer = pointer
        self.size = size
        self.owner = owner
        self._pool = pool

    def __del__(self) -> None:
        self._pool.ended(self.size, 0 if self.owner is not None else self.pointer)


class Pool:
    """Memory of one kind. Thread-safe.

    To allocate on a device takes longer than many a run, and to free waits for all that runs: so what comes back is
    kept. It may come back at any moment, while the interpreter collects garbage inside a method of this too, and is
    only noted then.

    Args:
        allocate: gives the address of so many bytes. Raises BackendError.
        free: takes one back.
    """

    def __init__(self, allocate: Callable[[int], int], free: Callable[[int], None]) -> None:
        self._allocate = allocate
        self._free = free
        self._kept: list[tuple[int, int]] = []  # size and pointer, the latest last
        self._kept_bytes = 0
        self._held_bytes = 0
        self._ended: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> Block:
        """At least ``nbytes`` with any contents.

        Raises:
            BackendError: there is not that much.
        """
        size = _rounded(nbytes)
        with self._lock:
            self._settle()
            pointer = self._find(size) or self._new(size)
            self._held_bytes += size
        return Block(self, pointer, size)

    def adopt(self, owner: object, pointer: int, nbytes: int) -> Block:
        """Memory that is ``owner``'s, counted as in use as long as the block is there."""
        with self._lock:
            self._held_bytes += nbytes
        return Block(self, pointer, nbytes, owner)

    def ended(self, size: int, pointer: int) -> None:
        """Notes that nobody uses so many bytes any more; ``pointer`` is 0 for what was adopted."""
        self._ended.append((size, pointer))

    @property
    def held_bytes(self) -> int:
        """Bytes in use."""
        with self._lock:
            self._settle()
            return self._held_bytes

    def _find(self, size: int) -> int:
        for i in range(len(self._kept) - 1, -1, -1):
            if self._kept[i][0] == size:
                self._kept_bytes -= size
                return self._kept.pop(i)[1]
        return 0

    def _new(self, size: int) -> int:
        try:
            return self._allocate(size)
        except BackendError:
            if not self._kept:
                raise
        self._trim(0, 0)
        return self._allocate(size)

    def _settle(self) -> None:
        while self._ended:
            size, pointer = self._ended.popleft()
            self._held_bytes -= size
            if pointer:
                self._kept.append((size, pointer))
                self._kept_bytes += size
        self._trim(_KEPT_BYTES, _KEPT)

    def _trim(self, nbytes: int, pieces: int) -> None:
        while self._kept_bytes > nbytes or len(self._kept) > pieces:
            size, pointer = self._kept.pop(0)
            self._kept_bytes -= size
            self._free(pointer)


def _rounded(nbytes: int) -> int:
    """The next of eight sizes between powers of two: what batches of nearly one size take fits each of them."""
    step = max(ALIGNMENT, 1 << max(0, (nbytes - 1).bit_length() - 4))
    return max(1, -(-nbytes // step)) * step


class DeviceMemory:
    """Bytes on a device. Make one with :class:`Accelerator`.

    Attributes:
        accelerator: the device.
        pointer: the address there.
        nbytes: how many they are.
    """

    __slots__ = ("_block", "_host", "_lock", "accelerator", "nbytes", "pointer")

    def __init__(self, accelerator: Accelerator, block: Block, nbytes: int) -> None:
        self.accelerator = accelerator
        self.pointer = block.pointer
        self.nbytes = nbytes
        self._block = block
        self._host: npt.NDArray[np.uint8] | None = None
        self._lock = threading.Lock()

    def host(self) -> npt.NDArray[np.uint8]:
        """The bytes in host memory, read-only: moved there by the first call, for all that view them."""
        if self._host is None:
            with self._lock:
                if self._host is None:
                    self._host = self.accelerator.download(self.pointer, self.nbytes)
        return self._host


class Accelerator:
    """A device and the memory that is kept of it. Thread-safe.

    Attributes:
        name: such as ``cuda:0``.
        runtime: the device's own functions.
    """

    def __init__(self, runtime: DeviceRuntime) -> None:
        self.name = f"{runtime.kind}:{runtime.index}"
        self.runtime = runtime
        self._memory = Pool(runtime.allocate, runtime.free)
        self._pinned = Pool(runtime.allocate_pinned, runtime.free_pinned)
        self._counts: dict[Direction, list[int]] = {d: [0, 0] for d in _DIRECTIONS}
        self._metrics = {d: DEVICE_COPY_BYTES.labels(self.name, d) for d in _DIRECTIONS}
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes of the device in use by tensors and runs."""
        return self._memory.held_bytes

    def copied_bytes(self, direction: Direction) -> int:
        """Bytes copied so far."""
        return self._counts[direction][0]

    def copies(self, direction: Direction) -> int:
        """Copies made so far."""
        return self._counts[direction][1]

    # --- Memory

    def allocate(self, nbytes: int) -> DeviceMemory:
        """Device memory with any contents. Raises BackendError."""
        return DeviceMemory(self, self._memory.take(nbytes), nbytes)

    def adopt(self, owner: object, pointer: int, nbytes: int) -> DeviceMemory:
        """Device memory that somebody else made; ``owner`` frees it when it is dropped."""
        return DeviceMemory(self, self._memory.adopt(owner, pointer, nbytes), nbytes)

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory with any contents, which the device reads and writes fastest.

        Beyond a bound, and where the host lets no more pages be locked, it is ordinary memory.
        """
        if nbytes and self._pinned.held_bytes + nbytes <= _MAX_PINNED:
            with suppress(BackendError):
                block = self._pinned.take(nbytes)
                return host_view(block, block.pointer, nbytes)
        return np.empty(nbytes, np.uint8)

    # --- Copies

    @contextmanager
    def completing(self) -> Iterator[None]:
        """Copies that are begun inside are done when it ends, however it ends: their memory may be used or freed."""
        try:
            yield
        finally:
            self.runtime.synchronize()

    def upload(self, target: int, array: npt.NDArray[Any]) -> None:
        """Begins to copy a C-contiguous array to the device; inside :meth:`completing`."""
        self._copy(target, array.ctypes.data, array.nbytes, "to_device")

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Begins to copy from one place of the device to another; inside :meth:`completing`."""
        self._copy(target, source, nbytes, "on_device")

    def download(self, pointer: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """The bytes at ``pointer`` in host memory, read-only."""
        array = self.pinned(nbytes)
        with self.completing():
            self._copy(array.ctypes.data, pointer, nbytes, "to_host")
        array.flags.writeable = False
        return array

    def _copy(self, target: int, source: int, nbytes: int, direction: Direction) -> None:
        if not nbytes:
            return
        self.runtime.copy(target, source, nbytes, direction)
        with self._lock:
            counts = self._counts[direction]
            counts[0] += nbytes
            counts[1] += 1
        self._metrics[direction].inc(nbytes)


_DIRECTIONS: tuple[Direction, ...] = ("to_device", "to_host", "on_device")


def host_view(owner: object, pointer: int, nbytes: int, *, read_only: bool = False) -> npt.NDArray[np.uint8]:
    """Host memory as an array, whose base keeps ``owner``."""
    if not nbytes:
        return np.empty(0, np.uint8)
    return np.asarray(_HostBytes(owner, pointer, nbytes, read_only=read_only))


class _HostBytes:
    """What NumPy makes an array of, and keeps."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, owner: object, pointer: int, nbytes: int, *, read_only: bool) -> None:
        self._owner = owner
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (nbytes,),
            "data": (pointer, read_only),
        }


_opened: dict[str, Accelerator] = {}
_opening = threading.Lock()


def cuda(index: int = 0) -> Accelerator:
    """The CUDA device of this number; one for the whole process.

    Raises:
        DeviceUnavailable: there is none, or CUDA's runtime library is not installed.
    """
    name = f"cuda:{index}"
    with _opening:
        if name not in _opened:
            from kserve_wasm.tensors.cuda import CudaRuntime

            _opened[name] = Accelerator(CudaRuntime(index))
        return _opened[name]


def of_dlpack(kind: int, index: int) -> Accelerator:
    """The device that DLPack calls so.

    Raises:
        DeviceUnavailable: it is of a kind that is not known here.
    """
    for accelerator in list(_opened.values()):
        if (accelerator.runtime.dlpack, accelerator.runtime.index) == (kind, index):
            return accelerator
    if kind == _DLPACK_CUDA:
        return cuda(index)
    raise DeviceUnavailable(
        f"tensors of DLPack's device type {kind} cannot be taken: only host memory and CUDA's"
    )


_DLPACK_CUDA = 2
