"""Normalizations.

Source: Web Neural Network API, ``batchNormalization``, ``instanceNormalization``, ``layerNormalization``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kserve_wasm.webnn.operand import FLOATS, Operand, Scope, is_named
from kserve_wasm.webnn.operator import Arguments, Param, register
from kserve_wasm.webnn.operators.activation import INPUT, real
from kserve_wasm.webnn.operators.elementwise import held
from kserve_wasm.webnn.operators.windows import INPUT_LAYOUTS, layout

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

_SCALE, _BIAS = Param("scale", "optional"), Param("bias", "optional")
_EPSILON = Param("epsilon", "f64", default=1e-5)

_MAX_FILLED = 1 << 16
"""Elements that are put into the graph in place of an operand that is not given."""


def _alone(a: Arguments) -> bool:
    """Whether of all operands only the input has the batch."""
    others = (getattr(a, name, None) for name in ("mean", "variance", "scale", "bias"))
    return not any(operand is not None and operand.batched for operand in others)


def _along(e: Emitter, value: Value, axes: Sequence[int], rank: int) -> Value:
    """``value``, whose dimensions are ``axes`` of an operand of ``rank``, so that it broadcasts along them."""
    order = [axes.index(axis) for axis in sorted(axes)]
    added = [axis for axis in range(min(axes, default=rank), rank) if axis not in axes]
    if value.array is not None:
        transposed = np.transpose(value.array, order)
        return e.constant(
            np.expand_dims(transposed, [axis - min(axes) for axis in added]) if added else transposed
        )
    shape = tuple(value.shape[n] for n in order)
    if order != sorted(order):
        value = e.node("Transpose", value, result=Operand(value.dtype, shape), perm=order)
    if not added:
        return value
    places = [axis - min(axes) for axis in added]
    return e.node("Unsqueeze", value, np.array(places, np.int64), result=value.operand)


def _scaled(e: Emitter, a: Arguments, value: Value, axes: Sequence[int]) -> Value:
    """``value`` with the scale and the bias, whose dimensions are ``axes``, where there are any."""
    rank = a.input.rank
    if a.scale is not None:
        value = e.node("Mul", value, _along(e, a.scale, axes, rank))
    if a.bias is not None:
        value = e.node("Add", value, _along(e, a.bias, axes, rank))
    return value


def _filled(a: Arguments, name: str, number: int, shape: Sequence[int]) -> Value | npt.NDArray[Any] | None:
    """The operand, or ``number`` in its ``shape``; None where that is not known, or large."""
    given: Value | None = getattr(a, name)
    if given is not None:
        return given
    known = min(shape, default=0) >= 0 and math.prod(shape) <= _MAX_FILLED
    return np.full(shape, number, a.input.dtype.numpy) if known else None


def _epsilon(a: Arguments) -> npt.NDArray[Any]:
    return np.array(held(a.input.dtype, a.epsilon), a.input.dtype.numpy)


def _standardized(e: Emitter, a: Arguments, axes: Sequence[int]) -> Value:
    """The input less its mean over ``axes``, divided by its deviation over them."""
    value = a.input
    kept = Operand(value.dtype, tuple(1 if n in axes else dim for n, dim in enumerate(value.shape)))
    over = np.array(axes, np.int64)

    def mean(of: Value) -> Value:
        return e.node("ReduceMean", of, over, result=kept) if axes else of

    centred = e.node("Sub", value, mean(value))
    variance = mean(e.node("Mul", centred, centred))
    deviation = e.node("Sqrt", e.node("Add", variance, _epsilon(a), result=kept), result=kept)
    return e.node("Div", centred, deviation)


# --- batchNormalization


def _batch_infer(a: Arguments, _scope: Scope) -> Operand:
    a.check_dtype("input", FLOATS)
    a.check_same_dtype("input", "mean", "variance", "scale", "bias")
    a.check_axis("axis", a.input.rank)
    for name in ("mean", "variance", "scale", "bias"):
        a.check_shape(name, (a.input.shape[a.axis],))
    return Operand(a.input.dtype, a.input.shape)


def _batch(e: Emitter, a: Arguments) -> Value:
    """The mean is taken off first: multiplied out, as ONNX Runtime's kernel has it, digits would cancel.

    Constants make nodes that ONNX Runtime merges into a convolution before them.
    """
    axes, rank, dtype = (a.axis,), a.input.rank, a.input.dtype
    ones = np.array(1, dtype.numpy)
    if all(value is None or value.array is not None for value in (a.mean, a.variance, a.scale)):
        scale = ones if a.scale is None else a.scale.array
        with np.errstate(all="ignore"):
            deviation = np.sqrt(a.variance.array.astype(np.float64) + _epsilon(a))
            factor = e.constant((scale / deviation).astype(dtype.numpy))
        shift = e.constant(-a.mean.array)
    else:
        of_channels = a.mean.operand
        variance = e.node("Add", a.variance, _epsilon(a), result=of_channels)
        deviation = e.node("Sqrt", variance, result=of_channels)
        factor = e.node("Div", ones if a.scale is None else a.scale, deviation, result=of_channels)
        shift = e.node("Neg", a.mean, result=of_channels)
    value = e.node("Add", a.input, _along(e, shift, axes, rank))
    value = e.node("Mul", value, _along(e, factor, axes, rank))
    return value if a.bias is None else e.node("Add", value, _along(e, a.bias, axes, rank))


register(
    "batchNormalization",
    (
        INPUT,
        Param("mean", "operand"),
        Param("variance", "operand"),
        _SCALE,
        _BIAS,
        Param("axis", "u32", default=1),
        _EPSILON,
    ),
    _batch_infer,
    _batch,
    lambda a: a.axis != 0 and _alone(a),
)


# --- instanceNormalization


def _instance_infer(a: Arguments, _scope: Scope) -> Operand:
    a.check_dtype("input", FLOATS)
    a.check_same_dtype("input", "scale", "bias")
    a.check_rank("input", 4)
    if 0 in a.input.shape:
        a.fail("input must not be empty")
    channels = a.input.shape[layout(a, "layout", INPUT_LAYOUTS).index("c")]
    a.check_shape("scale", (channels,))
    a.check_shape("bias", (channels,))
    return Operand(a.input.dtype, a.input.shape)


def _instance(e: Emitter, a: Arguments) -> Value:
    given = INPUT_LAYOUTS[a.layout]
    channels = a.input.shape[given.index("c")]
    scale, bias = _filled(a, "scale", 1, (channels,)), _filled(a, "bias", 0, (channels,))
    # Of an empty float16 input, ONNX Runtime's kernel reads what is not there: it must be known that it is not.
    filled = all(size > 0 or is_named(size) for size in a.input.shape)
    if given != "nchw" or scale is None or bias is None or not filled:
        axes = [given.index("h"), given.index("w")]
        return _scaled(e, a, _standardized(e, a, axes), (given.index("c"),))
    return e.node("InstanceNormalization", a.input, scale, bias, epsilon=real(a.input.dtype, a.epsilon))


register(
    "instanceNormalization",
    (INPUT, _SCALE, _BIAS, _EPSILON, Param("layout", "u32", default=0)),
    _instance_infer,
    _instance,
    _alone,
)


# --- layerNormalization


def _layer_axes(a: Arguments) -> tuple[int, ...]:
    return a.axes("axes", a.input.rank, default=tuple(range(1, a.input.rank)))


def _layer_infer(a: Arguments, _scope: Scope) -> Operand:
    a.check_dtype("input", FLOATS)
    a.check_same_dtype("input", "scale", "bias")
    shape = [a.input.shape[axis] for axis in _layer_axes(a)]
    a.check_shape("scale", shape)
    a.check_shape("bias", shape)
    return Operand(a.input.dtype, a.input.shape)


def _layer(e: Emitter, a: Arguments) -> Value:
    axes, rank = _layer_axes(a), a.input.rank
    first = rank - len(axes)
    scale = _filled(a, "scale", 1, a.input.shape[first:])
    # ONNX's normalizes the last dimensions.
    if not axes or min(axes) < first or scale is None:
        return _scaled(e, a, _standardized(e, a, axes), axes)
    scale = _along(e, e.value(scale), axes, rank) if a.scale is not None else scale
    bias = None if a.bias is None else _along(e, a.bias, axes, rank)
    return e.node(
        "LayerNormalization", a.input, scale, bias, axis=first, epsilon=real(a.input.dtype, a.epsilon)
    )


register(
    "layerNormalization",
    (INPUT, _SCALE, _BIAS, Param("axes", "u32s?"), _EPSILON),
    _layer_infer,
    _layer,
    lambda a: 0 not in _layer_axes(a) and _alone(a),
)
