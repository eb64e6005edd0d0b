"""Element-wise operators: unary, binary, comparisons, cast, clamp, where."""

# ruff: noqa: A001, A002, N802, N803  # the specification's names

from __future__ import annotations

import math

import numpy as np

from tests.webnn.oracle.precision import Array, as_uint8, in_double


@in_double
def add(a: Array, b: Array) -> Array:
    return a + b


@in_double
def sub(a: Array, b: Array) -> Array:
    return a - b


@in_double
def mul(a: Array, b: Array) -> Array:
    return a * b


@in_double
def div(a: Array, b: Array) -> Array:
    """The quotient; of integers towards zero.

    The specification does not say what integers divided by 0 are: here 0.
    """
    if a.dtype.kind == "f":
        return a / b
    floored = a // b  # NumPy too gives 0 for a division by 0, and the smallest for itself by -1
    towards_zero = floored + ((floored * b != a) & ((a < 0) != (b < 0))).astype(a.dtype)
    return np.where(b == 0, a.dtype.type(0), towards_zero)


@in_double
def pow(a: Array, b: Array) -> Array:
    return np.power(a, b)


@in_double
def max(a: Array, b: Array) -> Array:
    return np.maximum(a, b)


@in_double
def min(a: Array, b: Array) -> Array:
    return np.minimum(a, b)


@in_double
def abs(input: Array) -> Array:
    return np.abs(input)


@in_double
def ceil(input: Array) -> Array:
    return np.ceil(input)


@in_double
def cos(input: Array) -> Array:
    return np.cos(input)


@in_double
def erf(input: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(input)


@in_double
def exp(input: Array) -> Array:
    return np.exp(input)


@in_double
def floor(input: Array) -> Array:
    return np.floor(input)


def identity(input: Array) -> Array:
    return input.copy()


@in_double
def log(input: Array) -> Array:
    return np.log(input)


@in_double
def neg(input: Array) -> Array:
    return -input


@in_double
def reciprocal(input: Array) -> Array:
    return 1 / input


@in_double
def roundEven(input: Array) -> Array:
    """The nearest integer; halves go to the even one."""
    return np.rint(input)


@in_double
def sign(input: Array) -> Array:
    return (input > 0).astype(input.dtype) - (input < 0).astype(input.dtype)


@in_double
def sin(input: Array) -> Array:
    return np.sin(input)


@in_double
def sqrt(input: Array) -> Array:
    return np.sqrt(input)


@in_double
def tan(input: Array) -> Array:
    return np.tan(input)


@as_uint8
def equal(a: Array, b: Array) -> Array:
    return a == b


@as_uint8
def notEqual(a: Array, b: Array) -> Array:
    return a != b


@as_uint8
def greater(a: Array, b: Array) -> Array:
    return a > b


@as_uint8
def greaterOrEqual(a: Array, b: Array) -> Array:
    return a >= b


@as_uint8
def lesser(a: Array, b: Array) -> Array:
    return a < b


@as_uint8
def lesserOrEqual(a: Array, b: Array) -> Array:
    return a <= b


@as_uint8
def logicalAnd(a: Array, b: Array) -> Array:
    return (a != 0) & (b != 0)


@as_uint8
def logicalOr(a: Array, b: Array) -> Array:
    return (a != 0) | (b != 0)


@as_uint8
def logicalXor(a: Array, b: Array) -> Array:
    return (a != 0) ^ (b != 0)


@as_uint8
def logicalNot(a: Array) -> Array:
    return a == 0


@as_uint8
def isNaN(a: Array) -> Array:
    return np.isnan(a)


@as_uint8
def isInfinite(a: Array) -> Array:
    return np.isinf(a)


def where(condition: Array, trueValue: Array, falseValue: Array) -> Array:
    return np.where(condition != 0, trueValue, falseValue)


def cast(input: Array, type: str) -> Array:
    """As another type: to floats the nearest value, from floats to integers towards zero; integers keep low bits.

    What floats that an integer type does not hold become is the implementation's: here the nearest value, NaN 0.
    """
    with np.errstate(all="ignore"):
        if input.dtype.kind != "f" or np.dtype(type).kind == "f":
            return input.astype(type)
        limits = np.iinfo(type)
        whole = np.trunc(np.nan_to_num(input.astype(np.float64), posinf=np.inf, neginf=-np.inf))
        inside = np.where((whole > limits.min) & (whole < limits.max), whole, 0).astype(type)
        return np.select(
            [whole <= limits.min, whole >= limits.max],
            [np.asarray(limits.min, type), np.asarray(limits.max, type)],
            inside,
        )


def clamp(input: Array, *, minValue: float | int | None = None, maxValue: float | int | None = None) -> Array:
    """Between the two; the bounds are rounded to the input's type first."""
    result = input
    if minValue is not None:
        result = np.maximum(result, input.dtype.type(minValue))
    if maxValue is not None:
        result = np.minimum(result, input.dtype.type(maxValue))
    return result
