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
from kserve_wasm.webnn.operand import FLOATS, Dim, Operand, Scope
from kserve_wasm.webnn.operator import Arguments, Param, register
from kserve_wasm.webnn.operators.elementwise import extreme
from kserve_wasm.webnn.operators.limits import check_scratch
from kserve_wasm.webnn.operators.movement import MAX_SIZE, check_sizes

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

    Vector: TypeAlias = Value | npt.NDArray[np.int64]

MODES = ("nearest", "linear")
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
    """The result, of this shape; fails where it, or the four neighbours of each of its pixels, are too many."""
    check_sizes(a, shape)
    check_scratch(a, 4, *(scope.bound(dim) or 1 for dim in shape))
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
        axis = scaling.axis
        numerator, double, _last = _position(e, image, scaling, result.shape[axis])
        half = _compute(e, "Add", numerator, _compute(e, "Sub", scaling.size, np.array([1])))
        picked = _gather(e, picked, _compute(e, "Div", half, double), axis, result.shape[axis])
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
    vector = _concat(e, parts, 4)
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


def _compute(e: Emitter, op_type: str, a: Vector, b: Vector) -> Vector:
    """A sum, product and the like of int64 vectors, one of which may have a single element."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        made: npt.NDArray[np.int64] = _ARITHMETIC[op_type](a, b)
        return made
    result = Operand(INT64, tuple(b.shape if a.shape == (1,) else a.shape))
    if op_type in ("Max", "Min"):
        return extreme(e, op_type, a, b, result)
    return e.node(op_type, a, b, result=result)


def _concat(e: Emitter, parts: Sequence[Vector], dim: Dim) -> Vector:
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays)
    return e.node("Concat", *parts, result=Operand(INT64, (dim,)), axis=0)


_ARITHMETIC: dict[str, Any] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.floor_divide,
    "Max": np.maximum,
    "Min": np.minimum,
}


def _position(e: Emitter, image: Value, scaling: _Scaling, dim: Dim) -> tuple[Vector, Vector, Vector]:
    """Where each new pixel is along an axis: a numerator [dim], its denominator [1], and the last old pixel [1].

    (i + 0.5) * old / size - 0.5, within the image, is ((2 * i + 1) * old - size) / (2 * size): integers keep it exact.
    """
    size = scaling.size
    old = e.shape_vector((image.shape[scaling.axis],), image)
    last = _compute(e, "Sub", old, np.array([1]))
    double = _compute(e, "Mul", size, np.array([2]))
    odd: Vector
    if isinstance(size, np.ndarray):
        odd = 2 * np.arange(size[0]) + 1
    else:
        # The odd numbers below twice the size.
        end = e.node("Squeeze", double, result=Operand(INT64, ()))
        odd = e.node("Range", np.array(1), end, np.array(2), result=Operand(INT64, (dim,)))
    if scaling.start is not None:
        odd = window(e, e.value(odd), scaling.start, dim)
    position = _compute(e, "Sub", _compute(e, "Mul", odd, old), size)
    position = _compute(e, "Max", position, np.array([0]))
    return _compute(e, "Min", position, _compute(e, "Mul", double, last)), double, last


def _gather(e: Emitter, image: Value, indices: Vector, axis: int, dim: Dim) -> Value:
    shape = (*image.shape[:axis], dim, *image.shape[axis + 1 :])
    return e.node("Gather", image, indices, axis=axis, result=Operand(image.dtype, shape))


def _interpolated(e: Emitter, image: Value, value: Value, scalings: Sequence[_Scaling]) -> Value:
    """Gathers both neighbours along each axis, one behind the other, and only then makes floats of them."""
    shape = e.results[0].shape
    behind = shape[scalings[-1].axis + 1 :]
    channels = math.prod(behind) if behind and min(behind) > 0 else 1
    joined = 1 < channels < _FEW_CHANNELS
    rank = 4 - len(behind) if joined else 4
    factors: list[Value] = []
    picked = image
    for scaling in scalings:
        axis, dim = scaling.axis, shape[scaling.axis]
        numerator, double, last = _position(e, image, scaling, dim)
        low = _compute(e, "Div", numerator, double)
        rest = _compute(e, "Sub", numerator, _compute(e, "Mul", low, double))
        high = _compute(e, "Min", _compute(e, "Add", low, np.array([1])), last)
        picked = _gather(e, picked, _concat(e, [low, high], _times(dim, 2)), axis, _times(dim, 2))
        floats = [e.cast(e.value(part), FP32) for part in (rest, double)]
        factor = e.node("Div", *floats, result=Operand(FP32, (dim,)))
        column = (dim, *(1,) * (rank - axis - 1))
        if joined and scaling is scalings[-1]:
            factor = _reshaped(e, factor, [-1, 1], (dim, 1))
            factor = e.node("Tile", factor, np.array([1, channels]), result=Operand(FP32, (dim, channels)))
            column = (_times(dim, channels),)
        factors.append(_reshaped(e, factor, [-1, *column[1:]], column))
    if joined:
        joint = (*picked.shape[: rank - 1], _times(picked.shape[rank - 1], channels))
        picked = _reshaped(e, picked, [0] * (rank - 1) + [-1], joint)
    made = e.cast(e.cast(picked, value.dtype), FP32)
    for scaling, factor in zip(scalings, factors, strict=True):
        axis = scaling.axis
        size = _times(shape[axis], channels) if joined and axis == rank - 1 else shape[axis]
        half = Operand(FP32, (*made.shape[:axis], size, *made.shape[axis + 1 :]))
        first, second = e.nodes("Split", made, results=(half, half), axis=axis, num_outputs=2)
        step = e.node("Mul", e.node("Sub", second, first, result=half), factor, result=half)
        made = e.node("Add", first, step, result=half)
    if joined:
        made = _reshaped(e, made, [0] * (rank - 1) + [-1, *behind], shape)
    return e.cast(made, value.dtype)


def _reshaped(e: Emitter, value: Value, vector: Sequence[int], shape: tuple[Dim, ...]) -> Value:
    """``value`` as ``shape``, which ``vector`` says as ONNX does: 0 is the size that there is, -1 what is left."""
    return e.node("Reshape", value, np.array(vector), result=Operand(value.dtype, shape))


def window(e: Emitter, value: Value, start: Value, size: Dim) -> Value:
    """``size`` elements of a vector from ``start`` (int64 [1]) on; the run fails where there are not so many."""
    length = np.array([size])
    end = e.node("Add", start, length, result=start.operand)
    cut = Operand(value.dtype, (size,))
    return e.node("Reshape", e.node("Slice", value, start, end, result=cut), length, allowzero=1, result=cut)


def _times(dim: Dim, factor: int) -> Dim:
    # Of an open dimension nothing else is asked here than that it is open.
    return dim * factor if dim >= 0 else dim


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
