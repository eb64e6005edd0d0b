"""Reductions, positions of extremes, and running sums."""

# ruff: noqa: A002, N802, N803, N816  # the specification's names

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.webnn.oracle.precision import Array, in_double

Axes = Sequence[int] | None
"""Dimensions to reduce: None is all of them, and none leaves each element a reduction of its own."""


def _reduction(name: str, reduced: Callable[[Array, tuple[int, ...], bool], Array]) -> Callable[..., Array]:
    def reduce(input: Array, *, axes: Axes = None, keepDimensions: bool = False) -> Array:
        return reduced(input, tuple(range(input.ndim) if axes is None else axes), keepDimensions)

    reduce.__name__ = name
    return in_double(reduce)


def _sum(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    return np.sum(x, axes, dtype=x.dtype, keepdims=keep)


reduceL1 = _reduction("reduceL1", lambda x, axes, keep: _sum(np.abs(x), axes, keep))
reduceL2 = _reduction("reduceL2", lambda x, axes, keep: np.sqrt(_sum(x * x, axes, keep)))
reduceLogSum = _reduction("reduceLogSum", lambda x, axes, keep: np.log(_sum(x, axes, keep)))
reduceLogSumExp = _reduction(
    "reduceLogSumExp", lambda x, axes, keep: np.logaddexp.reduce(x, axes, keepdims=keep)
)
reduceMax = _reduction("reduceMax", lambda x, axes, keep: np.max(x, axes, keepdims=keep))
reduceMean = _reduction("reduceMean", lambda x, axes, keep: np.mean(x, axes, keepdims=keep))
reduceMin = _reduction("reduceMin", lambda x, axes, keep: np.min(x, axes, keepdims=keep))
reduceProduct = _reduction(
    "reduceProduct", lambda x, axes, keep: np.prod(x, axes, dtype=x.dtype, keepdims=keep)
)
reduceSum = _reduction("reduceSum", _sum)
reduceSumSquare = _reduction("reduceSumSquare", lambda x, axes, keep: _sum(x * x, axes, keep))


def argMin(input: Array, axis: int, *, keepDimensions: bool = False, outputDataType: str = "int32") -> Array:
    """Where the least element is; of equal ones, the first (the specification leaves it open)."""
    return np.argmin(input, axis, keepdims=keepDimensions).astype(outputDataType)


def argMax(input: Array, axis: int, *, keepDimensions: bool = False, outputDataType: str = "int32") -> Array:
    """Where the greatest element is; of equal ones, the first (the specification leaves it open)."""
    return np.argmax(input, axis, keepdims=keepDimensions).astype(outputDataType)


@in_double
def cumulativeSum(input: Array, axis: int, *, exclusive: bool = False, reversed: bool = False) -> Array:
    x = np.flip(input, axis) if reversed else input
    sums = np.cumsum(x, axis, dtype=x.dtype)
    if exclusive:
        sums = sums - x
    return np.flip(sums, axis) if reversed else sums
