"""Linear quantization, blockwise."""

# ruff: noqa: A002, N802, N803  # the specification's names

from __future__ import annotations

import numpy as np

from tests.webnn.oracle.precision import Array


def quantizeLinear(input: Array, scale: Array, zeroPoint: Array) -> Array:
    """``clamp(roundEven(input / scale) + zeroPoint)`` to the range of the zero point's type.

    The quotient is rounded to the input's type: there, a tie is a tie.
    """
    limits = np.iinfo(zeroPoint.dtype)
    with np.errstate(all="ignore"):
        quotient = np.rint(input / _blocks(scale, input.shape)).astype(np.float64)
    result = quotient + _blocks(zeroPoint, input.shape).astype(np.float64)
    return np.clip(result, limits.min, limits.max).astype(zeroPoint.dtype)


def dequantizeLinear(input: Array, scale: Array, zeroPoint: Array) -> Array:
    """``(input - zeroPoint) * scale``."""
    difference = input.astype(np.float64) - _blocks(zeroPoint, input.shape).astype(np.float64)
    return (difference * _blocks(scale, input.shape).astype(np.float64)).astype(scale.dtype)


def _blocks(parameter: Array, shape: tuple[int, ...]) -> Array:
    """``parameter`` with each element repeated so often that it has ``shape``."""
    for axis, size in enumerate(shape):
        parameter = np.repeat(parameter, size // parameter.shape[axis], axis)
    return parameter
