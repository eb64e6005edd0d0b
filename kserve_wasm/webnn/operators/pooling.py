"""Pooling.

Source: Web Neural Network API, "Pooling operations": ``averagePool2d``, ``l2Pool2d``, ``maxPool2d``. Padding is no
element: an average is over the elements of the input alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kserve_wasm.tensors import DType
from kserve_wasm.tensors.dtypes import FP16, FP32, INT8, INT64, UINT8, UINT32, UINT64
from kserve_wasm.webnn.operand import ALL, FLOATS, Operand, Scope
from kserve_wasm.webnn.operator import Arguments, Infer, Lower, Param, register
from kserve_wasm.webnn.operators.elementwise import always, extreme, held
from kserve_wasm.webnn.operators.limits import check_scratch, check_visits
from kserve_wasm.webnn.operators.windows import (
    DILATIONS,
    INPUT_LAYOUTS,
    PADDING,
    STRIDES,
    Axis,
    arranged,
    axes,
    layout,
    pads,
    transposed,
)

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

_MAX_POOL = frozenset({FP32, FP16, INT8, UINT8})
"""The types for which ONNX Runtime has a kernel of MaxPool."""
_MAX_PLACES = 1 << 10
"""Windows that are looked at one by one."""


def _windows(a: Arguments) -> tuple[Axis, Axis]:
    """Height and width; a window that is not given is the whole of them."""
    sizes = arranged(a.input.shape, layout(a, "layout", INPUT_LAYOUTS), "hw")
    given = a.windowDimensions or (0, 0)
    return axes(a, sizes, [window or size for window, size in zip(given, sizes, strict=True)])


def _is_whole(axis: Axis) -> bool:
    """Whether there is one window, with every element."""
    return axis.window == axis.size and axis.dilation == 1 and axis.before == axis.after == 0


def _infer(allowed: frozenset[DType]) -> Infer:
    def infer(a: Arguments, scope: Scope) -> Operand:
        a.check_dtype("input", allowed)
        a.check_rank("input", 4)
        if a.outputShapeRounding > 1:
            a.fail(f"outputShapeRounding must be 0 floor or 1 ceil, got {a.outputShapeRounding}")
        windows = _windows(a)
        if min(axis.window for axis in windows) < 0 and not all(map(_is_whole, windows)):
            a.fail(
                "a window over the whole of an open height or width takes no padding, dilations or other window"
            )
        if a.outputSizes is not None and any(axis.size < 0 for axis in windows):
            a.fail("outputSizes needs an input of known height and width")
        up = _rounds_up(a, windows, scope)
        counts = [1 if _is_whole(axis) else axis.count(a, scope, up=up) for axis in windows]
        for axis, count in zip(windows, counts, strict=True):
            if axis.size >= 0 and not _all_windows_have_elements(axis, count):
                a.fail(f"there are windows over the {axis.name} that have padding alone")
        given = INPUT_LAYOUTS[a.layout]
        batch, channels = arranged(a.input.shape, given, "nc")
        check_visits(a, scope, batch, channels, *counts, *(axis.window for axis in windows))
        if up or any(a.padding):
            check_scratch(a, scope, batch, channels, *(_most_padded(axis, scope) for axis in windows))
        return Operand(a.input.dtype, arranged((batch, channels, *counts), "nchw", given))

    return infer


def _rounds_up(a: Arguments, windows: tuple[Axis, Axis], scope: Scope) -> bool:
    """Whether windows that reach out count too. Fails where outputSizes is neither count."""
    if a.outputSizes is None:
        return bool(a.outputShapeRounding)
    down, up = ([axis.count(a, scope, up=way) for axis in windows] for way in (False, True))
    if list(a.outputSizes) not in (down, up):
        a.fail(f"outputSizes must be {down} or {up}, got {list(a.outputSizes)}")
    return list(a.outputSizes) != down


def _all_windows_have_elements(axis: Axis, count: int) -> bool:
    """Whether each window has an element of the input, which has a size."""
    if (count - 1) * axis.stride - axis.before >= axis.size or axis.before >= axis.reach:
        return False
    if axis.size >= axis.dilation:
        return True
    # Windows that begin in the padding may step over a small input; where the steps fall repeats with the dilation.
    early = min(count, -(-axis.before // axis.stride), axis.dilation)
    return early <= _MAX_PLACES and all(
        (place * axis.stride - axis.before) % axis.dilation < axis.size for place in range(early)
    )


# --- Lowering


def _most_padded(axis: Axis, scope: Scope) -> int:
    """The most elements there can be with padding, which some lowerings put around the input."""
    size = scope.bound(axis.size) or 1
    reach = axis.reach if axis.window >= 0 else size
    return size + axis.before + max(axis.after, reach) + axis.stride


def _padded_up(axis: Axis, *, up: bool) -> Axis:
    """The axis with just the padding at which windows that do not reach out are those that are wanted."""
    if axis.size < 0:
        return replace(axis, after=axis.after + (axis.stride - 1 if up else 0))
    free = axis.size + axis.before + axis.after - axis.reach
    last = (-(-free // axis.stride) if up else free // axis.stride) * axis.stride
    return replace(axis, after=max(0, last + axis.reach - axis.before - axis.size))


def _lower(op_type: str, reduction: str) -> Lower:
    def lower(e: Emitter, a: Arguments) -> Value:
        value, given = a.input, INPUT_LAYOUTS[a.layout]
        windows = _windows(a)
        if all(map(_is_whole, windows)):
            return _reduced(e, value, reduction, given)
        up = _rounds_up(a, windows, Scope())
        height, width = (_padded_up(axis, up=up) for axis in windows)
        if op_type == "MaxPool" and (value.dtype not in _MAX_POOL or not _has_kernel(height, width)):
            places = {given.index("h"): height, given.index("w"): width}
            value = _pad(e, value, places, held(value.dtype, -math.inf))
            for place, axis in places.items():
                value = _sliding_max(e, value, place, axis)
            return value
        result = Operand(value.dtype, arranged(e.results[0].shape, given, "nchw"))
        pooled = _pooled(e, transposed(e, value, given, "nchw"), op_type, (height, width), result)
        return transposed(e, pooled, "nchw", given)

    return lower


def _reduced(e: Emitter, value: Value, reduction: str, given: str) -> Value:
    """The whole height and width as one window."""
    result, dtype = e.results[0], value.dtype
    if reduction != "ReduceMax" or dtype not in (INT64, UINT32, UINT64):
        return e.node(reduction, value, np.array([given.index("h"), given.index("w")], np.int64))
    # ONNX Runtime's ReduceMax has no unsigned kernel, and a wrong int64 one (see ``extreme``).
    half = np.array(1 << 63, np.uint64)
    if dtype is UINT64:  # as int64, its order is kept once its upper half lies below its lower
        value = e.node("Sub", value, half, result=value.operand)
    value = transposed(e, e.cast(value, INT64), given, "nchw")
    flat = Operand(INT64, (*value.shape[:2], -1))
    one = np.array([1], np.int64)
    value = e.node("Reshape", value, np.array([0, 0, -1], np.int64), result=flat)
    largest = Operand(INT64, (*value.shape[:2], 1))
    most, _ = e.nodes("TopK", value, one, results=(largest, largest), axis=2)
    to_input = np.array([0, 0, 1, 1] if given == "nchw" else [0, 1, 1, -1], np.int64)
    most = e.cast(e.node("Reshape", most, to_input, result=Operand(INT64, result.shape)), dtype)
    return e.node("Add", most, half) if dtype is UINT64 else most


def _has_kernel(*windows: Axis) -> bool:
    """ONNX Runtime refuses padding as large as the window, which can make sense of a dilated one."""
    return all(max(axis.before, axis.after) < axis.window for axis in windows)


def _pooled(e: Emitter, value: Value, op_type: str, windows: tuple[Axis, Axis], result: Operand) -> Value:
    """``value``, [batch, channels, height, width], pooled by ONNX's operator."""
    attributes: dict[str, Any] = {
        "kernel_shape": [axis.window for axis in windows],
        "strides": [axis.stride for axis in windows],
        "dilations": [axis.dilation for axis in windows],
    }
    if _has_kernel(*windows):
        return e.node(op_type, value, result=result, pads=pads(windows), **attributes)

    def padded(of: Value) -> Value:
        of = _pad(e, of, dict(zip((2, 3), windows, strict=True)), 0)
        return e.node(op_type, of, result=result, **attributes)

    if op_type != "AveragePool":
        return padded(value)
    # Of the averages with padding, what is due to it cancels.
    one = np.ones((1, 1, 1, 1), value.dtype.numpy)
    extent = Operand(value.dtype, (1, 1, *value.shape[2:]))
    ones = e.node("Expand", one, e.value(e.shape_vector(extent.shape, value)), result=extent)
    return e.node("Div", padded(value), padded(ones), result=result)


