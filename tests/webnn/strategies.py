"""Hypothesis strategies that the operators' own strategies are made of: shapes, element types, elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from tests.webnn.oracle.precision import Array
from tests.webnn.uses import Use

FLOATS = ("float32", "float16")
SIGNED = ("float32", "float16", "int32", "int64", "int8")
INTEGERS = ("int32", "uint32", "int64", "uint64", "int8", "uint8")
WIDE = ("float32", "float16", "int32", "uint32", "int64", "uint64")
"""The types that sums and products are defined for."""
ALL = FLOATS + INTEGERS
INDICES = ("int32", "uint32", "int64")

Draw = Callable[[st.SearchStrategy[Any]], Any]
T = TypeVar("T")

MAX_ELEMENTS = 200

sizes = st.integers(1, 5)


def shapes(least: int = 0, most: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes with ``least`` to ``most`` dimensions and few elements."""
    lists = st.lists(sizes, min_size=least, max_size=most)
    return lists.map(tuple).filter(lambda shape: math.prod(shape) <= MAX_ELEMENTS)


@st.composite
def broadcast_shapes(draw: Draw, number: int, most: int = 4) -> list[tuple[int, ...]]:
    """Shapes that broadcast together in both directions."""
    whole = draw(shapes(most=most))
    made = []
    for _ in range(number):
        kept = whole[draw(st.integers(0, len(whole))) :]
        made.append(tuple(1 if draw(st.booleans()) and draw(st.booleans()) else dim for dim in kept))
    return made


@st.composite
def narrower(draw: Draw, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that broadcasts to ``shape``."""
    kept = shape[draw(st.integers(0, len(shape))) :]
    return tuple(draw(st.sampled_from([1, dim])) for dim in kept)


@st.composite
def blocked(draw: Draw, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that broadcasts blockwise to ``shape``: every dimension divides its."""
    return tuple(draw(st.sampled_from([n for n in range(1, dim + 1) if dim % n == 0])) for dim in shape)


@st.composite
def elements(
    draw: Draw,
    dtype: str,
    shape: Sequence[int],
    low: float = -8.0,
    high: float = 8.0,
    specials: Sequence[float] = (),
) -> Array:
    """Elements from ``low`` to ``high``, some of them small integers, halves or ``specials``."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = np.dtype(dtype).kind
    if kind == "f":
        array = rng.uniform(low, high, shape)
        array = np.where(rng.random(shape) < 0.2, np.clip(np.rint(2 * array) / 2, low, high), array)
        if specials and draw(st.booleans()):
            array = np.where(rng.random(shape) < 0.3, rng.choice(specials, shape), array)
        with np.errstate(over="ignore"):  # some specials are beyond float16
            return np.asarray(array, dtype)
    limits = np.iinfo(dtype)
    first, last = max(limits.min, math.ceil(low)), min(limits.max, math.floor(high))
    return np.asarray(rng.integers(first, last, shape, dtype, endpoint=True))


@st.composite
def numbers(draw: Draw, dtype: str, shape: Sequence[int]) -> Array:
    """Floats of ordinary size; integers of any, so that arithmetic wraps."""
    if np.dtype(dtype).kind == "f":
        return draw(elements(dtype, shape))
    limits = np.iinfo(dtype)
    span = draw(st.sampled_from([(-9, 9), (limits.min, limits.max)]))
    return draw(elements(dtype, shape, *span))


@st.composite
def bits(draw: Draw, dtype: str, shape: Sequence[int]) -> Array:
    """Elements of every bit pattern but NaN's: what operators that only move elements must leave alone."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = math.prod(shape)
    array = np.frombuffer(rng.bytes(count * np.dtype(dtype).itemsize), dtype).reshape(tuple(shape))
    return np.where(np.isnan(array), np.asarray(0, dtype), array) if array.dtype.kind == "f" else array


def subsets(rank: int) -> st.SearchStrategy[list[int]]:
    """Different axes of ``rank`` dimensions, in any order."""
    return st.lists(st.integers(0, rank - 1), unique=True, max_size=rank) if rank else st.just([])


def sometimes(strategy: st.SearchStrategy[T]) -> st.SearchStrategy[T | None]:
    """The strategy's, or None: then an option is left away."""
    return st.none() | strategy


def options(**values: Any) -> dict[str, Any]:
    """The options that are given: those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


@st.composite
def placed(draw: Draw, uses: st.SearchStrategy[Use]) -> Use:
    """A use some of whose operands are constants."""
    use: Use = draw(uses)
    count = len(use.operands())
    return replace(use, constants=frozenset(draw(st.lists(st.integers(0, count - 1), max_size=count - 1))))


@st.composite
def opened(draw: Draw, uses: st.SearchStrategy[Use]) -> Use:
    """A use some of whose operands have open dimensions."""
    use: Use = draw(uses)
    places = [(n, axis) for n, array in enumerate(use.operands()) for axis in range(array.ndim)]
    assume(places)
    same = draw(st.frozensets(st.integers(0, 3)))
    return replace(use, open=draw(st.frozensets(st.sampled_from(places), min_size=1)), same=same)


@st.composite
def batched(draw: Draw, uses: st.SearchStrategy[Use]) -> Use:
    """A use of operands that have one open first dimension, and constants."""
    use: Use = draw(uses)
    operands = use.operands()
    sizes = sorted({array.shape[0] for array in operands if array.ndim})
    assume(sizes)
    size = draw(st.sampled_from(sizes))
    of_batch = [n for n, array in enumerate(operands) if array.ndim and array.shape[0] == size]
    chosen = set(draw(st.lists(st.sampled_from(of_batch), min_size=1)))
    return replace(
        use,
        constants=frozenset(range(len(operands))) - chosen,
        open=frozenset((n, 0) for n in chosen),
        same=draw(st.frozensets(st.just(0))),
    )
