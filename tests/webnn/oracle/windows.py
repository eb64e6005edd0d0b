"""Pooling and resampling."""

# ruff: noqa: A002, N802, N803, N806  # the specification's names

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from tests.webnn.oracle.precision import Array, arranged, in_double


@in_double
def averagePool2d(input: Array, **options: Any) -> Array:
    """The mean of the elements in each window; padding is no element."""
    return _pool2d(np.mean, input, **options)


@in_double
def l2Pool2d(input: Array, **options: Any) -> Array:
    """The root of the sum of squares in each window."""
    return _pool2d(lambda window, axis: np.sqrt(np.sum(np.square(window), axis)), input, **options)


@in_double
def maxPool2d(input: Array, **options: Any) -> Array:
    """The greatest element in each window; padding is no element."""
    return _pool2d(np.max, input, **options)


def _pool2d(
    reduced: Callable[..., Array],
    input: Array,
    *,
    windowDimensions: Sequence[int] | None = None,
    padding: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    layout: str = "nchw",
    outputShapeRounding: str = "floor",
    outputSizes: Sequence[int] | None = None,
) -> Array:
    """Every window with its elements inside the input; one without any is a ValueError."""
    x = arranged(input, layout, "nchw")
    windowDimensions = windowDimensions or x.shape[2:]
    rounding = math.floor if outputShapeRounding == "floor" else math.ceil
    places = []
    for n in range(2):
        size, taps, first = (
            x.shape[2 + n],
            np.arange(windowDimensions[n]) * dilations[n],
            padding[2 * n],
        )
        count = rounding(Fraction(int(size + first + padding[2 * n + 1] - taps[-1] - 1), strides[n])) + 1
        if outputSizes is not None:
            count = outputSizes[n]
        inside = [taps + position * strides[n] - first for position in range(count)]
        places.append([place[(place >= 0) & (place < size)] for place in inside])
    result = [
        [reduced(x[:, :, rows][:, :, :, columns], axis=(2, 3)) for columns in places[1]] for rows in places[0]
    ]
    return arranged(np.moveaxis(np.array(result), (0, 1), (2, 3)), "nchw", layout)


@in_double
def resample2d(
    input: Array,
    *,
    mode: str = "nearest-neighbor",
    scales: Sequence[float] = (1.0, 1.0),
    sizes: Sequence[int] | None = None,
    axes: Sequence[int] = (2, 3),
) -> Array:
    """Half-pixel centres, clamped to the input; the scale is always the ratio of the sizes."""
    result = input
    for axis, scale, size in zip(axes, scales, sizes or (None, None), strict=True):
        before = input.shape[axis]
        after = size or math.floor(before * scale)
        places = [_coordinate(n, before, after) for n in range(after)]
        if mode == "nearest-neighbor":
            result = np.take(result, [math.ceil(place - Fraction(1, 2)) for place in places], axis)
        else:
            shape = [1] * input.ndim
            shape[axis] = after
            share = np.array([float(place - math.floor(place)) for place in places]).reshape(shape)
            lower, upper = (
                np.take(result, [to_integer(place) for place in places], axis)
                for to_integer in (math.floor, math.ceil)
            )
            result = lower * (1 - share) + upper * share
    return result


def _coordinate(position: int, before: int, after: int) -> Fraction:
    """Where an element of the output lies in the input, as the exact number that it is."""
    place = Fraction(2 * position + 1, 2) * Fraction(before, after) - Fraction(1, 2)
    return min(max(place, Fraction(0)), Fraction(before - 1))
