"""A tensor of one request: element type, shape, and host memory that is shared, not copied.

A tensor has two faces. :meth:`Tensor.numpy` is what a backend takes; :meth:`Tensor.buffer` is what the wire and the
guest take: the raw encoding of the V2 protocol (little-endian, row-major; each ``BYTES`` element behind its length in
four bytes; V2 "Tensor Data"). For fixed-size types both are views of one memory. For ``BYTES`` each is made from the
other on first use.
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


@final
class Tensor:
    """An immutable view of typed host memory. Make one with :meth:`from_buffer` or :meth:`from_numpy`.

    Attributes:
        dtype: the element type.
        shape: the dimensions, each ≥ 0; ``()`` is a scalar.
    """

    __slots__ = ("_array", "_buffer", "dtype", "shape")

    def __init__(
        self, dtype: DType, shape: tuple[int, ...], array: npt.NDArray[Any] | None, buffer: memoryview | None
    ) -> None:
        """Internal: one of ``array`` and ``buffer`` must be given, and both must already fit ``dtype`` and ``shape``."""
        self.dtype = dtype
        self.shape = shape
        self._array = array
        self._buffer = buffer

    @classmethod
    def from_buffer(cls, dtype: DType, shape: Sequence[int], data: BytesLike) -> Tensor:
        """A tensor over ``data`` in the V2 raw encoding, without a copy for fixed-size types.

        Raises:
            InvalidRequest: a dimension is negative, ``data`` has not the length that type and shape ask for, or
                ``BYTES`` data is not a sequence of exactly as many length-prefixed elements.
        """
        dims = tuple(shape)
        if any(d < 0 for d in dims):
            raise InvalidRequest(f"shape {list(dims)} has a negative dimension")
        count = math.prod(dims)
        if dtype.itemsize == 0:
            # bytes() because the elements are sliced out of it: one copy here, none per element later.
            array = np.empty(count, dtype=object)
            elements = _split_bytes(memoryview(data), count, dims)
            for i, element in enumerate(elements):
                array[i] = element
            return cls(dtype, dims, array.reshape(dims), memoryview(data).cast("B"))
        view = memoryview(data)
        if view.nbytes != count * dtype.itemsize:
            raise InvalidRequest(
                f"{dtype} with shape {list(dims)} needs {count * dtype.itemsize} bytes, got {view.nbytes}"
            )
        array = np.frombuffer(view, dtype=dtype.numpy, count=count) if count else np.empty(0, dtype.numpy)
        return cls(dtype, dims, array.reshape(dims), None)

    @classmethod
    def from_numpy(cls, array: npt.NDArray[Any]) -> Tensor:
        """A tensor over ``array``, copied only when it is not C-contiguous or not little-endian.

        Arrays of ``str`` or ``bytes`` (fixed width or objects) become ``BYTES``; text is encoded as UTF-8.

        Raises:
            TypeError: the array's dtype has no V2 datatype (complex numbers, dates …).
        """
        dtype = dtypes.from_numpy_dtype(array.dtype)
        if dtype is None and array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
            dtype = dtypes.from_numpy_dtype(array.dtype)
        if dtype is None:
            raise TypeError(f"NumPy dtype {array.dtype} has no V2 datatype; cast to one of {', '.join(dtypes.DTYPES)}")
        if dtype.itemsize == 0:
            flat = np.empty(array.size, dtype=object)
            for i, element in enumerate(array.reshape(-1).tolist()):
                flat[i] = element.encode() if isinstance(element, str) else bytes(element)
            return cls(dtype, array.shape, flat.reshape(array.shape), None)
        return cls(dtype, array.shape, np.ascontiguousarray(array).reshape(array.shape), None)

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
        assert self._array is not None
        return self._array

    def buffer(self) -> memoryview:
        """The tensor in the V2 raw encoding: one-dimensional, of bytes; a view for fixed-size types."""
        if self._buffer is None:
            array = self.numpy()
            if self.dtype.itemsize == 0:
                parts: list[bytes] = []
                for element in array.reshape(-1):
                    parts += (_LENGTH.pack(len(element)), element)
                self._buffer = memoryview(b"".join(parts))
            else:
                # NumPy refuses to export ml_dtypes (bfloat16) as a buffer; its bytes it gives.
                self._buffer = memoryview(array.reshape(-1).view(np.uint8)) if array.size else memoryview(b"")
        return self._buffer

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {list(self.shape)})"


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
