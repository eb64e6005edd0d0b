"""Tensors as guests have them: of the host, or lent out of the guest's own memory; and what they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

from kserve_wasm.errors import GuestError, InvalidRequest
from kserve_wasm.tensors import DType, Tensor
from kserve_wasm.tensors.tensor import BytesLike
from kserve_wasm.wasi_nn.host_function import GuestMemory

_ELEMENT_BYTES = 48
"""What a ``BYTES`` element takes in CPython beside its text: the object's header and the pointer to it."""


class BorrowedTensor:
    """A tensor whose bytes stay in the guest's memory; looked up anew at every use.

    Attributes:
        dtype: the element type, of fixed size.
        shape: the dimensions.
        address: first byte in the guest's memory, a multiple of the element's size.
        nbytes: the length in bytes.
    """

    __slots__ = ("address", "dtype", "nbytes", "shape")

    def __init__(self, dtype: DType, shape: tuple[int, ...], address: int, nbytes: int) -> None:
        self.dtype = dtype
        self.shape = shape
        self.address = address
        self.nbytes = nbytes

    def over(self, memory: GuestMemory) -> Tensor:
        """The tensor as a view of ``memory``, for use until the host function returns. Raises GuestError."""
        return self._of(memory.view(self.address, self.nbytes))

    def copied(self, memory: GuestMemory) -> Tensor:
        """The tensor as it is now, in host memory. Raises GuestError."""
        return self._of(bytes(memory.view(self.address, self.nbytes)))

    def _of(self, data: BytesLike) -> Tensor:
        try:
            return Tensor.from_buffer(self.dtype, self.shape, data)
        except InvalidRequest as error:  # BOOL that is neither 0 nor 1; the guest's doing, not the client's
            raise GuestError(f"a tensor that the guest lent: {error}") from None


AnyTensor: TypeAlias = Tensor | BorrowedTensor


def host_bytes(tensor: Tensor) -> int:
    """The memory that ``tensor`` takes on the host or a device."""
    itemsize = tensor.dtype.itemsize
    return math.prod(tensor.shape) * itemsize if itemsize else text_bytes(tensor.nbytes, tensor.size)


def text_bytes(encoded: int, elements: int) -> int:
    """The host memory of a ``BYTES`` tensor: it is kept both encoded and as an object for each element."""
    return 2 * encoded + _ELEMENT_BYTES * elements


def apart(output: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """``output``, copied if a graph passed (a part of) an input through: inputs are written to again, or go away."""
    for tensor in inputs.values():
        if output.may_share_memory(tensor):
            return output.copied()
    return output
