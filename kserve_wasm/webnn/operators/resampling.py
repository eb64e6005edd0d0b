"""``resample2d``: images of another size.

Source: Web Neural Network API, ``resample2d``. There are two ways to compute it:

- By ``Resize``. It interpolates fastest, but has coordinates in float32: where an image is ``n`` pixels long, a result
  may differ from the specification's by ``n`` * 1e-7 of what neighbouring pixels differ. It runs on NCHW; the CPU
  provider takes the transposes around it out again, and that of CUDA has no other.
- By gathering the pixels that are needed, with exact coordinates, of the integers that ``cast`` made floats of.

Milliseconds on one core, the cast included, for ``linear``:

====================================== ======== ========
image                                   Resize   gather
====================================== ======== ========
3508 x 2480 x 3 uint8 to 360 x 256        5.3      2.4
1080 x 1920 x 3 uint8 to 128 x 128        1.1      0.5
200 x 150 x 3 uint8 to 360 x 256          0.6      2.2
3508 x 2480 x 3 float32 to 360 x 256      1.3      3.8
64 x 56 x 56 float32 to 64 x 112 x 112    0.9      9.6
====================================== ======== ========

So integers are gathered where there are many, or where sizes are open: then a large image must not cost a larger one
of floats. Floats are resized, unless the axes are no image's: ONNX Runtime's optimizer moves such a transpose into a
Resize for which it has no kernel. ``nearest-neighbor`` gathers, in 0.4 ms of the first image, and resizes floats where
the factor is a whole number: there float32 finds the same pixel; elsewhere two may be equally near, and it takes
either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kserve_wasm.tensors.dtypes import FP32, FP64, INT64
from kserve_wasm.webnn.operand import FLOATS, Dim, Operand, Scope, shown
from kserve_wasm.webnn.operator import Arguments, Param, register
from kserve_wasm.webnn.operators.limits import check_scratch
from kserve_wasm.webnn.operators.movement import MAX_SIZE, check_sizes

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

    Vector: TypeAlias = Value | npt.NDArray[np.int64]

MODES = ("nearest", "linear")
_MAX_POSITIONS = 1 << 20
"""Pixels along an axis of the result: the position of each is computed, in int64."""
_MANY = 24
"""Gathering pays for this many pixels of an image to each of the result."""
_FEW_CHANNELS = 16
"""Fewer behind an image's axes are taken for more pixels: ONNX Runtime is slow where the last dimension is small."""


def check_image(a: Arguments) -> tuple[int, int]:
    """Checks what is resampled, and how; returns the axes."""
    a.check_dtype("input", FLOATS)
    a.check_rank("input", 4)
    if a.mode >= len(MODES):
        a.fail(f"mode must be 0 (nearest-neighbor) or 1 (linear), got {a.mode}")
    axes = a.axes("axes", 4, (2, 3))
    if len(axes) != 2:
        a.fail(f"axes must be two numbers, got {list(axes)}")
    if 0 in a.input.shape:
        a.fail("input must not be empty")
    return axes[0], axes[1]


def _infer(a: Arguments, scope: Scope) -> Operand:
    axes = check_image(a)
    if a.sizes is not None and 0 in a.sizes:
        a.fail(f"sizes must be above 0, got {list(a.sizes)}")
    if a.scales is not None and not all(0 < scale <= MAX_SIZE for scale in a.scales):
        a.fail(f"scales must be above 0 and at most {MAX_SIZE}, got {list(a.scales)}")
    shape = list(a.input.shape)
    for n, axis in enumerate(axes):
        if a.sizes is not None:
            shape[axis] = a.sizes[n]
        elif a.scales is not None:
            shape[axis] = _scaled(scope, shape[axis], a.scales[n])
    if 0 in shape:
        a.fail(f"the result would be empty with scales {list(a.scales)}")
    return resampled(a, scope, tuple(shape))


def resampled(a: Arguments, scope: Scope, shape: tuple[Dim, ...]) -> Operand:
    """The result, of this shape; fails where it, or what is held meanwhile, is too much."""
    check_sizes(a, shape)
    first, second = sorted(check_image(a))
    for axis in (first, second):
        if (scope.bound(shape[axis]) or 1) > _MAX_POSITIONS:
            a.fail(
                f"an axis of the result may have {_MAX_POSITIONS} pixels, and the result is {shown(shape)}"
            )
    # The four neighbours of each pixel; before them, two along the first axis with the whole second.
    check_scratch(a, scope, 4, *shape)
    if shape[first] != a.input.shape[first]:
        others = (size for axis, size in enumerate(shape) if axis not in (first, second))
        check_scratch(a, scope, 2, *others, shape[first], a.input.shape[second])
    return Operand(a.input.dtype, shape)


def _scaled(scope: Scope, size: Dim, scale: float) -> Dim:
    return scope.derived(lambda known: math.floor(known * scale), size) if scale != 1 else size


