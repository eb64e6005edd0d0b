"""Convolutions.

Source: Web Neural Network API, ``conv2d`` and ``convTranspose2d``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kserve_wasm.webnn.operand import FLOATS, Dim, Operand, Scope
from kserve_wasm.webnn.operator import Arguments, Param, register
from kserve_wasm.webnn.operators.limits import check_filled, check_products, check_scratch
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

FILTER_LAYOUTS = ("oihw", "hwio", "ohwi", "ihwo")
"""By number (``MLConv2dFilterOperandLayout``)."""
TRANSPOSE_FILTER_LAYOUTS = ("iohw", "hwoi", "ohwi")
"""By number (``MLConvTranspose2dFilterOperandLayout``)."""

_OPERANDS = (Param("input", "operand"), Param("filter", "operand"), Param("bias", "optional"))
_LAYOUTS = (
    Param("groups", "u32", in_options=True, default=1),
    Param("inputLayout", "u32", in_options=True, default=0),
    Param("filterLayout", "u32", in_options=True, default=0),
)


def _check(a: Arguments, scope: Scope) -> None:
    a.check_dtype("input", FLOATS)
    a.check_same_dtype("input", "filter", "bias")
    a.check_rank("input", 4)
    a.check_rank("filter", 4)
    check_filled(a, scope, "filter")  # over an empty one, ONNX Runtime's Conv runs for ever
    if a.groups == 0:
        a.fail("groups must be at least 1, got 0")


def _check_channels(a: Arguments, what: str, channels: Dim) -> None:
    if channels >= 0 and channels % a.groups:
        a.fail(f"the {channels} {what} channels cannot be divided into {a.groups} groups")


def _times(channels: Dim, groups: int, scope: Scope) -> Dim:
    """Channels of all groups together."""
    return channels if groups == 1 else scope.derived(lambda known: known * groups, channels)


def _windows(a: Arguments, filter_layouts: tuple[str, ...]) -> tuple[Axis, Axis]:
    given = layout(a, "inputLayout", INPUT_LAYOUTS)
    filters = layout(a, "filterLayout", filter_layouts)
    return axes(a, arranged(a.input.shape, given, "hw"), arranged(a.filter.shape, filters, "hw"))


def _convolution(
    e: Emitter, a: Arguments, op_type: str, filter_layouts: tuple[str, ...], **own: Any
) -> Value:
    given = INPUT_LAYOUTS[a.inputLayout]
    windows = _windows(a, filter_layouts)
    result = e.results[0]
    computed = e.node(
        op_type,
        transposed(e, a.input, given, "nchw"),
        transposed(e, a.filter, filter_layouts[a.filterLayout], filter_layouts[0]),
        *(() if a.bias is None else (a.bias,)),
        result=Operand(result.dtype, arranged(result.shape, given, "nchw")),
        pads=pads(windows),
        strides=list(a.strides),
        dilations=list(a.dilations),
        group=a.groups,
        **own,
    )
    return transposed(e, computed, "nchw", given)


def _row_wise(a: Arguments) -> bool:
    return not a.filter.batched and (a.bias is None or not a.bias.batched)


# --- conv2d


def _conv2d_infer(a: Arguments, scope: Scope) -> Operand:
    _check(a, scope)
    windows = _windows(a, FILTER_LAYOUTS)
    given = INPUT_LAYOUTS[a.inputLayout]
    batch, channels = arranged(a.input.shape, given, "nc")
    outputs, inputs = arranged(a.filter.shape, FILTER_LAYOUTS[a.filterLayout], "oi")
    _check_channels(a, "input", channels)
    _check_channels(a, "output", outputs)
    if channels >= 0 and inputs >= 0 and channels != inputs * a.groups:
        a.fail(
            f"the filter must be for {channels // a.groups} channels, those of the input in each of {a.groups} groups; "
            f"it is for {inputs}"
        )
    a.check_shape("bias", (outputs,))
    height, width = (axis.count(a, scope) for axis in windows)
    check_products(a, scope, batch, outputs, height, width, inputs, *(axis.window for axis in windows))
    return Operand(a.input.dtype, arranged((batch, outputs, height, width), "nchw", given))


register(
    "conv2d",
    (*_OPERANDS, PADDING, STRIDES, DILATIONS, *_LAYOUTS),
    _conv2d_infer,
    lambda e, a: _convolution(e, a, "Conv", FILTER_LAYOUTS),
    _row_wise,
)


# --- convTranspose2d


def _grown(a: Arguments, scope: Scope, axis: Axis, padding: int, wanted: int | None) -> Dim:
    """How large one dimension becomes."""
    if wanted is None and padding >= axis.stride:
        a.fail(f"outputPadding must be below the stride, {axis.stride}, got {padding} for the {axis.name}")

    def full(size: int, window: int) -> int:
        return (size - 1) * axis.stride + (window - 1) * axis.dilation + 1 - axis.before - axis.after

    if axis.size < 0 or axis.window < 0:
        if wanted is None:
            return scope.derived(
                lambda size, window: max(full(size, window) + padding, 1), axis.size, axis.window
            )
        if axis.size in scope.bounds:
            a.fail(f"outputSizes needs an input whose {axis.name} the run does not decide")
        return wanted
    made = full(axis.size, axis.window)
    if wanted is not None and not made <= wanted < made + axis.stride:
        a.fail(
            f"the {axis.name} in outputSizes must be from {made} to {made + axis.stride - 1}, got {wanted}"
        )
    size = made + padding if wanted is None else wanted
    if size < 1:
        a.fail(f"padding {axis.before} and {axis.after} leaves nothing of the {axis.name}, {made}")
    return size


def _output_padding(axis: Axis, padding: int, wanted: int | None) -> int:
    if wanted is None:
        return padding
    # Only one size of the input comes to the size that is wanted: what is more than it makes.
    return (wanted + axis.before + axis.after - axis.reach) % axis.stride


def _conv_transpose2d_infer(a: Arguments, scope: Scope) -> Operand:
    _check(a, scope)
    windows = _windows(a, TRANSPOSE_FILTER_LAYOUTS)
    given = INPUT_LAYOUTS[a.inputLayout]
    batch, channels = arranged(a.input.shape, given, "nc")
    inputs, outputs = arranged(a.filter.shape, TRANSPOSE_FILTER_LAYOUTS[a.filterLayout], "io")
    if channels >= 0 and inputs >= 0 and channels != inputs:
        a.fail(f"the filter must be for the input's {channels} channels, and it is for {inputs}")
    _check_channels(a, "input", channels if channels >= 0 else inputs)
    if a.outputSizes is not None and min(axis.window for axis in windows) < 0:
        a.fail("outputSizes needs a filter of known height and width")
    height, width = (
        _grown(a, scope, axis, a.outputPadding[n], a.outputSizes and a.outputSizes[n])
        for n, axis in enumerate(windows)
    )
    outputs_together = _times(outputs, a.groups, scope)
    a.check_shape("bias", (outputs_together,))
    # What every element of the input makes of the filter is held before it is added up.
    sizes = (outputs, *(axis.size for axis in windows), *(axis.window for axis in windows))
    check_scratch(a, scope, *sizes)
    check_products(a, scope, batch, inputs, *sizes)
    return Operand(a.input.dtype, arranged((batch, outputs_together, height, width), "nchw", given))


def _conv_transpose2d(e: Emitter, a: Arguments) -> Value:
    windows = _windows(a, TRANSPOSE_FILTER_LAYOUTS)
    padding = [
        _output_padding(axis, a.outputPadding[n], a.outputSizes and a.outputSizes[n])
        for n, axis in enumerate(windows)
    ]
    return _convolution(e, a, "ConvTranspose", TRANSPOSE_FILTER_LAYOUTS, output_padding=padding)


register(
    "convTranspose2d",
    (
        *_OPERANDS,
        PADDING,
        STRIDES,
        DILATIONS,
        Param("outputPadding", "u32[]", in_options=True, length=2, default=(0, 0)),
        Param("outputSizes", "u32[]", in_options=True, length=2),
        *_LAYOUTS,
    ),
    _conv_transpose2d_infer,
    _conv_transpose2d,
    _row_wise,
)
