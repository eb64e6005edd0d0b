"""DLPack: tensors exchanged with other libraries in one process, without a copy.

Source: dlpack.h, versions 0.8 (``dltensor``) and 1.0 (``dltensor_versioned``); Python array API, "Data interchange".
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from kserve_wasm.tensors import dtypes
from kserve_wasm.tensors.dtypes import DType

CPU = (1, 0)
"""Host memory, as ``__dlpack_device__`` says it."""
LEGACY_STREAM = 1
"""What ``__dlpack__`` calls CUDA's default stream; PyTorch refuses the calling thread's own."""

_OLD, _VERSIONED = b"dltensor", b"dltensor_versioned"
_USED = {_OLD: b"used_dltensor", _VERSIONED: b"used_dltensor_versioned"}
_READ_ONLY = 1
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLDataTypeCode by NumPy's kind
_BFLOAT = 4


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


# A deleter is called with the interpreter lock or without it; ours takes it, and one that we call may expect it.
_TakesLock = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_HoldsLock = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", ctypes.pythonapi)
)


class Imported(NamedTuple):
    """What another library lent.

    Attributes:
        dtype: the element type.
        shape: the dimensions.
        pointer: the first element's address.
        device: DLPack's kind and number of the device.
        read_only: nobody is to write there.
        owner: keeps the memory.
    """

    dtype: DType
    shape: tuple[int, ...]
    pointer: int
    device: tuple[int, int]
    read_only: bool
    owner: object


class _Lent:
    """Tells the lender when its memory is not needed any more."""

    def __init__(self, address: int, deleter: int | None) -> None:
        self._address = address
        self._delete = _HoldsLock(deleter) if deleter else None

    def __del__(self) -> None:
        if self._delete is not None:
            self._delete(self._address)


def take(source: Any) -> Imported:
    """What ``source``, an object with ``__dlpack__``, lends.

    On a device, its default stream waits for what still writes the memory.

    Raises:
        TypeError: it is no contiguous row-major tensor, or its elements have no V2 datatype.
    """
    stream = None if tuple(source.__dlpack_device__()) == CPU else LEGACY_STREAM
    try:
        capsule = source.__dlpack__(stream=stream, max_version=(1, 0))
    except TypeError:  # made before DLPack 1.0
        capsule = source.__dlpack__(stream=stream)
    kind = next((name for name in (_VERSIONED, _OLD) if _is_valid(capsule, name)), None)
    if kind is None:
        raise TypeError("__dlpack__ gave no capsule of DLPack that is new")
    address = _pointer(capsule, kind)
    read_only = False
    if kind is _VERSIONED:
        versioned = _ManagedVersioned.from_address(address)
        if versioned.major != 1:
            raise TypeError(f"DLPack {versioned.major}.{versioned.minor} is not known here: expected 1.x")
        deleter, tensor = versioned.deleter, versioned.tensor
        read_only = bool(versioned.flags & _READ_ONLY)
    else:
        managed = _Managed.from_address(address)
        deleter, tensor = managed.deleter, managed.tensor
    _set_name(capsule, _USED[kind])  # from here on it is ours to give back
    owner = _Lent(address, deleter)
    shape = tuple(tensor.shape[: tensor.ndim])
    return Imported(
        _dtype(tensor),
        _contiguous(shape, tensor.strides[: tensor.ndim] if tensor.strides else None),
        (tensor.data or 0) + tensor.byte_offset,
        (tensor.device_type, tensor.device_id),
        read_only,
        owner,
    )


def _contiguous(shape: tuple[int, ...], strides: Sequence[int] | None) -> tuple[int, ...]:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if size != 1 and stride != expected and 0 not in shape:
            raise TypeError(
                "a tensor must lie contiguous and row-major (make it so first), got strides "
                f"{list(strides or ())} for shape {list(shape)}"
            )
        expected *= size
    return shape


def _dtype(tensor: _Tensor) -> DType:
    if tensor.lanes == 1:
        for dtype in dtypes.DTYPES.values():
            if dtype.itemsize and _type(dtype) == (tensor.code, tensor.bits):
                return dtype
    raise TypeError(
        f"DLPack's type {tensor.code} of {tensor.bits} bits, {tensor.lanes} lanes, has no V2 datatype"
    )


def _type(dtype: DType) -> tuple[int, int]:
    """``DLDataType`` without its lanes."""
    code = _BFLOAT if dtype is dtypes.BF16 else _CODES[dtype.numpy.kind]
    return code, 8 * dtype.itemsize


_lent: dict[int, tuple[Any, ...]] = {}
"""What others have of ours, by address: the structure and all that it points to, and its capsule."""


def _give_back(address: int) -> None:
    _lent.pop(address, None)


_returned = _TakesLock(_give_back)
_RETURNED = ctypes.cast(_returned, ctypes.c_void_p).value


def lend(
    owner: object,
    dtype: DType,
    shape: tuple[int, ...],
    pointer: int,
    device: tuple[int, int],
    *,
    versioned: bool,
    read_only: bool,
) -> Any:
    """A capsule over memory that ``owner`` keeps.

    Args:
        owner: kept until the other side gives the memory back.
        dtype: the element type, of fixed size.
        shape: the dimensions.
        pointer: the first element's address.
        device: DLPack's kind and number.
        versioned: DLPack 1.0's form, which can say that memory is read-only.
        read_only: nobody is to write there.
    """
    _drop_unused()
    dims = (ctypes.c_int64 * len(shape))(*shape)
    strides = (ctypes.c_int64 * len(shape))()
    step = 1
    for i in range(len(shape) - 1, -1, -1):
        strides[i] = step
        step *= shape[i]
    code, bits = _type(dtype)
    tensor = _Tensor(pointer, *device, len(shape), code, bits, 1, dims, strides, 0)
    managed: _Managed | _ManagedVersioned
    if versioned:
        managed = _ManagedVersioned(1, 0, None, _RETURNED, _READ_ONLY if read_only else 0, tensor)
    else:
        managed = _Managed(tensor, None, _RETURNED)
    address = ctypes.addressof(managed)
    capsule = _new_capsule(address, _VERSIONED if versioned else _OLD, None)
    _lent[address] = (capsule, managed, dims, strides, owner)
    return capsule


def _drop_unused() -> None:
    """Forgets capsules that nobody took and nobody can take any more.

    A destructor would know at once. But it would be Python's, called where the interpreter has an exception set.
    """
    for address, (capsule, *_) in list(_lent.items()):
        unused = _is_valid(capsule, _OLD) or _is_valid(capsule, _VERSIONED)
        if unused and sys.getrefcount(capsule) <= _OURS:
            _lent.pop(address, None)


_OURS = 3
"""References to a capsule from :data:`_lent`, the loop's name, and the argument that counts them."""
