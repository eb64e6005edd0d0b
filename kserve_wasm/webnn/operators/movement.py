"""Operators that move elements and compute nothing.

Source: Web Neural Network API, ``reshape``, ``transpose``, ``concat``, ``split``, ``slice``, ``pad``, ``reverse``,
``tile``, ``expand``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kserve_wasm.tensors.dtypes import INT64
from kserve_wasm.webnn.operand import ALL, Dim, Operand, Scope, is_named, shown, shown_open
from kserve_wasm.webnn.operator import Arguments, register
from kserve_wasm.webnn.operators.elementwise import held

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

MAX_SIZE = (1 << 31) - 1
"""The largest size of a dimension (WebNN's "valid dimension")."""
_MAX_PARTS = 1024
_PADDING_MODES = ("constant", "edge", "reflect")


def check_sizes(a: Arguments, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape of a result; fails where a size is more than a dimension can have."""
    if max(shape, default=0) > MAX_SIZE:
        a.fail(f"the result would have shape {shown(shape)}, and no size may be above {MAX_SIZE}")
    return shape


def _check_length(a: Arguments, name: str, rank: int) -> None:
    given = getattr(a, name)
    if len(given) != rank:
        a.fail(f"{name} must have {rank} numbers, one for each dimension of input; got {list(given)}")


# --- reshape, expand


def _reshape_infer(a: Arguments, scope: Scope) -> Operand:
    """One open dimension of ``newShape`` may be that of no input: it follows from the others."""
    a.check_dtype("input", ALL)
    shape = list(a.newShape)
    if 0 in shape and 0 not in a.input.shape:
        a.fail(f"newShape must have no 0, got {shown(shape)}")
    free = [
        i for i, dim in enumerate(shape) if dim < 0 and dim not in scope.named and dim not in a.input.shape
    ]
    if len(free) > 1:
        a.fail(f"newShape may have one open dimension that no input has, got {len(free)}: {list(shape)}")
    # Dimensions on both sides cancel out, whatever their size.
    given = list(a.input.shape)
    wanted = []
    for i, dim in enumerate(shape):
        if dim in given:
            given.remove(dim)
        elif i not in free:
            wanted.append(dim)
    static = min(*given, *wanted, 0, 0) >= 0
    have, want = math.prod(given), math.prod(wanted)
    if static and (have != want if not free else want == 0 or have % want):
        a.fail(f"newShape {shown(shape)} must have as many elements as input")
    if free:
        divisor = math.prod(dim for dim in wanted if dim > 0)
        dim = scope.derived(lambda *sizes: math.prod(sizes) // divisor, *given, 1)
        # With an open dimension among those wanted this is only the most that it can be.
        shape[free[0]] = dim if static or dim < 0 else scope.open(dim)
    return Operand(a.input.dtype, check_sizes(a, tuple(shape)))


def _reshape(e: Emitter, a: Arguments) -> Value:
    return e.reshape(a.input, e.results[0].shape)


def _keeps_batch(a: Arguments) -> bool:
    """Rows are in the elements' order: with the batch in front on both sides, each has its own."""
    return bool(a.input.batched)


def _expand_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_dtype("input", ALL)
    shape = tuple(a.newShape)
    if any(dim < 0 and dim not in scope.named and dim not in a.input.shape for dim in shape):
        a.fail(f"an open dimension of newShape must be that of an input, got {list(shape)}")
    fits = len(shape) >= a.input.rank
    for size, wanted in zip(reversed(a.input.shape), reversed(shape), strict=False):
        # ONNX's Expand would take the larger of both.
        decided_at_run = size in scope.bounds and size != wanted
        fits = fits and not decided_at_run and (size in (1, wanted) or size < 0 or (wanted < 0 and size > 1))
    if not fits or (0 in shape and 0 not in a.input.shape):
        a.fail(f"input must be broadcastable to newShape, got {shown(shape)}")
    return Operand(a.input.dtype, check_sizes(a, shape))


def _expand(e: Emitter, a: Arguments) -> Value:
    shape = e.results[0].shape
    return a.input if shape == a.input.shape else e.node("Expand", a.input, e.shape_vector(shape, a.input))


def _expand_rows(a: Arguments) -> bool:
    if a.input.batched:
        return bool(len(a.newShape) == a.input.rank)
    return bool(len(a.newShape) > a.input.rank or a.input.shape[0] == 1)


register("reshape", "input:operand newShape:i32s", _reshape_infer, _reshape, _keeps_batch)
register("expand", "input:operand newShape:i32s", _expand_infer, _expand, _expand_rows)


# --- transpose, reverse


def _permutation(a: Arguments) -> tuple[int, ...]:
    if a.permutation is None:
        return tuple(reversed(range(a.input.rank)))
    return tuple(a.permutation)


def _transpose_infer(a: Arguments, _scope: Scope) -> Operand:
    a.check_dtype("input", ALL)
    permutation = _permutation(a)
    if sorted(permutation) != list(range(a.input.rank)):
        a.fail(f"permutation must have each number below {a.input.rank} once, got {list(permutation)}")
    return Operand(a.input.dtype, tuple(a.input.shape[axis] for axis in permutation))


def _transpose(e: Emitter, a: Arguments) -> Value:
    permutation = _permutation(a)
    if permutation == tuple(range(a.input.rank)):
        return a.input  # type: ignore[no-any-return]
    return e.node("Transpose", a.input, perm=permutation)


def _reverse_infer(a: Arguments, _scope: Scope) -> Operand:
    a.check_dtype("input", ALL)
    a.axes("axes", a.input.rank)
    return Operand(a.input.dtype, a.input.shape)


def _reverse(e: Emitter, a: Arguments) -> Value:
    axes = a.axes("axes", a.input.rank)
    if not axes:
        return a.input  # type: ignore[no-any-return]
    backwards = np.full(len(axes), -1)
    return e.node(
        "Slice", a.input, backwards, np.full(len(axes), np.iinfo(np.int64).min), np.array(axes), backwards
    )


register(
    "transpose",
    "input:operand permutation:u32s?",
    _transpose_infer,
    _transpose,
    lambda a: _permutation(a)[0] == 0,
)
register(
    "reverse",
    "input:operand axes:u32s?",
    _reverse_infer,
    _reverse,
    lambda a: 0 not in a.axes("axes", a.input.rank),
)


# --- concat, split


def _concat_infer(a: Arguments, scope: Scope) -> Operand:
    inputs, axis = a.inputs, a.axis
    if not inputs:
        a.fail("inputs must be one operand at least, got none")
    first = inputs[0]
    if first.dtype not in ALL or any(value.dtype is not first.dtype for value in inputs):
        a.fail("inputs must have the same data type, and one of WebNN's")
    if axis >= first.rank:
        a.fail(f"axis must be below {first.rank}, the number of dimensions of inputs; got {axis}")
    shape = list(first.shape)
    for value in inputs[1:]:
        if value.rank != first.rank:
            a.fail("inputs must have the same number of dimensions")
        for i, (size, other) in enumerate(zip(shape, value.shape, strict=True)):
            if i != axis and size != other:
                if size >= 0 and other >= 0:
                    a.fail(f"inputs must have the same size in all dimensions but {axis}, which is axis")
                shape[i] = max(size, other)
    if len(inputs) > 1:
        shape[axis] = scope.derived(lambda *sizes: sum(sizes), *(value.shape[axis] for value in inputs))
    return Operand(first.dtype, check_sizes(a, tuple(shape)))


def _concat(e: Emitter, a: Arguments) -> Value:
    return a.inputs[0] if len(a.inputs) == 1 else e.node("Concat", *a.inputs, axis=a.axis)


def _split_infer(a: Arguments, scope: Scope) -> tuple[Operand, ...]:
    a.check_dtype("input", ALL)
    a.check_axis("axis", a.input.rank)
    size = a.input.shape[a.axis]
    count = a.count if a.splits is None else len(a.splits)
    if not 0 < count <= _MAX_PARTS or (a.splits is not None and a.count not in (0, count)):
        a.fail(
            f"count must be a number of equal parts from 1 to {_MAX_PARTS}, or there are splits, of which count is the "
            f"number; got {a.count} and {list(a.splits or [])}"
        )
    if a.splits is None:
        if size >= 0 and size % count:
            a.fail(f"input must have a size along axis that {count} divides, got {size}")
        parts: tuple[Dim, ...] = (scope.derived(lambda whole: whole // count, size),) * count
    else:
        parts = tuple(a.splits)
        if 0 in parts or (size >= 0 and sum(parts) != size) or sum(parts) > MAX_SIZE:
            a.fail(f"splits must be above 0 and together input's size along axis, got {list(parts)}")
    shape = a.input.shape
    return tuple(Operand(a.input.dtype, (*shape[: a.axis], part, *shape[a.axis + 1 :])) for part in parts)


def _split(e: Emitter, a: Arguments) -> list[Value]:
    size, count = a.input.shape[a.axis], len(e.results)
    sizes: Value | npt.NDArray[np.int64]
    if a.splits is not None:
        sizes = np.array(a.splits, np.int64)
    elif size >= 0:
        sizes = np.full(count, size // count, np.int64)
    else:
        # Split with a number of outputs alone would make the last one shorter where they cannot be equal.
        part = e.node("Div", e.size(size, a.input), np.array([count]), result=Operand(INT64, (1,)))
        sizes = e.node("Expand", part, np.array([count]), result=Operand(INT64, (count,)))
    return e.nodes("Split", a.input, sizes, results=e.results, axis=a.axis)


register(
    "concat",
    "inputs:operands axis:u32",
    _concat_infer,
    _concat,
    lambda a: a.axis > 0 and all(value.batched for value in a.inputs),
)
register(
    "split",
    "input:operand count:u32 splits:u32s? axis:u32",
    _split_infer,
    _split,
    lambda a: a.axis > 0,
    multiple=True,
)


# --- slice, pad, tile


def _slice_infer(a: Arguments, scope: Scope) -> Operand:
    """A size may be an open dimension, as the batch is, so that it can be kept."""
    a.check_dtype("input", ALL)
    for name in ("starts", "sizes"):
        _check_length(a, name, a.input.rank)
    if a.strides is not None:
        _check_length(a, "strides", a.input.rank)
    shape = []
    for whole, start, size, stride in zip(a.input.shape, a.starts, a.sizes, _strides(a), strict=True):
        if size < 0 and size != whole:
            a.fail(
                "a negative size keeps an input's open dimension whole, and must be that dimension's own number: "
                f"{list(a.sizes)} for {shown_open(a.input.shape)}"
            )
        if stride == 0 or (size == 0 and whole != 0):
            a.fail(f"strides and sizes must be above 0, got {_wanted(a)}")
        outside = whole >= 0 and start + max(size, 0) > whole
        if outside or (size == whole and start > 0) or start + size > MAX_SIZE:
            a.fail(f"the slice must be in input, got {_wanted(a)}")
        shape.append(_steps(scope, size, stride))
    return Operand(a.input.dtype, tuple(shape))


def _wanted(a: Arguments) -> str:
    return f"starts {list(a.starts)}, sizes {shown(a.sizes)}, strides {list(_strides(a))}"


def _steps(scope: Scope, size: Dim, stride: int) -> Dim:
    return size if stride == 1 else scope.derived(lambda known: -(-known // stride), size)


def _strides(a: Arguments) -> tuple[int, ...]:
    return (1,) * a.input.rank if a.strides is None else tuple(a.strides)


def _slice(e: Emitter, a: Arguments) -> Value:
    cuts = [
        (axis, start, size)
        for axis, (whole, start, size) in enumerate(zip(a.input.shape, a.starts, a.sizes, strict=True))
        if size != whole
    ]
    value: Value = a.input
    if cuts:
        axes, starts, sizes = (np.array(column) for column in zip(*cuts, strict=True))
        ends: Value | npt.NDArray[np.int64] = starts + sizes
        if sizes.min() < 0:
            lengths = e.shape_vector([size for _, _, size in cuts], value)
            ends = e.node("Add", lengths, starts, result=Operand(INT64, (len(cuts),)))
        value = e.node("Slice", value, starts, ends, axes, result=Operand(value.dtype, tuple(a.sizes)))
        if not all(dim >= 0 or is_named(dim) for dim in a.input.shape):
            # A size that the run decides may be too small, and Slice then cuts the slice: this fails.
            exactly = e.shape_vector(value.shape, a.input)
            value = e.node("Reshape", value, exactly, result=value.operand, allowzero=1)
    strides = np.array(_strides(a), np.int64)
    if (strides > 1).any():
        axes, zeros = np.arange(len(strides)), np.zeros_like(strides)
        value = e.node("Slice", value, zeros, np.full_like(strides, MAX_SIZE), axes, strides)
    return value


def _slice_rows(a: Arguments) -> bool:
    return bool(a.input.batched) and a.sizes[0] == a.input.shape[0] and _strides(a)[0] == 1


def _pad_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_dtype("input", ALL)
    a.check_rank("input", 1, 8)
    for name in ("beginningPadding", "endingPadding"):
        _check_length(a, name, a.input.rank)
    if a.mode >= len(_PADDING_MODES):
        a.fail(f"mode must be 0 (constant), 1 (edge) or 2 (reflection), got {a.mode}")
    if math.isnan(a.value) and a.input.dtype.numpy.kind != "f":
        a.fail(f"value must be a number that {a.input.dtype} has, got nan")
    shape = []
    for size, begin, end in zip(a.input.shape, a.beginningPadding, a.endingPadding, strict=True):
        if a.mode and (begin or end) and (size == 0 or size in scope.bounds):
            a.fail("only constants can be padded to a dimension that is empty, or whose size the run decides")
        if a.mode == 2 and 0 <= size <= max(begin, end):
            a.fail(
                f"reflection must be less than the size in each dimension, got {begin} and {end} for {size}"
            )
        shape.append(_padded(scope, size, begin + end))
    return Operand(a.input.dtype, check_sizes(a, tuple(shape)))


def _padded(scope: Scope, size: Dim, more: int) -> Dim:
    return scope.derived(lambda known: known + more, size) if more else size


def _pad(e: Emitter, a: Arguments) -> Value:
    pads = np.array([*a.beginningPadding, *a.endingPadding], np.int64)
    if not pads.any():
        return a.input  # type: ignore[no-any-return]
    if a.mode:
        return e.node("Pad", a.input, pads, mode=_PADDING_MODES[a.mode])
    dtype = a.input.dtype
    return e.pad(a.input, pads, np.array(held(dtype, a.value), dtype.numpy))


def _tile_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_dtype("input", ALL)
    _check_length(a, "repetitions", a.input.rank)
    if 0 in a.repetitions:
        a.fail(f"repetitions must be above 0, got {list(a.repetitions)}")
    shape = [_tiled(scope, size, times) for size, times in zip(a.input.shape, a.repetitions, strict=True)]
    return Operand(a.input.dtype, check_sizes(a, tuple(shape)))


def _tiled(scope: Scope, size: Dim, times: int) -> Dim:
    return scope.derived(lambda known: known * times, size) if times > 1 else size


def _tile(e: Emitter, a: Arguments) -> Value:
    if all(times == 1 for times in a.repetitions):
        return a.input  # type: ignore[no-any-return]
    return e.node("Tile", a.input, np.array(a.repetitions, np.int64))


register("slice", "input:operand starts:u32s sizes:i32s strides:u32s?", _slice_infer, _slice, _slice_rows)
register(
    "pad",
    "input:operand beginningPadding:u32s endingPadding:u32s mode:u32 value:f64",
    _pad_infer,
    _pad,
    lambda a: a.beginningPadding[0] == a.endingPadding[0] == 0,
)
register("tile", "input:operand repetitions:u32s", _tile_infer, _tile, lambda a: a.repetitions[0] == 1)
