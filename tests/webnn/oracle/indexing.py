"""Gathering and scattering by indices; negative ones count from the end, those out of range are an IndexError."""

# ruff: noqa: A002, N802  # the specification's names

from __future__ import annotations

import numpy as np

from tests.webnn.oracle.precision import Array


def gather(input: Array, indices: Array, *, axis: int = 0) -> Array:
    return np.take(input, indices.astype(np.int64), axis)


def gatherElements(input: Array, indices: Array, *, axis: int = 0) -> Array:
    return np.take_along_axis(input, indices.astype(np.int64), axis)


def gatherND(input: Array, indices: Array) -> Array:
    """Slices of ``input`` at coordinates of its first dimensions, which are the last dimension of ``indices``."""
    return input[tuple(np.moveaxis(indices.astype(np.int64), -1, 0))]


def scatterElements(input: Array, indices: Array, updates: Array, *, axis: int = 0) -> Array:
    result = input.copy()
    np.put_along_axis(result, indices.astype(np.int64), updates, axis)
    return result


def scatterND(input: Array, indices: Array, updates: Array) -> Array:
    result = input.copy()
    result[tuple(np.moveaxis(indices.astype(np.int64), -1, 0))] = updates
    return result