def _lower(e: Emitter, a: Arguments) -> Value:
    axes = check_image(a)
    shape = e.results[0].shape
    sizes: list[Any] = []
    for n, axis in enumerate(axes):
        if shape[axis] >= 0 or shape[axis] == a.input.shape[axis]:
            sizes.append(e.shape_vector((shape[axis],), a.input))
        else:
            size = e.cast(e.size(a.input.shape[axis], a.input), FP64)
            product = e.node("Mul", size, np.array([a.scales[n]], np.float64), result=size.operand)
            sizes.append(e.cast(e.node("Floor", product, result=size.operand), INT64))
    return resample(e, a.input, axes, sizes, MODES[a.mode])


@dataclass(frozen=True, slots=True)
class _Scaling:
    """What happens to an axis.

    Attributes:
        axis: the axis.
        size: its new size, int64 [1].
        start: where what is computed of that begins, int64 [1]; it is whole without.
    """

    axis: int
    size: Vector
    start: Value | None = None


Windows: TypeAlias = "Mapping[int, tuple[Value, Dim]]"
"""Of some axes the first pixel, int64 [1], and the number of those that are needed."""


def resample(
    e: Emitter,
    value: Value,
    axes: Sequence[int],
    sizes: Sequence[Vector],
    mode: str,
    windows: Windows | None = None,
) -> Value:
    """The operator's first result: ``value`` with other sizes along two axes, or a window of that.

    Args:
        e: the emitter.
        value: [.., .., .., ..], floats.
        axes: two of its axes.
        sizes: their new sizes, int64 [1] each.
        mode: ``linear`` or ``nearest``.
        windows: of these axes. One that is not within its axis fails the run.
    """
    result = e.results[0]
    windows = windows or {}
    scalings = [
        _Scaling(axis, size, windows[axis][0] if axis in windows else None)
        for axis, size in sorted(zip(axes, sizes, strict=True), key=lambda pair: pair[0])
        if result.shape[axis] != value.shape[axis] or axis in windows
    ]
    if not scalings:
        return value
    source = e.casts.get(value.name)
    integers = source is not None and source.dtype.numpy.kind in "iub"
    static = result.is_static and value.operand.is_static
    usual = sorted(axes) in ([1, 2], [2, 3])
    if mode == "linear":
        few = static and math.prod(value.shape) < _MANY * math.prod(result.shape)
        gathered = (integers and not few) or not usual
    else:
        gathered = integers or not (
            usual
            and all(
                result.shape[axis] > 0
                and value.shape[axis] > 0
                and result.shape[axis] % value.shape[axis] == 0
                for axis in axes
            )
        )
    if not gathered and not windows:
        return _resized(e, value, axes, sizes, mode)
    image = source if integers and source is not None else value
    if mode == "linear":
        return _interpolated(e, image, value, scalings)
    picked = image
    for scaling in scalings:
        axis, dim = scaling.axis, result.shape[scaling.axis]
        positions = _positions(e, image, scaling, dim)
        # Of two that are equally near, the first.
        nearest = e.node("Sub", positions, np.array([0.5]), result=positions.operand)
        indices = e.cast(e.node("Ceil", nearest, result=positions.operand), INT64)
        picked = _gather(e, picked, indices, axis, dim)
    return e.cast(picked, value.dtype)


def _resized(e: Emitter, value: Value, axes: Sequence[int], sizes: Sequence[Vector], mode: str) -> Value:
    result = e.results[0]
    others = [axis for axis in range(4) if axis not in axes]
    order = [*others, *axes]
    moved = order != [0, 1, 2, 3]
    image = Operand(value.dtype, tuple(value.shape[axis] for axis in order))
    target = Operand(value.dtype, tuple(result.shape[axis] for axis in order))
    if moved:
        value = e.node("Transpose", value, perm=order, result=image)
    parts: list[Vector] = [e.shape_vector(image.shape[:2], value), *sizes]
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    vector: Vector
    if len(arrays) == len(parts):
        vector = np.concatenate(arrays)
    else:
        vector = e.node("Concat", *parts, result=Operand(INT64, (4,)), axis=0)
    value = e.node(
        "Resize",
        value,
        None,
        None,
        vector,
        mode=mode,
        coordinate_transformation_mode="half_pixel",
        nearest_mode="round_prefer_floor",
        result=target,
    )
    return e.node("Transpose", value, perm=[order.index(axis) for axis in range(4)]) if moved else value


# --- Gathering