def _pad(e: Emitter, value: Value, windows: dict[int, Axis], fill: float) -> Value:
    """``value`` with the padding of the windows at the dimensions that are their keys."""
    vector = np.zeros((2, value.rank), np.int64)
    for place, axis in windows.items():
        vector[:, place] = axis.before, axis.after
    if not vector.any():
        return value
    return e.pad(value, vector.reshape(-1), np.array(fill, value.dtype.numpy))


def _sliding_max(e: Emitter, value: Value, place: int, axis: Axis) -> Value:
    """The largest of each window along one dimension: of windows that double, until two of them cover it."""
    covered = 1
    while covered < axis.window:
        step = min(covered, axis.window - covered)
        early = _slice(e, value, place, 0, -step * axis.dilation)
        late = _slice(e, value, place, step * axis.dilation, _END)
        value = extreme(e, "Max", early, late, e.results[0])
        covered += step
    return value if axis.stride == 1 else _slice(e, value, place, 0, _END, axis.stride)


_END = (1 << 63) - 1


def _slice(e: Emitter, value: Value, place: int, start: int, end: int, step: int = 1) -> Value:
    return e.node("Slice", value, *(np.array([number], np.int64) for number in (start, end, place, step)))


# --- The operators

_PARAMS = (
    Param("input", "operand"),
    Param("windowDimensions", "u32[]", in_options=True, length=2),
    PADDING,
    STRIDES,
    DILATIONS,
    Param("layout", "u32", in_options=True, default=0),
    Param("outputShapeRounding", "u32", in_options=True, default=0),
    Param("outputSizes", "u32[]", in_options=True, length=2),
)

for _name, _op_type, _reduction, _dtypes in (
    ("averagePool2d", "AveragePool", "ReduceMean", FLOATS),
    ("l2Pool2d", "LpPool", "ReduceL2", FLOATS),
    ("maxPool2d", "MaxPool", "ReduceMax", ALL),
):
    register(_name, _PARAMS, _infer(_dtypes), _lower(_op_type, _reduction), always)
