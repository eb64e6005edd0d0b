"""Reductions, and where the extremes are.

Source: Web Neural Network API, "Reduction operations", "argMin/argMax operations".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kserve_wasm.tensors import DType
from kserve_wasm.tensors.dtypes import BY_ONNX, INT32, INT64, UINT32, UINT64
from kserve_wasm.webnn.operand import ALL, FLOATS, INTEGERS, SIGNED, Dim, Operand, Scope
from kserve_wasm.webnn.operator import Arguments, Infer, Lower, register
from kserve_wasm.webnn.operators.ordering import ordered, restored

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

_SUMMED = FLOATS | {INT32, UINT32, INT64, UINT64}


def _reduced(shape: tuple[Dim, ...], axes: Iterable[int], keep: bool) -> tuple[Dim, ...]:
    gone = set(axes)
    return tuple(1 if axis in gone else dim for axis, dim in enumerate(shape) if keep or axis not in gone)


def _infer(dtypes: frozenset[DType]) -> Infer:
    def infer(a: Arguments, _scope: Scope) -> Operand:
        a.check_dtype("input", dtypes)
        return Operand(
            a.input.dtype, _reduced(a.input.shape, a.axes("axes", a.input.rank), a.keepDimensions != 0)
        )

    return infer


def _reduce(op_type: str) -> Lower:
    def lower(e: Emitter, a: Arguments) -> Value:
        value: Value = a.input
        axes, keep = tuple(sorted(a.axes("axes", value.rank))), int(a.keepDimensions != 0)
        if not axes:
            # The function is applied to each element then; ONNX would leave them as they are.
            axes, keep = (value.rank,), 0
            wide = Operand(value.dtype, (*value.shape, 1))
            value = e.node("Unsqueeze", value, np.array(axes), result=wide)
        if value.dtype in FLOATS:
            return e.node(op_type, value, np.array(axes), keepdims=keep)
        if op_type == "ReduceProd":
            made = _product(e, value, axes)
        elif op_type not in ("ReduceMax", "ReduceMin"):
            return _sum(e, op_type, value, axes, keep)
        else:
            keys = ordered(e, value)
            if keys.dtype is not INT64:
                result = Operand(keys.dtype, e.results[0].shape)
                made = e.node(op_type, keys, np.array(axes), keepdims=keep, result=result)
                return restored(e, made, value.dtype)
            made = restored(e, _extreme(e, op_type, keys, axes), value.dtype)
        return made if keep else e.node("Squeeze", made, np.array(axes))

    return lower


def _extreme(e: Emitter, op_type: str, value: Value, axes: Iterable[int]) -> Value:
    """Of int64, which ReduceMax and ReduceMin compare wrongly: see :func:`~.elementwise.extreme`."""
    for axis in axes:
        one = Operand(value.dtype, _reduced(value.shape, (axis,), keep=True))
        found = e.nodes(
            "TopK",
            value,
            np.array([1]),
            results=(one, Operand(INT64, one.shape)),
            axis=axis,
            largest=int(op_type == "ReduceMax"),
        )
        value = found[0]
    return value


def _sum(e: Emitter, op_type: str, value: Value, axes: tuple[int, ...], keep: int) -> Value:
    """Of integers, which wrap around: ONNX Runtime adds up doubles and saturates, but not in products of matrices."""
    if op_type == "ReduceL1" and value.dtype in SIGNED:
        value = e.node("Abs", value, result=value.operand)
    elif op_type == "ReduceSumSquare":
        value = e.node("Mul", value, value, result=value.operand)
    order = [*(axis for axis in range(value.rank) if axis not in axes), *axes]
    if order != sorted(order):
        moved = Operand(value.dtype, tuple(value.shape[axis] for axis in order))
        value = e.node("Transpose", value, perm=order, result=moved)
    for _ in axes:
        size = value.shape[-1:]
        ones: Value | npt.NDArray[Any] = np.ones(max(size[0], 1), value.dtype.numpy)
        if size[0] < 0:
            ones = e.node("Expand", ones, e.size(size[0], value), result=Operand(value.dtype, size))
        value = e.node("MatMul", value, ones, result=Operand(value.dtype, value.shape[:-1]))
    return e.node("Unsqueeze", value, np.array(axes)) if keep else value


def _product(e: Emitter, value: Value, axes: Iterable[int]) -> Value:
    """Of integers, which wrap around: of ONNX Runtime's products, scattered ones do."""
    for axis in axes:
        one = Operand(value.dtype, _reduced(value.shape, (axis,), keep=True))
        ones = e.node("Expand", np.array(1, value.dtype.numpy), e.shape_vector(one.shape, value), result=one)
        places = e.cast(e.node("Sub", value, value, result=value.operand), INT64)
        value = e.node("ScatterElements", ones, places, value, axis=axis, reduction="mul", result=one)
    return value


for _name, _op_type, _dtypes in (
    ("reduceL1", "ReduceL1", _SUMMED),
    ("reduceL2", "ReduceL2", FLOATS),
    ("reduceLogSum", "ReduceLogSum", FLOATS),
    ("reduceLogSumExp", "ReduceLogSumExp", FLOATS),
    ("reduceMax", "ReduceMax", ALL),
    ("reduceMean", "ReduceMean", FLOATS),
    ("reduceMin", "ReduceMin", ALL),
    ("reduceProduct", "ReduceProd", _SUMMED),
    ("reduceSum", "ReduceSum", _SUMMED),
    ("reduceSumSquare", "ReduceSumSquare", _SUMMED),
):
    register(
        _name,
        "input:operand axes:u32s? keepDimensions:u32",
        _infer(_dtypes),
        _reduce(_op_type),
        lambda a: 0 not in a.axes("axes", a.input.rank),
    )


# --- argMin, argMax


def _arg_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_dtype("input", ALL)
    a.check_axis("axis", a.input.rank)
    dtype = BY_ONNX.get(a.outputDataType, INT32) if a.outputDataType else INT32
    if (a.outputDataType and a.outputDataType not in BY_ONNX) or dtype not in INTEGERS:
        names = ", ".join(
            f"KW_{allowed} ({allowed.onnx})" for allowed in sorted(INTEGERS, key=lambda d: d.onnx)
        )
        a.fail(f"outputDataType must be one of {names}, got {a.outputDataType}")
    size = scope.bound(a.input.shape[a.axis])
    if size == 0:
        a.fail("input must not be empty along axis")
    if size is not None and size > np.iinfo(dtype.numpy).max:
        a.fail(f"outputDataType must hold every position along axis, of which there are {size}; got {dtype}")
    return Operand(dtype, _reduced(a.input.shape, (a.axis,), a.keepDimensions != 0))


def _arg(op_type: str) -> Lower:
    def lower(e: Emitter, a: Arguments) -> Value:
        result = e.results[0]
        found = e.node(
            op_type,
            ordered(e, a.input),
            axis=a.axis,
            keepdims=int(a.keepDimensions != 0),
            result=Operand(INT64, result.shape),
        )
        return e.cast(found, result.dtype)

    return lower


for _name, _op_type in (("argMin", "ArgMin"), ("argMax", "ArgMax")):
    register(
        _name,
        "input:operand axis:u32 keepDimensions:u32 outputDataType:u32",
        _arg_infer,
        _arg(_op_type),
        lambda a: a.axis != 0,
    )
