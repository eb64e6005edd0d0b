"""The element types, one row each, with their numbers in every ABI spoken here.

Sources: V2 names, Open Inference Protocol, "Tensor Data Types"; ONNX numbers, ``onnx.TensorProto.DataType``
(they are also the numbers of the tensor ABI, ``kserve_wasm.h``); WASI-NN numbers live in :mod:`kserve_wasm.wasi_nn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    Attributes:
        name: the V2 datatype, for example ``FP32``.
        numpy: the NumPy dtype, little-endian; ``object`` (holding ``bytes``) for ``BYTES``.
        itemsize: bytes for one element; 0 for ``BYTES``, whose elements vary.
        onnx: ``onnx.TensorProto.DataType``, and the number in the tensor ABI.
    """

    name: str
    numpy: np.dtype[Any]
    itemsize: int
    onnx: int

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        # Element types are compared with ``is``: one that crossed a process boundary must be the table's own.
        return _by_name, (self.name,)


def _by_name(name: str) -> DType:
    return DTYPES[name]


def _row(name: str, numpy: Any, onnx: int) -> DType:
    dtype = np.dtype(numpy)
    return DType(name, dtype, 0 if dtype.hasobject else dtype.itemsize, onnx)


BOOL = _row("BOOL", np.bool_, 9)
UINT8 = _row("UINT8", np.uint8, 2)
UINT16 = _row("UINT16", np.uint16, 4)
UINT32 = _row("UINT32", np.uint32, 12)
UINT64 = _row("UINT64", np.uint64, 13)
INT8 = _row("INT8", np.int8, 3)
INT16 = _row("INT16", np.int16, 5)
INT32 = _row("INT32", np.int32, 6)
INT64 = _row("INT64", np.int64, 7)
FP16 = _row("FP16", np.float16, 10)
BF16 = _row("BF16", ml_dtypes.bfloat16, 16)
FP32 = _row("FP32", np.float32, 1)
FP64 = _row("FP64", np.float64, 11)
BYTES = _row("BYTES", np.object_, 8)

DTYPES: dict[str, DType] = {
    d.name: d
    for d in (BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64, BYTES)
}
"""Every element type by its V2 name."""

BY_ONNX: dict[int, DType] = {d.onnx: d for d in DTYPES.values()}
_BY_NUMPY: dict[np.dtype[Any], DType] = {d.numpy: d for d in DTYPES.values()}


def from_numpy_dtype(dtype: np.dtype[Any]) -> DType | None:
    """The element type that ``dtype`` holds, or None; text and byte strings are ``BYTES``."""
    found = _BY_NUMPY.get(dtype)
    if found is None and dtype.kind in "SU":
        return BYTES
    return found
