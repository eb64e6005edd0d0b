"""Gathering and scattering by indices.

Indices count from the end where they are negative, and are held within their dimension: kernels read and write nowhere
else whatever a client sends.

Source: Web Neural Network API, ``gather``, ``gatherElements``, ``gatherND``, ``scatterElements``, ``scatterND``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kserve_wasm.tensors.dtypes import INT64, UINT32
from kserve_wasm.webnn.operand import ALL, INDICES, Dim, Operand, Scope
from kserve_wasm.webnn.operator import Arguments, register
from kserve_wasm.webnn.operators.elementwise import extreme

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value


def _check(a: Arguments, scope: Scope, sizes: Sequence[Dim], *, decided: bool = False) -> None:
    """Checks operands and the sizes that indices are for; ``decided`` where the run may decide those."""
    a.check_dtype("input", ALL)
    a.check_dtype("indices", INDICES)
    if 0 in sizes:
        a.fail("input must not be empty where indices are for it")
    if not decided and any(size in scope.bounds for size in sizes):
        # It may be 0, and not every kernel of every device sees that there is nothing to read.
        a.fail("only gather takes indices for a dimension whose size the run decides")


def _check_depth(a: Arguments) -> int:
    """How many dimensions of ``input`` the indices in the last dimension of ``indices`` are for."""
    a.check_rank("input", 1, 8)
    a.check_rank("indices", 1, 8)
    depth: int = a.indices.shape[-1]
    if not 0 < depth <= a.input.rank:
        a.fail(f"indices must have a last dimension of a known size from 1 to {a.input.rank}")
    return depth


def _held(e: Emitter, a: Arguments, axis: int) -> Value:
    """The indices, from -size to size - 1."""
    size, indices = a.input.shape[axis], a.indices
    if size >= 0:
        if indices.array is not None:
            return e.constant(indices.array.astype(np.int64).clip(-size, size - 1))
        indices = e.cast(indices, INT64) if indices.dtype is UINT32 else indices
        low, high = (np.array(bound, indices.dtype.numpy) for bound in (-size, size - 1))
        return _between(e, indices, low, high)
    number = Operand(INT64, ())
    indices = e.cast(indices, INT64)
    end = e.node("Squeeze", e.size(size, a.input), result=number)
    last = e.node("Sub", end, np.array(1), result=number)
    return _between(e, indices, e.node("Neg", end, result=number), last)


def _between(e: Emitter, indices: Value, low: Any, high: Any) -> Value:
    indices = extreme(e, "Max", indices, low, indices.operand)
    return extreme(e, "Min", indices, high, indices.operand)


def _held_deep(e: Emitter, a: Arguments) -> Value:
    """The indices, each from -size to size - 1 of its own dimension; int64, which is all that ONNX takes here."""
    sizes = a.input.shape[: a.indices.shape[-1]]
    end = e.shape_vector(sizes, a.input)
    if isinstance(end, np.ndarray):
        if a.indices.array is not None:
            return e.constant(a.indices.array.astype(np.int64).clip(-end, end - 1))
        return _between(e, e.cast(a.indices, INT64), -end, end - 1)
    low = e.node("Neg", end, result=end.operand)
    high = e.node("Sub", end, np.array(1), result=end.operand)
    return _between(e, e.cast(a.indices, INT64), low, high)


def _along(a: Arguments) -> tuple[Dim, ...]:
    """The shape of ``input`` with the size of ``indices`` along ``axis``."""
    a.check_rank("input", 1, 8)
    a.check_axis("axis", a.input.rank)
    a.check_rank("indices", a.input.rank)
    shape: tuple[Dim, ...] = a.input.shape
    return (*shape[: a.axis], a.indices.shape[a.axis], *shape[a.axis + 1 :])


# --- Gathering


def _gather_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_axis("axis", a.input.rank)
    _check(a, scope, (a.input.shape[a.axis],), decided=True)
    shape = (*a.input.shape[: a.axis], *a.indices.shape, *a.input.shape[a.axis + 1 :])
    return Operand(a.input.dtype, shape)


def _gather_rows(a: Arguments) -> bool:
    """Each row is gathered from, or each row of indices gathers from the same."""
    return bool(a.indices.batched != a.input.batched and a.input.batched == (a.axis > 0))


def _elements_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_shape("indices", _along(a))
    _check(a, scope, (a.input.shape[a.axis],))
    return Operand(a.input.dtype, a.indices.shape)


def _nd_infer(a: Arguments, scope: Scope) -> Operand:
    depth = _check_depth(a)
    _check(a, scope, a.input.shape[:depth])
    return Operand(a.input.dtype, (*a.indices.shape[:-1], *a.input.shape[depth:]))


register(
    "gather",
    "input:operand indices:operand axis:u32",
    _gather_infer,
    lambda e, a: e.node("Gather", a.input, _held(e, a, a.axis), axis=a.axis),
    _gather_rows,
)
register(
    "gatherElements",
    "input:operand indices:operand axis:u32",
    _elements_infer,
    lambda e, a: e.node("GatherElements", a.input, _held(e, a, a.axis), axis=a.axis),
    lambda a: a.axis > 0 and a.input.batched and a.indices.batched,
)
register(
    "gatherND",
    "input:operand indices:operand",
    _nd_infer,
    lambda e, a: e.node("GatherND", a.input, _held_deep(e, a)),
    lambda a: not a.input.batched,
)


# --- Scattering: of several updates of one element, any stays


def _scatter_elements_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_shape("indices", _along(a))
    a.check_shape("updates", a.indices.shape)
    a.check_same_dtype("input", "updates")
    _check(a, scope, (a.input.shape[a.axis],))
    return Operand(a.input.dtype, a.input.shape)


def _scatter_nd_infer(a: Arguments, scope: Scope) -> Operand:
    depth = _check_depth(a)
    a.check_shape("updates", (*a.indices.shape[:-1], *a.input.shape[depth:]))
    a.check_same_dtype("input", "updates")
    _check(a, scope, a.input.shape[:depth])
    return Operand(a.input.dtype, a.input.shape)


register(
    "scatterElements",
    "input:operand indices:operand updates:operand axis:u32",
    _scatter_elements_infer,
    lambda e, a: e.node("ScatterElements", a.input, _held(e, a, a.axis), a.updates, axis=a.axis),
    lambda a: a.axis > 0 and a.input.batched and a.indices.batched and a.updates.batched,
)
register(
    "scatterND",
    "input:operand indices:operand updates:operand",
    _scatter_nd_infer,
    lambda e, a: e.node("ScatterND", a.input, _held_deep(e, a), a.updates),
)