def _positions(e: Emitter, image: Value, scaling: _Scaling, dim: Dim) -> Value:
    """Where each new pixel is along an axis of the image, float64 [dim].

    (i + 0.5) * old / size - 0.5, within the image, as ((2 * i + 1) * old - size) / (2 * size): up to the division it is
    exact.
    """
    old, size = (
        e.cast(e.value(vector), FP64)
        for vector in (e.shape_vector((image.shape[scaling.axis],), image), scaling.size)
    )
    one, positions = size.operand, Operand(FP64, (dim,))
    double = e.node("Add", size, size, result=one)
    if isinstance(scaling.size, np.ndarray):
        odd = e.value(2.0 * np.arange(scaling.size[0]) + 1)
    else:
        # The odd numbers below twice the size.
        end = e.node("Squeeze", double, result=Operand(FP64, ()))
        odd = e.node("Range", np.array(1.0), end, np.array(2.0), result=positions)
    if scaling.start is not None:
        odd = window(e, odd, scaling.start, dim)
    numerator = e.node("Sub", e.node("Mul", odd, old, result=positions), size, result=positions)
    last = e.node("Squeeze", e.node("Sub", old, np.array([1.0]), result=one), result=Operand(FP64, ()))
    found = e.node("Div", numerator, double, result=positions)
    return e.node("Clip", found, np.array(0.0), last, result=positions)


def _gather(e: Emitter, image: Value, indices: Value, axis: int, dim: Dim) -> Value:
    shape = (*image.shape[:axis], dim, *image.shape[axis + 1 :])
    return e.node("Gather", image, indices, axis=axis, result=Operand(image.dtype, shape))


def _interpolated(e: Emitter, image: Value, value: Value, scalings: Sequence[_Scaling]) -> Value:
    """Gathers the neighbours of each new pixel, and only then makes floats of them."""
    shape = e.results[0].shape
    behind = shape[scalings[-1].axis + 1 :]
    channels = math.prod(behind) if behind and min(behind) > 0 else 1
    joined = 1 < channels < _FEW_CHANNELS
    rank = 4 - len(behind) if joined else 4
    picked = [image]
    factors: list[Value] = []
    for scaling in scalings:
        axis, dim = scaling.axis, shape[scaling.axis]
        positions = _positions(e, image, scaling, dim)
        before, after = (e.node(way, positions, result=positions.operand) for way in ("Floor", "Ceil"))
        neighbours = [e.cast(before, INT64), e.cast(after, INT64)]
        picked = [_gather(e, one, indices, axis, dim) for one in picked for indices in neighbours]
        factor = e.cast(e.node("Sub", positions, before, result=positions.operand), FP32)
        column = (dim, *(1,) * (rank - axis - 1))
        if joined and scaling is scalings[-1]:
            factor = _reshaped(e, factor, [-1, 1], (dim, 1))
            factor = e.node("Tile", factor, np.array([1, channels]), result=Operand(FP32, (dim, channels)))
            column = (_joined(dim, channels),)
        factors.append(_reshaped(e, factor, [-1, *column[1:]], column))
    whole = Operand(FP32, (*shape[: rank - 1], _joined(shape[rank - 1], channels)) if joined else shape)
    if joined:
        picked = [_reshaped(e, one, [0] * (rank - 1) + [-1], whole.shape) for one in picked]
    made = [e.cast(e.cast(one, value.dtype), FP32) for one in picked]
    for factor in reversed(factors):
        made = [
            _between(e, first, second, factor, whole)
            for first, second in zip(made[::2], made[1::2], strict=True)
        ]
    (result,) = made
    if joined:
        result = _reshaped(e, result, [0] * (rank - 1) + [-1, *behind], shape)
    return e.cast(result, value.dtype)


def _between(e: Emitter, first: Value, second: Value, factor: Value, result: Operand) -> Value:
    step = e.node("Mul", e.node("Sub", second, first, result=result), factor, result=result)
    return e.node("Add", first, step, result=result)


def _reshaped(e: Emitter, value: Value, vector: Sequence[int], shape: tuple[Dim, ...]) -> Value:
    """``value`` as ``shape``, which ``vector`` says as ONNX does: 0 is the size that there is, -1 what is left."""
    return e.node("Reshape", value, np.array(vector), result=Operand(value.dtype, shape))


def window(e: Emitter, value: Value, start: Value, size: Dim) -> Value:
    """``size`` elements of a vector from ``start`` (int64 [1]) on; the run fails where there are not so many."""
    length = np.array([size])
    end = e.node("Add", start, length, result=start.operand)
    cut = Operand(value.dtype, (size,))
    return e.node("Reshape", e.node("Slice", value, start, end, result=cut), length, allowzero=1, result=cut)


def _joined(dim: Dim, channels: int) -> Dim:
    # Of an open dimension nothing else is asked here than that it is open.
    return dim * channels if dim >= 0 else dim


register(
    "resample2d",
    (
        Param("input", "operand"),
        Param("scales", "f64[]", in_options=True, length=2),
        Param("mode", "u32", in_options=True, default=0),
        Param("sizes", "u32[]", in_options=True, length=2),
        Param("axes", "u32[]", in_options=True, length=2),
    ),
    _infer,
    _lower,
    lambda a: 0 not in check_image(a),
)
