"""Uses of element-wise operators and activation functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.webnn.strategies import (
    ALL,
    FLOATS,
    INTEGERS,
    SIGNED,
    Draw,
    bits,
    broadcast_shapes,
    elements,
    narrower,
    numbers,
    options,
    shapes,
    sometimes,
)
from tests.webnn.uses import Use

INFINITE = (math.inf, -math.inf)
ZEROS = (0.0, -0.0)


@st.composite
def binary(draw: Draw, name: str, specials: tuple[float, ...] = ()) -> Use:
    """Two operands of one type that broadcast."""
    dtype = draw(st.sampled_from(ALL))
    made = []
    for shape in draw(broadcast_shapes(2)):
        if dtype in FLOATS:
            made.append(draw(elements(dtype, shape, specials=specials)))
        else:
            made.append(draw(numbers(dtype, shape)))
    return Use(name, tuple(made))


@st.composite
def division(draw: Draw) -> Use:
    """Floats are divided by what is not near 0, or 0; integers by anything."""
    dtype = draw(st.sampled_from(ALL))
    a_shape, b_shape = draw(broadcast_shapes(2))
    if dtype in INTEGERS:
        extremes = draw(elements(dtype, a_shape, np.iinfo(dtype).min, np.iinfo(dtype).min + 1))
        a = draw(st.sampled_from([draw(numbers(dtype, a_shape)), extremes]))
        return Use("div", (a, draw(elements(dtype, b_shape, *draw(st.sampled_from([(-1, 3), (-99, 99)]))))))
    sign = draw(st.sampled_from([1, -1]))
    b = sign * draw(elements(dtype, b_shape, 0.25, 4.0, (0.0, math.inf)))
    return Use("div", (draw(elements(dtype, a_shape, specials=INFINITE + ZEROS)), b))


@st.composite
def power(draw: Draw) -> Use:
    """Positive numbers to any power, any number to whole powers; of integers, what the type holds."""
    dtype = draw(st.sampled_from(ALL))
    a_shape, b_shape = draw(broadcast_shapes(2))
    if dtype in INTEGERS:
        return Use("pow", (draw(elements(dtype, a_shape, -4, 4)), draw(elements(dtype, b_shape, 0, 3))))
    if draw(st.booleans()):
        exponents = np.rint(draw(elements(dtype, b_shape, -2, 3))).astype(dtype)
        base = draw(elements(dtype, a_shape, 0.5, 3))
        return Use("pow", (base * draw(st.sampled_from([1, -1])), exponents))
    return Use("pow", (draw(elements(dtype, a_shape, 0.25, 4)), draw(elements(dtype, b_shape, -2, 2))))


@st.composite
def unary(
    draw: Draw,
    name: str,
    dtypes: tuple[str, ...] = FLOATS,
    low: float = -8.0,
    high: float = 8.0,
    specials: tuple[float, ...] = (),
    **given: Any,
) -> Use:
    """One operand; ``given`` are strategies of options."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(shapes())
    array = draw(elements(dtype, shape, low, high, specials) if dtype in FLOATS else numbers(dtype, shape))
    return Use(name, (array,), options(**{key: draw(sometimes(value)) for key, value in given.items()}))


@st.composite
def logical(draw: Draw, name: str) -> Use:
    """Truth values: 0, and any other number."""
    shapes_ = draw(broadcast_shapes(1 if name == "logicalNot" else 2))
    return Use(name, tuple(draw(elements("uint8", s, 0, draw(st.sampled_from([1, 255])))) for s in shapes_))


@st.composite
def cast(draw: Draw) -> Use:
    """From each type to each."""
    source, target = draw(st.sampled_from(ALL)), draw(st.sampled_from(ALL))
    shape = draw(shapes())
    if source not in FLOATS:
        return Use("cast", (draw(bits(source, shape)), target))
    high = draw(st.sampled_from([9.0, 300.0, 6e4, 5e9, 4e19]))
    specials = (*INFINITE, *ZEROS, math.nan, 65519.0, 65520.0, 1e-8, 2.0**31, 2.0**32, 2.0**63, 2.0**64)
    return Use("cast", (draw(elements(source, shape, -high, high, specials)), target))


