"""Element-wise operators: arithmetic, comparisons, logic, ``cast``, ``where`` and ``clamp``.

Source: Web Neural Network API, "Element-wise binary operations", "Element-wise logical operations", "Element-wise unary
operations", ``cast``, ``where``, ``clamp``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kserve_wasm.tensors import DType
from kserve_wasm.tensors.dtypes import BOOL, BY_ONNX, FP32, INT32, INT64, UINT8, UINT64
from kserve_wasm.webnn.operand import ALL, FLOATS, INTEGERS, SIGNED, TENSORS, Operand, Scope
from kserve_wasm.webnn.operator import Arguments, Lower, RowWise, register

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value


def broadcasts(*names: str) -> RowWise:
    """Row-wise where operands with the batch have all dimensions of the result, and others have 1 in its place."""

    def row_wise(a: Arguments) -> bool:
        operands = [getattr(a, name) for name in names]
        rank = max(operand.rank for operand in operands)
        return all(
            operand.rank == rank if operand.batched else operand.rank < rank or operand.shape[0] == 1
            for operand in operands
        )

    return row_wise


def always(_a: Arguments) -> bool:
    """Row-wise whatever the arguments."""
    return True


_Infer1: TypeAlias = Callable[[Arguments, Scope], Operand]


def _same(*dtypes: frozenset[DType]) -> _Infer1:
    """Two operands of one type among ``dtypes``, broadcast."""
    allowed = frozenset().union(*dtypes)

    def infer(a: Arguments, scope: Scope) -> Operand:
        a.check_dtype("a", allowed)
        a.check_same_dtype("a", "b")
        return Operand(a.a.dtype, a.broadcast(scope, "a", "b"))

    return infer


def _node(op_type: str) -> Lower:
    return lambda e, a: e.node(op_type, a.a, a.b)


def _divide(e: Emitter, a: Arguments) -> Value:
    """Integers divided by 0 give 0, and the smallest by -1 itself: the processor would stop the process at either."""
    dividend, divisor, result = a.a, a.b, e.results[0]
    dtype = result.dtype
    if dtype in FLOATS:
        return e.node("Div", dividend, divisor)
    minus_one = dtype in SIGNED
    if divisor.array is not None and not np.isin(divisor.array, (0, -1) if minus_one else (0,)).any():
        return e.node("Div", dividend, divisor)

    def is_(value: int) -> Value:
        number = np.array(value).astype(dtype.numpy)
        return e.node("Equal", divisor, number, result=Operand(BOOL, divisor.shape))

    one = np.array(1, dtype.numpy)
    special = is_(0)
    if minus_one:
        negative = is_(-1)
        special = e.node("Or", special, negative, result=Operand(BOOL, divisor.shape))
    safe = select(e, special, one, divisor, Operand(dtype, divisor.shape))
    quotient = e.node("Div", dividend, safe)
    if minus_one:
        zero = np.array(0, dtype.numpy)
        quotient = select(e, negative, e.node("Sub", zero, dividend), quotient, result)
    return select(e, is_(0), np.array(0, dtype.numpy), quotient, result)


def select(e: Emitter, condition: Value, true: Any, false: Any, result: Operand) -> Value:
    """ONNX's Where, for every type: it has no kernel for uint64."""
    if result.dtype is not UINT64:
        return e.node("Where", condition, true, false, result=result)
    as_int64 = [e.cast(e.value(value), INT64) for value in (true, false)]
    chosen = e.node("Where", condition, *as_int64, result=Operand(INT64, result.shape))
    return e.cast(chosen, UINT64)


def extreme(e: Emitter, op_type: str, a: Any, b: Any, result: Operand) -> Value:
    """ONNX's Max or Min, right for int64 too.

    ONNX Runtime's Max, Min, Clip and Sign, and ReduceMax and ReduceMin along the last dimension, compare int64 wrongly
    on x86 (its pull request 32475): none of them must be used for it.
    """
    if result.dtype is not INT64:
        return e.node(op_type, a, b, result=result)
    comparison = "Greater" if op_type == "Max" else "Less"
    first = e.node(comparison, a, b, result=Operand(BOOL, result.shape))
    return e.node("Where", first, a, b, result=result)


def _extreme(op_type: str) -> Lower:
    return lambda e, a: extreme(e, op_type, a.a, a.b, e.results[0])


