"""Operators of this project's own: what pre- and post-processing needs and the specification does not have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kserve_wasm.tensors.dtypes import BOOL, FP32, INT32, INT64, UINT32
from kserve_wasm.webnn.operand import ALL, FLOATS, Dim, Operand, Scope, shown
from kserve_wasm.webnn.operator import Arguments, register
from kserve_wasm.webnn.operators.movement import MAX_SIZE
from kserve_wasm.webnn.operators.ordering import ordered, restored
from kserve_wasm.webnn.operators.resampling import MODES, check_image, resample, resampled

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

MAX_COMPARISONS = 1 << 30
"""Pairs of boxes that non-maximum suppression compares: about 4 s on one core."""


# --- shape: the sizes of the dimensions, int32 [rank]


def _shape_infer(a: Arguments, _scope: Scope) -> Operand:
    a.check_rank("input", 1, 8)
    return Operand(INT32, (a.input.rank,))


def _shape(e: Emitter, a: Arguments) -> Value:
    if a.input.operand.is_static:
        return e.constant(np.array(a.input.shape, np.int32))
    return e.cast(e.node("Shape", a.input, result=Operand(INT64, (a.input.rank,))), INT32)


register("shape", "input:operand", _shape_infer, _shape, own=True)


# --- topK: the k largest or smallest along an axis, and where they are, int32; in order, of equal ones the first
#     A NaN counts as the infinity that comes last.


def _top_k_infer(a: Arguments, _scope: Scope) -> tuple[Operand, ...]:
    a.check_dtype("input", ALL)
    a.check_axis("axis", a.input.rank)
    size = a.input.shape[a.axis]
    if not 0 < a.k <= (MAX_SIZE if size < 0 else size):
        a.fail(f"k must be from 1 to input's size along axis, got {a.k}")
    shape = (*a.input.shape[: a.axis], a.k, *a.input.shape[a.axis + 1 :])
    return Operand(a.input.dtype, shape), Operand(INT32, shape)


def _top_k(e: Emitter, a: Arguments) -> list[Value]:
    value, axis = a.input, a.axis
    shape = e.results[0].shape
    keys = ordered(e, value)
    floats = value.dtype in FLOATS
    if floats:
        # The kernel sorts by comparing, and with NaN in it std::sort reads beyond the ends.
        last = np.array(-math.inf if a.largest else math.inf, value.dtype.numpy)
        unknown = e.node("IsNaN", value, result=Operand(BOOL, value.shape))
        keys = e.node("Where", unknown, last, value, result=value.operand)
    found, places = e.nodes(
        "TopK",
        keys,
        np.array([a.k]),
        results=(Operand(keys.dtype, shape), Operand(INT64, shape)),
        axis=axis,
        largest=int(a.largest != 0),
    )
    values = e.node("GatherElements", value, places, axis=axis) if floats else restored(e, found, value.dtype)
    return [values, e.cast(places, INT32)]


register(
    "topK",
    "input:operand k:u32 axis:u32 largest:u32",
    _top_k_infer,
    _top_k,
    lambda a: a.axis != 0,
    multiple=True,
    own=True,
)


# --- nonMaxSuppression: int32 [boxes, 3]: batch, class and box of those that are kept; ONNX's NonMaxSuppression


def _nms_infer(a: Arguments, scope: Scope) -> Operand:
    for name in ("boxes", "scores"):
        a.check_dtype(name, FLOATS)
        a.check_rank(name, 3)
    a.check_same_dtype("boxes", "scores")
    batch, classes, count = a.scores.shape
    a.check_shape("boxes", (batch, count, 4))
    if not a.maxOutputBoxesPerClass:
        a.fail("maxOutputBoxesPerClass must be above 0, got 0")
    if not 0 <= a.iouThreshold <= 1 or math.isnan(a.scoreThreshold):
        a.fail(
            f"iouThreshold must be from 0 to 1 and scoreThreshold a number, got {a.iouThreshold:g} and "
            f"{a.scoreThreshold:g}"
        )
    most = scope.derived(
        lambda batch, classes, count: batch * classes * min(count, a.maxOutputBoxesPerClass),
        *(batch, classes, count),
    )
    bound, boxes = scope.bound(most), scope.bound(count)
    if bound is not None and boxes is not None and bound * boxes > MAX_COMPARISONS:
        a.fail(
            f"it compares up to {bound * boxes} pairs of boxes, and may compare {MAX_COMPARISONS}: lower "
            "maxOutputBoxesPerClass"
        )
    return Operand(INT32, (scope.open(most) if most >= 0 else most, 3))


def _nms(e: Emitter, a: Arguments) -> Value:
    kept = e.node(
        "NonMaxSuppression",
        e.cast(a.boxes, FP32),
        e.cast(a.scores, FP32),
        np.array([min(a.maxOutputBoxesPerClass, MAX_SIZE)]),
        np.array([a.iouThreshold], np.float32),
        np.array([a.scoreThreshold], np.float32),
        center_point_box=int(a.centerPointBox != 0),
        result=Operand(INT64, e.results[0].shape),
    )
    return e.cast(kept, INT32)


register(
    "nonMaxSuppression",
    "boxes:operand scores:operand maxOutputBoxesPerClass:u32 iouThreshold:f64 scoreThreshold:f64 centerPointBox:u32",
    _nms_infer,
    _nms,
    own=True,
)


# --- resample2dTo: resample2d to sizes that only dispatch knows, int32 [2], cut to be from 1 to maxSizes


def _resample_infer(a: Arguments, scope: Scope) -> Operand:
    axes = check_image(a)
    a.check_dtype("sizes", (INT32,))
    a.check_shape("sizes", (2,))
    if len(a.maxSizes) != 2 or not all(0 < size <= MAX_SIZE for size in a.maxSizes):
        a.fail(f"maxSizes must be two numbers from 1 to {MAX_SIZE}, got {list(a.maxSizes)}")
    shape = list(a.input.shape)
    for axis, most in zip(axes, a.maxSizes, strict=True):
        shape[axis] = scope.open(most)
    return resampled(a, scope, tuple(shape))


def _resample(e: Emitter, a: Arguments) -> Value:
    most = np.array(a.maxSizes, np.int32)
    within = e.node("Max", a.sizes, np.array(1, np.int32), result=a.sizes.operand)
    within = e.cast(e.node("Min", within, most, result=a.sizes.operand), INT64)
    one = Operand(INT64, (1,))
    sizes = e.nodes("Split", within, results=(one, one), axis=0, num_outputs=2)
    axes, mode = check_image(a), MODES[a.mode]
    resampled = resample(e, a.input, axes, sizes, mode)
    if a.input.name in e.casts:
        e.windows[resampled.name] = (axes, lambda windows: resample(e, a.input, axes, sizes, mode, windows))
    return resampled


register(
    "resample2dTo",
    "input:operand sizes:operand maxSizes:u32s mode:u32 axes:u32s?",
    _resample_infer,
    _resample,
    lambda a: a.input.batched and not a.sizes.batched and 0 not in check_image(a),
    own=True,
)


# --- sliceFrom: slice with starts that only dispatch knows, int32 [rank]; one outside of input fails the run


def _slice_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_dtype("input", ALL)
    a.check_rank("input", 1, 8)
    a.check_dtype("starts", (INT32,))
    a.check_shape("starts", (a.input.rank,))
    sizes = tuple(a.sizes)
    if len(sizes) != a.input.rank or any(
        size == 0 < whole or (0 <= whole < size) or (size < 0 and size != whole and size not in scope.named)
        for size, whole in zip(sizes, a.input.shape, strict=False)
    ):
        a.fail(f"sizes must be, for each dimension of input, from 1 to its size; got {shown(sizes)}")
    return Operand(a.input.dtype, sizes)


def _slice(e: Emitter, a: Arguments) -> Value:
    vector = Operand(INT64, (a.input.rank,))
    # As an unsigned number, a negative start is beyond every end.
    starts = e.cast(e.cast(a.starts, UINT32), INT64)
    axes, compute = e.windows.get(a.input.name, ((), None))
    others = [axis for axis in range(a.input.rank) if axis not in axes]
    if compute is not None and all(a.sizes[axis] == a.input.shape[axis] for axis in others):
        return compute(_windows(e, starts, axes, others, a.sizes))
    sizes = e.shape_vector(a.sizes, a.input)
    ends = e.node("Add", starts, sizes, result=vector)
    cut = e.node("Slice", a.input, starts, ends)
    # Slice cuts what is not in the input; then this fails, on every device.
    return e.node("Reshape", cut, sizes, allowzero=1)


def _windows(
    e: Emitter, starts: Value, axes: Sequence[int], others: Sequence[int], sizes: Sequence[Dim]
) -> dict[int, tuple[Value, Dim]]:
    """The starts along ``axes``; beyond their end where those along ``others``, which are whole, are not 0."""
    one, few = Operand(INT64, (1,)), Operand(INT64, (len(others),))
    first = e.node("Gather", starts, np.array(others), result=few)
    moved = e.cast(e.node("Greater", first, np.array(0), result=Operand(BOOL, few.shape)), INT32)
    beyond = e.cast(e.node("ReduceMax", moved, result=Operand(INT32, (1,)), keepdims=1), INT64)
    beyond = e.node("Mul", beyond, np.array([1 << 40]), result=one)
    return {
        axis: (
            e.node("Add", e.node("Gather", starts, np.array([axis]), result=one), beyond, result=one),
            sizes[axis],
        )
        for axis in axes
    }


register(
    "sliceFrom",
    "input:operand starts:operand sizes:i32s",
    _slice_infer,
    _slice,
    lambda a: a.input.batched and not a.starts.batched and a.sizes[0] == a.input.shape[0],
    own=True,
)
