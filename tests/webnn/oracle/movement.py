"""Operators that move elements and compute nothing."""

# ruff: noqa: A001, A002, N803  # the specification's names

from __future__ import annotations

import builtins
from collections.abc import Sequence

import numpy as np

from tests.webnn.oracle.precision import Array

_MODES = {"edge": "edge", "reflection": "reflect"}


def reshape(input: Array, newShape: Sequence[int]) -> Array:
    return input.reshape(tuple(newShape))


def transpose(input: Array, *, permutation: Sequence[int] | None = None) -> Array:
    return np.transpose(input, None if permutation is None else tuple(permutation))


def concat(inputs: Sequence[Array], axis: int) -> Array:
    return np.concatenate(list(inputs), axis)


def split(input: Array, splits: int | Sequence[int], *, axis: int = 0) -> list[Array]:
    """Parts along ``axis``: so many equal ones, or of these sizes."""
    if isinstance(splits, int):
        return np.split(input, splits, axis)
    return np.split(input, np.cumsum(splits)[:-1], axis)


def slice(
    input: Array, starts: Sequence[int], sizes: Sequence[int], *, strides: Sequence[int] | None = None
) -> Array:
    """Windows of ``sizes`` elements from ``starts``, of which every ``strides``-th element is taken."""
    steps = strides or [1] * input.ndim
    return input[
        tuple(
            builtins.slice(start, start + size, step)
            for start, size, step in zip(starts, sizes, steps, strict=True)
        )
    ]


def pad(
    input: Array,
    beginningPadding: Sequence[int],
    endingPadding: Sequence[int],
    *,
    mode: str = "constant",
    value: float | int = 0,
) -> Array:
    widths = list(zip(beginningPadding, endingPadding, strict=True))
    if mode == "constant":
        return np.pad(input, widths, "constant", constant_values=input.dtype.type(value))
    return np.pad(input, widths, _MODES[mode])  # type: ignore[call-overload]


def reverse(input: Array, *, axes: Sequence[int] | None = None) -> Array:
    return np.flip(input, None if axes is None else tuple(axes))


def tile(input: Array, repetitions: Sequence[int]) -> Array:
    return np.tile(input, tuple(repetitions))


def expand(input: Array, newShape: Sequence[int]) -> Array:
    return np.broadcast_to(input, tuple(newShape))


def triangular(input: Array, *, upper: bool = True, diagonal: int = 0) -> Array:
    return np.triu(input, diagonal) if upper else np.tril(input, diagonal)
