"""Activation functions.

Source: Web Neural Network API, ``elu``, ``gelu``, ``hardSigmoid``, ``hardSwish``, ``leakyRelu``, ``linear``, ``prelu``,
``relu``, ``sigmoid``, ``softmax``, ``softplus``, ``softsign``, ``tanh``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kserve_wasm.tensors import DType
from kserve_wasm.tensors.dtypes import BOOL, INT64
from kserve_wasm.webnn.operand import FLOATS, SIGNED, Operand, Scope
from kserve_wasm.webnn.operator import Arguments, Lower, Param, register
from kserve_wasm.webnn.operators.elementwise import always, broadcasts, extreme, held, select, unary

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

INPUT = Param("input", "operand")


def real(dtype: DType, number: float) -> float:
    """An attribute as the specification casts it to the operand's type: rounded, and infinite beyond its range."""
    return float(held(dtype, number))


def _apply(op_type: str, *attributes: str) -> Lower:
    """One node, with the arguments ``attributes`` as ONNX's attributes of the same names."""

    def lower(e: Emitter, a: Arguments) -> Value:
        numbers: dict[str, Any] = {name: real(a.input.dtype, getattr(a, name)) for name in attributes}
        return e.node(op_type, a.input, **numbers)

    return lower


for _name, _op_type in (
    ("gelu", "Gelu"),
    ("hardSwish", "HardSwish"),
    ("sigmoid", "Sigmoid"),
    ("softplus", "Softplus"),
    ("softsign", "Softsign"),
    ("tanh", "Tanh"),
):
    register(_name, (INPUT,), unary(FLOATS), _apply(_op_type), always)

for _name, _op_type, _defaults in (
    ("elu", "Elu", {"alpha": 1.0}),
    ("hardSigmoid", "HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
    ("leakyRelu", "LeakyRelu", {"alpha": 0.01}),
):
    register(
        _name,
        (INPUT, *(Param(name, "f64", default=default) for name, default in _defaults.items())),
        unary(FLOATS),
        _apply(_op_type, *_defaults),
        always,
    )


def _relu(e: Emitter, a: Arguments) -> Value:
    if a.input.dtype is INT64:  # for which Relu has no kernel
        return extreme(e, "Max", a.input, np.array(0, np.int64), a.input.operand)
    return e.node("Relu", a.input)


def _linear(e: Emitter, a: Arguments) -> Value:
    dtype = a.input.dtype
    alpha, beta = (np.array(held(dtype, number), dtype.numpy) for number in (a.alpha, a.beta))
    return e.node("Add", e.node("Mul", a.input, alpha), beta)


register("relu", (INPUT,), unary(SIGNED), _relu, always)
register(
    "linear",
    (INPUT, Param("alpha", "f64", default=1.0), Param("beta", "f64", default=0.0)),
    unary(FLOATS),
    _linear,
    always,
)


# --- prelu


def _prelu_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_dtype("input", SIGNED)
    a.check_same_dtype("input", "slope")
    return Operand(a.input.dtype, a.broadcast(scope, "input", "slope"))


def _prelu(e: Emitter, a: Arguments) -> Value:
    value, slope, result = a.input, a.slope, e.results[0]
    aligned = zip(reversed(slope.shape), reversed(value.shape), strict=False)
    # ONNX's PRelu broadcasts the slope to the input, not the other way round.
    if result.dtype in FLOATS and slope.rank <= value.rank and all(s in (1, size) for s, size in aligned):
        return e.node("PRelu", value, slope)
    negative = e.node("Less", value, np.array(0, result.dtype.numpy), result=Operand(BOOL, value.shape))
    return select(e, negative, e.node("Mul", value, slope), value, result)


register("prelu", "input:operand slope:operand", _prelu_infer, _prelu, broadcasts("input", "slope"))


# --- softmax


def _softmax_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_axis("axis", a.input.rank)
    return unary(FLOATS)(a, scope)


register(
    "softmax",
    "input:operand axis:u32",
    _softmax_infer,
    lambda e, a: e.node("Softmax", a.input, axis=a.axis),
    lambda a: a.axis != 0,
)
