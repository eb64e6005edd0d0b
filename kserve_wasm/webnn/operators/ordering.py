"""Types for which ONNX Runtime has no kernels that order: as others, in which the order is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kserve_wasm.tensors import DType
from kserve_wasm.tensors.dtypes import INT32, INT64, UINT32, UINT64

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

_SIGNED = {UINT32: INT32, UINT64: INT64}


def ordered(e: Emitter, value: Value) -> Value:
    """``value``, or signed numbers in the same order where its type is uint32 or uint64."""
    signed = _SIGNED.get(value.dtype)
    return value if signed is None else _flipped(e, e.cast(value, signed))


def restored(e: Emitter, value: Value, dtype: DType) -> Value:
    """Of elements that :func:`ordered` made, those of type ``dtype`` they were made of."""
    return e.cast(_flipped(e, value), dtype) if dtype in _SIGNED else value


def _flipped(e: Emitter, value: Value) -> Value:
    """Unsigned numbers with their top bit set are negative as signed ones; with that bit flipped the order is right."""
    top = np.array(np.iinfo(value.dtype.numpy).min, value.dtype.numpy)
    return e.node("BitwiseXor", value, top, result=value.operand)
