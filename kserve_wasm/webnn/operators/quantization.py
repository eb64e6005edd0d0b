"""Linear quantization: per tensor, per axis and by blocks.

Source: Web Neural Network API, ``quantizeLinear`` and ``dequantizeLinear``; "Broadcasting", blockwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kserve_wasm.tensors.dtypes import FP32, FP64, INT8, INT32, INT64, UINT8, UINT32
from kserve_wasm.webnn.operand import FLOATS, Dim, Operand, Scope, shown
from kserve_wasm.webnn.operator import Arguments, Lower, register

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

_QUANTIZED = frozenset({UINT8, INT8, UINT32, INT32})


def _check(a: Arguments) -> None:
    """Checks that scale and zero point are of one shape, each element of which is for a block of the input."""
    a.check_rank("scale", a.input.rank)
    if a.scale.shape != a.zeroPoint.shape:
        a.fail("scale and zeroPoint must have the same shape")
    for size, blocks in zip(a.input.shape, a.scale.shape, strict=True):
        if blocks in (1, size):
            continue
        if size < 0 or blocks < 0:
            a.fail(
                "where one of input and scale is open, the scale must have size 1, or both the same open size"
            )
        if blocks == 0 or size % blocks:
            a.fail(f"{shown(a.scale.shape)} does not divide {shown(a.input.shape)} into blocks")


def _axis(a: Arguments) -> int | None:
    """ONNX's axis, along which scales differ: any for a single scale, and None where there is none such."""
    places = [n for n, size in enumerate(a.scale.shape) if size != 1]
    if not places:
        return 0
    (place, *others) = places
    return place if not others and a.scale.shape[place] == a.input.shape[place] else None


def _flat(e: Emitter, value: Value) -> Value:
    """A scale or zero point as ONNX's quantization has it: without dimensions, or with one."""
    shape = tuple(size for size in value.shape if size != 1)
    return e.constant(value.array.reshape(shape)) if value.array is not None else e.reshape(value, shape)


def _blocks(e: Emitter, a: Arguments) -> tuple[Value, Value, Value]:
    """Input, scale and zero point, shaped so that they broadcast: a dimension in blocks becomes two."""
    whole: list[Dim] = []
    each: list[Dim] = []
    for size, blocks in zip(a.input.shape, a.scale.shape, strict=True):
        split = blocks not in (1, size)
        whole += (blocks, size // blocks) if split else (size,)
        each += (blocks, 1) if split else (blocks,)
    return e.reshape(a.input, whole), e.reshape(a.scale, each), e.reshape(a.zeroPoint, each)


def _as_one_node(op_type: str, lower: Lower) -> Lower:
    """With ONNX's operator where it has a kernel."""

    def lower_either(e: Emitter, a: Arguments) -> Value:
        axis = _axis(a)
        if axis is None or a.scale.dtype is not FP32 or a.zeroPoint.dtype not in (UINT8, INT8):
            return e.reshape(lower(e, a), e.results[0].shape, a.input)  # type: ignore[arg-type]
        return e.node(op_type, a.input, _flat(e, a.scale), _flat(e, a.zeroPoint), axis=axis)

    return lower_either


# --- quantizeLinear


def _quantize_infer(a: Arguments, _scope: Scope) -> Operand:
    a.check_dtype("input", FLOATS)
    a.check_same_dtype("input", "scale")
    a.check_dtype("zeroPoint", _QUANTIZED)
    _check(a)
    return Operand(a.zeroPoint.dtype, a.input.shape)


def _quantize(e: Emitter, a: Arguments) -> Value:
    """In float64, which holds every sum that is not clamped."""
    value, scale, zero_point = _blocks(e, a)
    dtype, limits = zero_point.dtype, np.iinfo(zero_point.dtype.numpy)
    quotient = e.node("Round", e.node("Div", value, scale, result=value.operand), result=value.operand)
    shape = Operand(FP64, value.shape)
    moved = e.node("Add", e.cast(quotient, FP64), e.cast(zero_point, FP64), result=shape)
    low, high = (np.array(limit, np.float64) for limit in (limits.min, limits.max))
    return e.cast(e.node("Clip", moved, low, high, result=shape), dtype)


# --- dequantizeLinear


def _dequantize_infer(a: Arguments, _scope: Scope) -> Operand:
    a.check_dtype("input", _QUANTIZED)
    a.check_dtype("scale", FLOATS)
    a.check_same_dtype("input", "zeroPoint")
    _check(a)
    return Operand(a.scale.dtype, a.input.shape)


def _dequantize(e: Emitter, a: Arguments) -> Value:
    """The difference in integers that hold it, the product in float32: float16 holds few of the differences."""
    value, scale, zero_point = _blocks(e, a)
    wide = INT64 if value.dtype.itemsize == 4 else INT32
    difference = e.node(
        "Sub", e.cast(value, wide), e.cast(zero_point, wide), result=Operand(wide, value.shape)
    )
    product = Operand(FP32, value.shape)
    return e.cast(e.node("Mul", e.cast(difference, FP32), e.cast(scale, FP32), result=product), scale.dtype)


_PARAMS = "input:operand scale:operand zeroPoint:operand"
for _name, _op_type, _infer, _lower in (
    ("quantizeLinear", "QuantizeLinear", _quantize_infer, _quantize),
    ("dequantizeLinear", "DequantizeLinear", _dequantize_infer, _dequantize),
):
    # A first dimension that is open has a scale for all of it, or one for each of its entries.
    register(_name, _PARAMS, _infer, _as_one_node(_op_type, _lower), lambda a: a.input.batched)