def _power(e: Emitter, a: Arguments) -> Value:
    dtype = a.a.dtype
    if dtype in FLOATS or dtype in (INT32, INT64):
        return e.node("Pow", a.a, a.b)
    wide = INT64 if dtype.itemsize > 2 else INT32
    power = e.node("Pow", e.cast(a.a, wide), e.cast(a.b, wide), result=Operand(wide, e.results[0].shape))
    return e.cast(power, dtype)


for _name, _op_type in (("add", "Add"), ("sub", "Sub"), ("mul", "Mul")):
    register(_name, "a:operand b:operand", _same(ALL), _node(_op_type), broadcasts("a", "b"))
for _name, _op_type in (("max", "Max"), ("min", "Min")):
    register(_name, "a:operand b:operand", _same(ALL), _extreme(_op_type), broadcasts("a", "b"))
register("div", "a:operand b:operand", _same(ALL), _divide, broadcasts("a", "b"))
register("pow", "a:operand b:operand", _same(ALL), _power, broadcasts("a", "b"))


# --- Comparisons and logic: uint8, 0 or 1


def _compared(a: Arguments, scope: Scope) -> Operand:
    return Operand(UINT8, _same(ALL)(a, scope).shape)


def _compare(op_type: str, *, inverted: bool = False) -> Lower:
    def lower(e: Emitter, a: Arguments) -> Value:
        shape = e.results[0].shape
        found = e.node(op_type, a.a, a.b, result=Operand(BOOL, shape))
        if inverted:
            found = e.node("Not", found, result=Operand(BOOL, shape))
        return e.cast(found, UINT8)

    return lower


for _name, _op_type in (
    ("equal", "Equal"),
    ("greater", "Greater"),
    ("greaterOrEqual", "GreaterOrEqual"),
    ("lesser", "Less"),
    ("lesserOrEqual", "LessOrEqual"),
):
    register(_name, "a:operand b:operand", _compared, _compare(_op_type), broadcasts("a", "b"))
register("notEqual", "a:operand b:operand", _compared, _compare("Equal", inverted=True), broadcasts("a", "b"))


def _logical(op_type: str) -> Lower:
    def lower(e: Emitter, a: Arguments) -> Value:
        result = Operand(BOOL, e.results[0].shape)
        return e.cast(e.node(op_type, e.boolean(a.a), e.boolean(a.b), result=result), UINT8)

    return lower


for _name, _op_type in (("logicalAnd", "And"), ("logicalOr", "Or"), ("logicalXor", "Xor")):
    register(
        _name, "a:operand b:operand", _same(frozenset({UINT8})), _logical(_op_type), broadcasts("a", "b")
    )


# --- Of one operand


def unary(*dtypes: frozenset[DType], result: DType | None = None) -> _Infer1:
    """One operand ``input`` of a type among ``dtypes``, whose shape the result has."""
    allowed = frozenset().union(*dtypes)

    def infer(a: Arguments, _scope: Scope) -> Operand:
        a.check_dtype("input", allowed)
        return Operand(result or a.input.dtype, a.input.shape)

    return infer


def _apply(op_type: str) -> Lower:
    return lambda e, a: e.node(op_type, a.input)


for _name, _op_type, _dtypes in (
    ("abs", "Abs", SIGNED),
    ("ceil", "Ceil", FLOATS),
    ("cos", "Cos", FLOATS),
    ("erf", "Erf", FLOATS),
    ("exp", "Exp", FLOATS),
    ("floor", "Floor", FLOATS),
    ("identity", "Identity", ALL),
    ("log", "Log", FLOATS),
    ("neg", "Neg", SIGNED),
    ("reciprocal", "Reciprocal", FLOATS),
    ("roundEven", "Round", FLOATS),
    ("sin", "Sin", FLOATS),
    ("sqrt", "Sqrt", FLOATS),
    ("tan", "Tan", FLOATS),
):
    register(_name, "input:operand", unary(_dtypes), _apply(_op_type), always)


def _sign(e: Emitter, a: Arguments) -> Value:
    if a.input.dtype is not INT64:
        return e.node("Sign", a.input)
    truth = Operand(BOOL, a.input.shape)
    zero = np.array(0, np.int64)
    above, below = (e.cast(e.node(op, a.input, zero, result=truth), INT64) for op in ("Greater", "Less"))
    return e.node("Sub", above, below)


