"""A tensor of one request: element type, shape, and host memory that is shared, not copied.

A tensor has two faces. :meth:`Tensor.numpy` is what a backend takes; :meth:`Tensor.buffer` is what the wire and the
guest take: the raw encoding of the V2 protocol (little-endian, row-major; each ``BYTES`` element behind its length in
four bytes; V2 "Tensor Data"). For fixed-size types both are views of one memory; for ``BYTES`` they are not.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.tensors import dtypes
from kserve_wasm.tensors.dtypes import DType

BytesLike: TypeAlias = bytes | bytearray | memoryview
_LENGTH = struct.Struct("<I")
_MAX_RANK = 64  # NumPy 2's own limit
_MAX_SIZE = (1 << 63) - 1  # an int64: the largest dimension that V2 and ONNX can say


@final
class Tensor:
    """An immutable view of typed host memory. Make one with :meth:`from_buffer` or :meth:`from_numpy`.

    Attributes:
        dtype: the element type.
        shape: the dimensions, each ≥ 0; ``()`` is a scalar.
    """

    __slots__ = ("_array", "_buffer", "dtype", "shape")

    def __init__(
        self, dtype: DType, shape: tuple[int, ...], array: npt.NDArray[Any], buffer: memoryview | None = None
    ) -> None:
        """Internal: ``array``, and ``buffer`` where it is known already, must fit ``dtype`` and ``shape``."""
        self.dtype = dtype
        self.shape = shape
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

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Length of :meth:`buffer` in bytes."""
        return self.size * self.dtype.itemsize or self.buffer().nbytes

    def numpy(self) -> npt.NDArray[Any]:
        """The tensor as a C-contiguous array: a view, read-only where the memory is; ``object`` for ``BYTES``."""
        return self._array

    def buffer(self) -> memoryview:
        """The tensor in the V2 raw encoding: one-dimensional, read-only bytes; a view for fixed-size types."""
        if self._buffer is None:
            array = self._array
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

    def __reduce__(self) -> tuple[Any, ...]:
        return Tensor, (self.dtype, self.shape, self._array)

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
