"""Types for which ONNX Runtime has no kernels that compare or order: as others that keep the order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kserve_wasm.tensors import DType
from kserve_wasm.tensors.dtypes import INT64, UINT32, UINT64

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

_TOP_BIT = np.array(np.iinfo(np.int64).min)


def ordered(e: Emitter, value: Value) -> Value:
    """``value``, or int64 numbers in the same order where its type is uint32 or uint64."""
    if value.dtype is UINT32:
        return e.cast(value, INT64)
    if value.dtype is UINT64:
        return _flipped(e, e.cast(value, INT64))
    return value


def restored(e: Emitter, value: Value, dtype: DType) -> Value:
    """Of elements that :func:`ordered` made, those of type ``dtype`` they were made of."""
    return e.cast(_flipped(e, value) if dtype is UINT64 else value, dtype)


def _flipped(e: Emitter, value: Value) -> Value:
    """As int64, a uint64 from 2^63 on is negative; with the top bit flipped, the order is that of uint64."""
    return e.node("BitwiseXor", value, _TOP_BIT, result=value.operand)
