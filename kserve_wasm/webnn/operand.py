"""Operands: what is known of a tensor before there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from kserve_wasm.tensors import DTYPES, DType
from kserve_wasm.tensors.dtypes import FP16, FP32, INT8, INT32, INT64, UINT8, UINT32, UINT64

Dim: TypeAlias = int
"""A size; a negative number is a dimension whose size only the dispatch tells, the same for equal numbers."""

FLOATS = frozenset({FP32, FP16})
SIGNED = frozenset({FP32, FP16, INT32, INT64, INT8})
INTEGERS = frozenset({INT32, UINT32, INT64, UINT64, INT8, UINT8})
INDICES = frozenset({INT32, UINT32, INT64})
ALL = FLOATS | INTEGERS
"""The data types of WebNN (``MLOperandDataType``) that have a whole number of bytes."""
TENSORS = frozenset(dtype for dtype in DTYPES.values() if dtype.itemsize)
"""What an input may be: the types beyond WebNN's own are for ``cast`` alone."""

MAX_RANK = 8
"""Dimensions of an operand."""


class OperatorError(Exception):
    """An operator does not take what it was given; the message names it and its operands."""


@dataclass(frozen=True, slots=True)
class Operand:
    """Element type and shape of an operand; ``MLOperandDescriptor``.

    Attributes:
        dtype: the element type.
        shape: the dimensions; negative where open.
    """

    dtype: DType
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        """Whether every dimension has a size."""
        return min(self.shape, default=0) >= 0

    def __str__(self) -> str:
        return f"{self.dtype} {shown(self.shape)}"


def shown(shape: Iterable[Dim]) -> str:
    """A shape for messages: open dimensions are question marks."""
    return f"[{', '.join('?' if dim < 0 else str(dim) for dim in shape)}]"


_LAST_NAMED = -(1 << 31)


def is_named(dim: Dim) -> bool:
    """Whether an open dimension has a number that a guest gave it: dispatch knows its size before anything runs."""
    return _LAST_NAMED <= dim < 0


def shown_open(shape: Iterable[Dim]) -> str:
    """A shape for messages in which an input's open dimensions are told apart; those that follow from them are not."""
    return f"[{', '.join(str(dim) if dim >= 0 or is_named(dim) else '?' for dim in shape)}]"


class Scope:
    """What the inference of one graph knows of open dimensions.

    Args:
        named: the open dimensions of inputs.

    Attributes:
        named: those known so far.
        bounds: the largest size that an open dimension can have, where there is one.
    """

    def __init__(self, named: Iterable[Dim] = ()) -> None:
        self.named = set(named)
        self.bounds: dict[Dim, int] = {}
        self._next = 0

    def begin(self, operands: int) -> None:
        """Numbers new dimensions by the operands there are, so that they are the same whenever a step is inferred."""
        self._next = _LAST_NAMED - 1 - operands * MAX_RANK

    def open(self, bound: int | None = None) -> Dim:
        """A new open dimension."""
        dim, self._next = self._next, self._next - 1
        if bound is not None:
            self.bounds[dim] = bound
        return dim

    def bound(self, dim: Dim) -> int | None:
        """The largest size that a dimension can have; None where an open one has no bound."""
        return dim if dim >= 0 else self.bounds.get(dim)

    def derived(self, size: Callable[..., int], *dims: Dim) -> Dim:
        """The dimension whose size follows from others', by a function that grows with each of them."""
        sizes = [self.bound(dim) for dim in dims]
        if any(known is None for known in sizes):
            return self.open()
        return size(*sizes) if min(dims) >= 0 else self.open(size(*sizes))

    def least(self, operand: Operand) -> int:
        """Bytes that the operand can take, with 1 for open dimensions that have no bound."""
        sizes = [self.bound(dim) for dim in operand.shape]
        return math.prod([1 if size is None else size for size in sizes]) * operand.dtype.itemsize


def broadcast(a: tuple[Dim, ...], b: tuple[Dim, ...], scope: Scope) -> tuple[Dim, ...] | None:
    """The shape that two shapes broadcast to in both directions; None when they do not.

    An open dimension meets any other: whether the sizes then fit, dispatch finds.
    """
    rank = max(len(a), len(b))
    dims = []
    for x, y in zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True):
        if x == y or y == 1:
            dims.append(x)
        elif x == 1 or x < 0 <= y:
            dims.append(y)
        elif y < 0:
            # Where the run decides one of them, it may be 1, and the size that of the other.
            dims.append(x if x >= 0 or (is_named(x) and is_named(y)) else scope.derived(max, x, y))
        else:
            return None
    return tuple(dims)
