"""A tensor of one request: element type, shape, and memory of the host or of a device that is shared, not copied.

A tensor has two faces. :meth:`Tensor.numpy` is what a backend takes; :meth:`Tensor.buffer` is what the wire and the
guest take: the raw encoding of the V2 protocol (little-endian, row-major; each ``BYTES`` element behind its length in
four bytes; V2 "Tensor Data"). For fixed-size types both are views of one memory; for ``BYTES`` they are not.

One that lives on a device comes to the host when either face is asked for: once, for all tensors that are rows of the
same memory. Until then nothing but its bytes is on the device: type, shape and size cost no move.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.tensors import dtypes
from kserve_wasm.tensors.dtypes import DType

if TYPE_CHECKING:  # what a host without devices need not import
    from kserve_wasm.tensors.devices import Accelerator, DeviceMemory

BytesLike: TypeAlias = bytes | bytearray | memoryview
_LENGTH = struct.Struct("<I")
_MAX_RANK = 64  # NumPy 2's own limit
_MAX_SIZE = (1 << 63) - 1  # an int64: the largest dimension that V2 and ONNX can say
_keeping = threading.Lock()


@final
class Tensor:
    """An immutable view of typed memory. Make one with one of the ``from_`` methods.

    Attributes:
        dtype: the element type.
        shape: the dimensions, each ≥ 0; ``()`` is a scalar.
        memory: the device memory that holds it; None for one that is on the host alone.
    """

    __slots__ = ("_array", "_buffer", "_offset", "dtype", "memory", "shape")

    _array: npt.NDArray[Any] | None
    _offset: int

    def __init__(
        self, dtype: DType, shape: tuple[int, ...], array: npt.NDArray[Any], buffer: memoryview | None = None
    ) -> None:
        """Internal: ``array``, and ``buffer`` where it is known already, must fit ``dtype`` and ``shape``."""
        self.dtype = dtype
        self.shape = shape
        self.memory: DeviceMemory | None = None
        self._array = array
        self._buffer = buffer

    @classmethod
    def from_buffer(cls, dtype: DType, shape: Sequence[int], data: BytesLike) -> Tensor:
        """A tensor over ``data`` in the V2 raw encoding, without a copy for fixed-size types.

        Args:
            dtype: the element type.
            shape: the dimensions.
            data: contiguous memory. For fixed-size types it must stay unchanged while the tensor is in use; ``BYTES``
                elements are copied out of it.

        Raises:
            InvalidRequest: there are more than 64 dimensions, a dimension is negative or beyond int64, ``data`` has
                not the length that type and shape ask for, ``BOOL`` data holds other bytes than 0 and 1, or ``BYTES``
                data is not a sequence of exactly as many length-prefixed elements.
        """
        dims = tuple(shape)
        if dims:
            if len(dims) > _MAX_RANK:
                raise InvalidRequest(f"a tensor has at most {_MAX_RANK} dimensions, got {len(dims)}")
            if max(dims) > _MAX_SIZE:
                raise InvalidRequest(f"a dimension is at most {_MAX_SIZE}, got a larger one")
            if min(dims) < 0:
                raise InvalidRequest(f"a dimension is at least 0, got shape {list(dims)}")
        count = math.prod(dims)
        view = memoryview(data)
        if dtype.itemsize == 0:
            return cls._from_length_prefixed(dtype, dims, count, view)
        if view.nbytes != count * dtype.itemsize:
            raise InvalidRequest(
                f"{dtype} with shape {list(dims)} needs {count * dtype.itemsize} bytes, got {view.nbytes}"
            )
        if count == 0:
            return cls(dtype, dims, _empty(dtype, dims))
        if dtype is dtypes.BOOL and np.frombuffer(view, np.uint8).max() > 1:
            # C++ may assume that a bool is 0 or 1, and index a table with it.
            raise InvalidRequest("BOOL data must hold only the bytes 0 and 1, got others")
        return cls(dtype, dims, np.frombuffer(view, dtype.numpy).reshape(dims))

    @classmethod
    def _from_length_prefixed(
        cls, dtype: DType, dims: tuple[int, ...], count: int, view: memoryview
    ) -> Tensor:
        view = view.cast("B")
        elements = _split_bytes(view, count, dims)  # before memory for ``count`` elements is taken
        array = _empty(dtype, (len(elements),))
        array[:] = elements
        # The raw form is kept only where nobody can change it beneath the elements.
        raw = view if type(view.obj) is bytes else None
        return cls(dtype, dims, array.reshape(dims) if count else _empty(dtype, dims), raw)

    @classmethod
    def from_numpy(cls, array: npt.NDArray[Any]) -> Tensor:
        """A tensor over ``array``, copied only when it is not C-contiguous or not little-endian.

        Arrays of ``str`` or ``bytes`` (fixed width or objects) become ``BYTES``; text is encoded as UTF-8.

        Raises:
            TypeError: the array's dtype has no V2 datatype (complex numbers, dates …), or an object is neither
                ``str`` nor ``bytes``.
        """
        dtype = dtypes.from_numpy_dtype(array.dtype)
        if dtype is None and array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
            dtype = dtypes.from_numpy_dtype(array.dtype)
        if dtype is None:
            raise TypeError(
                f"NumPy dtype {array.dtype} has no V2 datatype; cast to one of {', '.join(dtypes.DTYPES)}"
            )
        if dtype.itemsize == 0:
            flat = np.empty(array.size, dtype=object)
            flat[:] = [_encoded(element) for element in array.reshape(-1).tolist()]
            return cls(dtype, array.shape, flat.reshape(array.shape))
        return cls(dtype, array.shape, np.ascontiguousarray(array).reshape(array.shape))

    @classmethod
    def from_device(
        cls, dtype: DType, shape: tuple[int, ...], memory: DeviceMemory, offset: int = 0
    ) -> Tensor:
        """A tensor over ``memory`` of a device, ``offset`` bytes behind its beginning, row-major.

        Args:
            dtype: the element type, of fixed size.
            shape: the dimensions.
            memory: at least as long as type and shape ask for, and not to be written to any more.
            offset: in bytes.
        """
        tensor = cls.__new__(cls)
        tensor.dtype = dtype
        tensor.shape = shape
        tensor.memory = memory
        tensor._array = None
        tensor._buffer = None
        tensor._offset = offset
        return tensor

    @classmethod
    def from_dlpack(cls, source: Any) -> Tensor:
        """A tensor over the memory of ``source``, an object with ``__dlpack__``, on the host or a device.

        Raises:
            TypeError: it is not contiguous and row-major, or its elements have no V2 datatype.
            DeviceUnavailable: it is on a device that is not known here.
            BufferError: ``source`` does not lend its memory.
        """
        from kserve_wasm.tensors import devices, dlpack

        taken = dlpack.take(source)
        nbytes = math.prod(taken.shape) * taken.dtype.itemsize
        if taken.device == dlpack.CPU or not nbytes:
            raw = devices.host_view(taken.owner, taken.pointer, nbytes, read_only=taken.read_only)
            return cls(taken.dtype, taken.shape, raw.view(taken.dtype.numpy).reshape(taken.shape))
        accelerator = devices.of_dlpack(*taken.device)
        accelerator.runtime.synchronize_all()  # the default stream waits for those that wrote it
        return cls.from_device(
            taken.dtype, taken.shape, accelerator.adopt(taken.owner, taken.pointer, nbytes)
        )

    @property
    def device(self) -> str:
        """Where its bytes are: ``cpu``, or a device such as ``cuda:0``, even if the host has them as well."""
        return "cpu" if self.memory is None else self.memory.accelerator.name

    @property
    def pointer(self) -> int:
        """The address of its bytes on its device; for tensors with :attr:`memory`."""
        assert self.memory is not None
        return self.memory.pointer + self._offset

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Length of :meth:`buffer` in bytes."""
        itemsize = self.dtype.itemsize
        return math.prod(self.shape) * itemsize if itemsize else self.buffer().nbytes

    def numpy(self) -> npt.NDArray[Any]:
        """The tensor as a C-contiguous array: a view, read-only where the memory is; ``object`` for ``BYTES``."""
        array = self._array
        return self._on_host() if array is None else array

    def buffer(self) -> memoryview:
        """The tensor in the V2 raw encoding: one-dimensional, read-only bytes; a view for fixed-size types."""
        if self._buffer is None:
            array = self.numpy()
            if self.dtype.itemsize == 0:
                parts: list[bytes] = []
                for element in array.reshape(-1):
                    parts += (_LENGTH.pack(len(element)), element)
                self._buffer = memoryview(b"".join(parts))
            else:
                # NumPy refuses to export ml_dtypes (bfloat16) as a buffer; its bytes it gives.
                raw = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
                self._buffer = raw.toreadonly()
        return self._buffer

    def _on_host(self) -> npt.NDArray[Any]:
        assert self.memory is not None
        end = self._offset + self.nbytes
        array: npt.NDArray[Any] = self.memory.host()[self._offset : end].view(self.dtype.numpy)
        self._array = array.reshape(self.shape)
        return self._array

    def rows(self, start: int, end: int) -> Tensor:
        """Its entries ``start`` to ``end`` along the first dimension: a view."""
        shape = (end - start, *self.shape[1:])
        if self.memory is None:
            return Tensor(self.dtype, shape, self.numpy()[start:end])
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return Tensor.from_device(self.dtype, shape, self.memory, self._offset + start * row)

    @staticmethod
    def move(tensors: Sequence[Tensor], accelerator: Accelerator) -> list[Tensor]:
        """``tensors``, of fixed-size types, on ``accelerator``; those that are there already as they are.

        Host memory that cannot change is moved once: the tensor keeps what it was given there.

        Raises:
            BackendError: the device has no room.
        """
        moved: list[tuple[int, DeviceMemory]] = []
        with accelerator.completing():
            for i, tensor in enumerate(tensors):
                if tensor.memory is None or tensor.memory.accelerator is not accelerator:
                    array = tensor.numpy()
                    memory = accelerator.allocate(array.nbytes)
                    moved.append((i, memory))
                    accelerator.upload(memory.pointer, array)
        there = list(tensors)
        for i, memory in moved:
            tensor = tensors[i]
            there[i] = Tensor.from_device(tensor.dtype, tensor.shape, memory)
            if not tensor.numpy().flags.writeable:
                with _keeping:  # once: another thread may be using what it keeps
                    if tensor.memory is None:
                        tensor._offset = 0  # before there is memory that it is an offset into
                        tensor.memory = memory
                        there[i] = tensor
        return there

    def may_share_memory(self, other: Tensor) -> bool:
        """Whether both may have bytes in common."""
        mine, theirs = self.memory, other.memory
        if mine is None and theirs is None:
            return np.may_share_memory(self.numpy(), other.numpy())
        if mine is None or theirs is None or mine.accelerator is not theirs.accelerator:
            return False
        return self.pointer < other.pointer + other.nbytes and other.pointer < self.pointer + self.nbytes

    def copied(self) -> Tensor:
        """The same bytes in memory of their own, where they are."""
        if self.memory is None:
            return Tensor.from_numpy(self.numpy().copy())
        accelerator = self.memory.accelerator
        memory = accelerator.allocate(self.nbytes)
        with accelerator.completing():
            accelerator.copy(memory.pointer, self.pointer, self.nbytes)
        return Tensor.from_device(self.dtype, self.shape, memory)

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's kind and number of the device that the bytes are on."""
        if self.memory is None:
            return 1, 0
        runtime = self.memory.accelerator.runtime
        return runtime.dlpack, runtime.index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,  # the bytes are complete: there is nothing to wait for
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule over the tensor's memory, which must not be written to. Nothing is copied.

        Raises:
            BufferError: ``BYTES`` have no such form; it would take a copy; or the consumer knows DLPack before 1.0
                only, which cannot say that host memory is read-only.
        """
        from kserve_wasm.tensors import dlpack

        versioned = max_version is not None and max_version[0] >= 1
        if not self.dtype.itemsize:
            raise BufferError("DLPack has no BYTES")
        device = self.__dlpack_device__()
        if copy or (dl_device is not None and tuple(dl_device) != device):
            raise BufferError("only the tensor's own memory can be lent: ask for no copy and no other device")
        if self.memory is None:
            array = self.numpy()
            read_only = not array.flags.writeable
            if read_only and not versioned:
                raise BufferError(
                    "read-only memory is lent by DLPack 1.0 or later: ask with max_version=(1, 0)"
                )
            pointer = array.ctypes.data
        else:
            pointer, read_only = self.pointer, True
        owner = self.memory or self.numpy()
        return dlpack.lend(
            owner, self.dtype, self.shape, pointer, device, versioned=versioned, read_only=read_only
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Tensor, (self.dtype, self.shape, self.numpy())

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {list(self.shape)})"


def _empty(dtype: DType, dims: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        return np.empty(dims, dtype.numpy)
    except ValueError:  # even without elements, NumPy's strides must fit in 64 bits
        raise InvalidRequest(f"{dtype} with shape {list(dims)} is beyond 64-bit addresses") from None


def _encoded(element: object) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, bytes):
        return element
    raise TypeError(f"an array of objects must hold str or bytes, got {type(element).__name__}")


def _split_bytes(data: memoryview, count: int, shape: tuple[int, ...]) -> list[bytes]:
    """The elements of a raw ``BYTES`` tensor (V2 binary extension: little-endian u32 length, then the bytes)."""
    elements: list[bytes] = []
    end, at = data.nbytes, 0
    while at < end and len(elements) < count:
        if end - at < 4:
            raise InvalidRequest(f"BYTES data ends inside the length of element {len(elements)}")
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if length > end - at:
            raise InvalidRequest(
                f"BYTES element {len(elements)} says it has {length} bytes, but only {end - at} are left"
            )
        elements.append(bytes(data[at : at + length]))
        at += length
    if len(elements) != count or at != end:
        raise InvalidRequest(
            f"BYTES with shape {list(shape)} needs {count} length-prefixed elements, got {len(elements)} "
            f"and {end - at} bytes besides"
        )
    return elements