register("sign", "input:operand", unary(SIGNED), _sign, always)


def _tested(op_type: str) -> Lower:
    return lambda e, a: e.cast(e.node(op_type, a.input, result=Operand(BOOL, a.input.shape)), UINT8)


register("isNaN", "input:operand", unary(FLOATS, result=UINT8), _tested("IsNaN"), always)
register("isInfinite", "input:operand", unary(FLOATS, result=UINT8), _tested("IsInf"), always)


def _not(e: Emitter, a: Arguments) -> Value:
    return e.cast(e.node("Not", e.boolean(a.input), result=Operand(BOOL, a.input.shape)), UINT8)


register("logicalNot", "input:operand", unary(frozenset({UINT8})), _not, always)


# --- cast, where, clamp


def _cast_infer(a: Arguments, _scope: Scope) -> Operand:
    dtype = BY_ONNX.get(a.type)
    if dtype not in TENSORS:
        a.fail(f"{a.type} is no element type: see the KW_* numbers")
    return Operand(dtype, a.input.shape)


_LIMITS = {dtype: np.iinfo(dtype.numpy) for dtype in INTEGERS}


def _cast(e: Emitter, a: Arguments) -> Value:
    """What is beyond an integer type becomes its nearest value, and NaN 0: C++ leaves that to the processor."""
    value, dtype = a.input, e.results[0].dtype
    if value.dtype in FLOATS and dtype in INTEGERS:
        return _float_to_integer(e, value, dtype)
    made = e.cast(value, dtype)
    e.casts[made.name] = value
    return made


def _float_to_integer(e: Emitter, value: Value, dtype: DType) -> Value:
    value = e.cast(value, FP32)
    shape = value.shape
    limits = _LIMITS[dtype]
    low = np.float32(limits.min)
    high = (
        np.nextafter(np.float32(limits.max), np.float32(0))
        if limits.max >= 1 << 24
        else np.float32(limits.max)
    )
    number = e.node("IsNaN", value, result=Operand(BOOL, shape))
    zero = np.array(0, np.float32)
    finite = e.node("Where", number, zero, value, result=value.operand)
    clipped = e.node("Clip", finite, np.array(low), np.array(high), result=value.operand)
    made = e.cast(clipped, dtype)
    if limits.max >= 1 << 24:
        largest = np.array(limits.max, dtype.numpy)
        over = e.node("Greater", finite, np.array(high), result=Operand(BOOL, shape))
        made = select(e, over, largest, made, made.operand)
    return made


def _clamp_infer(a: Arguments, scope: Scope) -> Operand:
    if math.isnan(a.minValue) or math.isnan(a.maxValue) or a.minValue > a.maxValue:
        a.fail(f"minValue must be at most maxValue, got {a.minValue:g} and {a.maxValue:g}")
    return unary(ALL)(a, scope)


def _clamp(e: Emitter, a: Arguments) -> Value:
    dtype = a.input.dtype
    low, high = (np.array(held(dtype, bound), dtype.numpy) for bound in (a.minValue, a.maxValue))
    if dtype is not INT64:
        return e.node("Clip", a.input, low, high)
    return extreme(e, "Min", extreme(e, "Max", a.input, low, a.input.operand), high, a.input.operand)


def held(dtype: DType, value: float) -> Any:
    """The value of the type that is nearest to ``value``."""
    if dtype in FLOATS:
        with np.errstate(over="ignore"):
            return dtype.numpy.type(value)
    limits = _LIMITS[dtype]
    if value <= limits.min:
        return limits.min
    return limits.max if value >= limits.max else int(value)


def _where_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_dtype("condition", (UINT8,))
    a.check_dtype("trueValue", ALL)
    a.check_same_dtype("trueValue", "falseValue")
    return Operand(a.trueValue.dtype, a.broadcast(scope, "condition", "trueValue", "falseValue"))


def _where(e: Emitter, a: Arguments) -> Value:
    return select(e, e.boolean(a.condition), a.trueValue, a.falseValue, e.results[0])


register("cast", "input:operand type:u32", _cast_infer, _cast, always)
register("clamp", "input:operand minValue:f64 maxValue:f64", _clamp_infer, _clamp, always)
register(
    "where",
    "condition:operand trueValue:operand falseValue:operand",
    _where_infer,
    _where,
    broadcasts("condition", "trueValue", "falseValue"),
)
