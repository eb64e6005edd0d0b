"""Normalizations."""

# ruff: noqa: A002, N802  # the specification's names

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.webnn.oracle.precision import Array, in_double


@in_double
def batchNormalization(
    input: Array,
    mean: Array,
    variance: Array,
    *,
    scale: Array | None = None,
    bias: Array | None = None,
    axis: int = 1,
    epsilon: float = 1e-5,
) -> Array:
    x = np.moveaxis(input, axis, -1)
    x = (x - mean) / np.sqrt(variance + epsilon)
    x = x * (1 if scale is None else scale) + (0 if bias is None else bias)
    return np.moveaxis(x, -1, axis)


@in_double
def instanceNormalization(
    input: Array,
    *,
    scale: Array | None = None,
    bias: Array | None = None,
    epsilon: float = 1e-5,
    layout: str = "nchw",
) -> Array:
    channel = layout.index("c")
    x = _normalized(input, tuple(layout.index(letter) for letter in "hw"), epsilon)
    x = np.moveaxis(x, channel, -1)
    x = x * (1 if scale is None else scale) + (0 if bias is None else bias)
    return np.moveaxis(x, -1, channel)


@in_double
def layerNormalization(
    input: Array,
    *,
    scale: Array | None = None,
    bias: Array | None = None,
    axes: Sequence[int] | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """Over ``axes``, by default all but the first; scale and bias have those dimensions in the order of ``axes``."""
    axes = tuple(range(1, input.ndim) if axes is None else axes)
    # The normalized axes at the end, in the order of the attribute: there, scale and bias broadcast as they are.
    x = np.moveaxis(input, axes, range(input.ndim - len(axes), input.ndim))
    x = _normalized(x, tuple(range(input.ndim - len(axes), input.ndim)), epsilon)
    x = x * (1 if scale is None else scale) + (0 if bias is None else bias)
    return np.moveaxis(x, range(input.ndim - len(axes), input.ndim), axes)


def _normalized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centred = x - np.mean(x, axes, keepdims=True)
    variance = np.mean(np.square(centred), axes, keepdims=True)
    return centred / np.sqrt(variance + epsilon)