@st.composite
def clamp(draw: Draw) -> Use:
    dtype = draw(st.sampled_from(ALL))
    shape = draw(shapes())
    if dtype in FLOATS:
        array = draw(elements(dtype, shape, specials=INFINITE))
        bounds = sorted(draw(st.floats(-8, 8, width=16)) for _ in range(2))
    else:
        array = draw(numbers(dtype, shape))
        limits = np.iinfo(dtype)
        bounds = sorted(draw(st.integers(max(limits.min, -100), min(limits.max, 100))) for _ in range(2))
    given = draw(st.sampled_from([(True, True), (True, False), (False, True), (False, False)]))
    return Use(
        "clamp",
        (array,),
        options(minValue=bounds[0] if given[0] else None, maxValue=bounds[1] if given[1] else None),
    )


@st.composite
def where(draw: Draw) -> Use:
    dtype = draw(st.sampled_from(ALL))
    condition, true, false = draw(broadcast_shapes(3))
    return Use(
        "where",
        (draw(elements("uint8", condition, 0, 2)), draw(bits(dtype, true)), draw(bits(dtype, false))),
    )


@st.composite
def prelu(draw: Draw) -> Use:
    dtype = draw(st.sampled_from(SIGNED))
    shape = draw(shapes())
    slope = draw(narrower(shape))
    return Use("prelu", (draw(numbers(dtype, shape)), draw(numbers(dtype, slope))))


@st.composite
def identity(draw: Draw) -> Use:
    return Use("identity", (draw(bits(draw(st.sampled_from(ALL)), draw(shapes()))),))


@st.composite
def softmax(draw: Draw) -> Use:
    shape = draw(shapes(least=1))
    array = draw(elements(draw(st.sampled_from(FLOATS)), shape, -20, 20))
    return Use("softmax", (array, draw(st.integers(0, len(shape) - 1))))


_alpha = st.floats(-2, 2, width=16)
_NAN = (math.nan, *INFINITE, *ZEROS)

USES: dict[str, st.SearchStrategy[Use]] = {
    **{name: binary(name) for name in ("add", "sub", "mul")},
    **{name: binary(name, INFINITE) for name in ("max", "min")},
    "div": division(),
    "pow": power(),
    **{
        name: binary(name, _NAN)
        for name in ("equal", "notEqual", "greater", "greaterOrEqual", "lesser", "lesserOrEqual")
    },
    **{name: logical(name) for name in ("logicalAnd", "logicalOr", "logicalXor", "logicalNot")},
    **{name: unary(name, specials=_NAN) for name in ("isNaN", "isInfinite")},
    "abs": unary("abs", SIGNED, specials=INFINITE),
    "neg": unary("neg", SIGNED, specials=INFINITE),
    "sign": unary("sign", SIGNED, specials=INFINITE + ZEROS),
    **{name: unary(name, specials=INFINITE) for name in ("ceil", "floor", "roundEven", "erf", "tanh")},
    **{name: unary(name, low=-20, high=20) for name in ("sin", "cos")},
    # Away from the poles, where the tangent turns an error of the argument into a greater one.
    "tan": unary("tan", low=-1.4, high=1.4),
    "exp": unary("exp", specials=INFINITE),
    "log": unary("log", low=0.01, high=100, specials=(0.0, math.inf)),
    "sqrt": unary("sqrt", low=0, high=100, specials=(0.0, math.inf)),
    "reciprocal": unary("reciprocal", low=0.1, high=8, specials=INFINITE + ZEROS),
    "identity": identity(),
    "cast": cast(),
    "clamp": clamp(),
    "where": where(),
    "relu": unary("relu", SIGNED, specials=INFINITE),
    "sigmoid": unary("sigmoid", low=-20, high=20, specials=INFINITE),
    "gelu": unary("gelu"),
    "elu": unary("elu", alpha=_alpha),
    "leakyRelu": unary("leakyRelu", alpha=_alpha),
    "linear": unary("linear", alpha=_alpha, beta=_alpha),
    "hardSigmoid": unary("hardSigmoid", alpha=_alpha, beta=_alpha),
    "hardSwish": unary("hardSwish"),
    "softplus": unary("softplus", low=-20, high=20),
    "softsign": unary("softsign"),
    "prelu": prelu(),
    "softmax": softmax(),
}
"""A strategy for each operator."""
