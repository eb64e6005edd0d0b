"""Uses of the operators that networks are made of: products, convolutions, pooling, normalization, recurrence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from tests.webnn.strategies import (
    ALL,
    FLOATS,
    Draw,
    bits,
    elements,
    narrower,
    options,
    shapes,
    sizes,
    sometimes,
    subsets,
)
from tests.webnn.uses import Use

dtypes = st.sampled_from(FLOATS)
small = st.integers(1, 3)


# --- Products


@st.composite
def matmul(draw: Draw) -> Use:
    dtype, batch = draw(dtypes), draw(shapes(most=2))
    m, k, n = draw(sizes), draw(sizes), draw(sizes)
    a = draw(elements(dtype, (*draw(narrower(batch)), m, k), -2, 2))
    return Use("matmul", (a, draw(elements(dtype, (*draw(narrower(batch)), k, n), -2, 2))))


@st.composite
def gemm(draw: Draw) -> Use:
    dtype = draw(dtypes)
    m, k, n = draw(sizes), draw(sizes), draw(sizes)
    given = options(
        alpha=draw(sometimes(st.floats(-2, 2, width=16))),
        beta=draw(sometimes(st.floats(-2, 2, width=16))),
        aTranspose=draw(sometimes(st.booleans())),
        bTranspose=draw(sometimes(st.booleans())),
    )
    if draw(st.booleans()):
        given["c"] = draw(elements(dtype, draw(narrower((m, n))), -2, 2))
    a = draw(elements(dtype, (k, m) if given.get("aTranspose") else (m, k), -2, 2))
    return Use(
        "gemm", (a, draw(elements(dtype, (n, k) if given.get("bTranspose") else (k, n), -2, 2))), given
    )


# --- Windows


def arranged(sizes_by_letter: dict[str, int], layout: str) -> tuple[int, ...]:
    """A shape whose dimensions are the letters of ``layout``."""
    return tuple(sizes_by_letter[letter] for letter in layout)


@st.composite
def window(draw: Draw) -> dict[str, Any]:
    """Options that convolutions and pooling have: padding, strides, dilations."""
    return options(
        padding=draw(sometimes(st.tuples(*[st.integers(0, 2)] * 4))),
        strides=draw(sometimes(st.tuples(small, small))),
        dilations=draw(sometimes(st.tuples(st.integers(1, 2), st.integers(1, 2)))),
    )


def extent(kernel: tuple[int, int], given: dict[str, Any]) -> list[int]:
    """How far a kernel reaches."""
    dilations = given.get("dilations", (1, 1))
    return [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]


@st.composite
def conv2d(draw: Draw) -> Use:
    dtype, given = draw(dtypes), draw(window())
    layout = draw(sometimes(st.sampled_from(["nchw", "nhwc"])))
    filter_layout = draw(sometimes(st.sampled_from(["oihw", "hwio", "ohwi", "ihwo"])))
    groups = draw(sometimes(small))
    kernel = draw(small), draw(small)
    padding = given.get("padding", (0, 0, 0, 0))
    reach = extent(kernel, given)
    of_group, height, width = (
        draw(small),
        *(draw(st.integers(max(1, reach[n] - padding[2 * n] - padding[2 * n + 1]), 7)) for n in range(2)),
    )
    outputs = draw(st.integers(1, 2)) * (groups or 1)
    x = {"n": draw(st.integers(1, 2)), "c": of_group * (groups or 1), "h": height, "w": width}
    w = {"o": outputs, "i": of_group, "h": kernel[0], "w": kernel[1]}
    given |= options(groups=groups, inputLayout=layout, filterLayout=filter_layout)
    if draw(st.booleans()):
        given["bias"] = draw(elements(dtype, (outputs,), -1, 1))
    return Use(
        "conv2d",
        (
            draw(elements(dtype, arranged(x, layout or "nchw"), -1, 1)),
            draw(elements(dtype, arranged(w, filter_layout or "oihw"), -1, 1)),
        ),
        given,
    )


@st.composite
def conv_transpose2d(draw: Draw) -> Use:
    dtype, given = draw(dtypes), draw(window())
    layout = draw(sometimes(st.sampled_from(["nchw", "nhwc"])))
    filter_layout = draw(sometimes(st.sampled_from(["iohw", "hwoi", "ohwi"])))
    groups = draw(sometimes(small))
    kernel = draw(small), draw(small)
    strides, padding = given.get("strides", (1, 1)), given.get("padding", (0, 0, 0, 0))
    size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    reach = extent(kernel, given)
    made = [(size[n] - 1) * strides[n] + reach[n] - padding[2 * n] - padding[2 * n + 1] for n in range(2)]
    extra = tuple(draw(st.integers(0, stride - 1)) for stride in strides)
    assume(min(made) >= 1)
    form = draw(st.sampled_from(["nothing", "outputPadding", "outputSizes"]))
    if form == "outputPadding":
        given["outputPadding"] = extra
    elif form == "outputSizes":
        given["outputSizes"] = (made[0] + extra[0], made[1] + extra[1])
    outputs = draw(st.integers(1, 2))
    x = {
        "n": draw(st.integers(1, 2)),
        "c": draw(st.integers(1, 2)) * (groups or 1),
        "h": size[0],
        "w": size[1],
    }
    w = {"i": x["c"], "o": outputs, "h": kernel[0], "w": kernel[1]}
    given |= options(groups=groups, inputLayout=layout, filterLayout=filter_layout)
    if draw(st.booleans()):
        given["bias"] = draw(elements(dtype, (outputs * (groups or 1),), -1, 1))
    return Use(
        "convTranspose2d",
        (
            draw(elements(dtype, arranged(x, layout or "nchw"), -1, 1)),
            draw(elements(dtype, arranged(w, filter_layout or "iohw"), -1, 1)),
        ),
        given,
    )


@st.composite
def pool2d(draw: Draw, name: str) -> Use:
    """Windows that all have an element of the input: the specification says nothing of those that have none."""
    dtype, given = draw(st.sampled_from(ALL if name == "maxPool2d" else FLOATS)), draw(window())
    layout = draw(sometimes(st.sampled_from(["nchw", "nhwc"])))
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    kernel = draw(sometimes(st.tuples(small, small)))
    rounding = draw(sometimes(st.sampled_from(["floor", "ceil"])))
    padding, strides = given.get("padding", (0, 0, 0, 0)), given.get("strides", (1, 1))
    dilations = given.get("dilations", (1, 1))
    reach = extent(kernel or (height, width), given)
    made = []
    for n, size in enumerate((height, width)):
        free = size + padding[2 * n] + padding[2 * n + 1] - reach[n]
        assume(free >= 0)
        count = (math.ceil if rounding == "ceil" else math.floor)(free / strides[n]) + 1
        taps = range(0, reach[n], dilations[n])
        assume(
            all(
                any(0 <= place * strides[n] - padding[2 * n] + tap < size for tap in taps)
                for place in range(count)
            )
        )
        made.append(count)
    x = {"n": draw(st.integers(1, 2)), "c": draw(small), "h": height, "w": width}
    given |= options(windowDimensions=kernel, layout=layout, outputShapeRounding=rounding)
    if draw(st.booleans()) and draw(st.booleans()):
        given["outputSizes"] = tuple(made)
    kind = elements(dtype, arranged(x, layout or "nchw"), -2, 2)
    return Use(name, (draw(kind if dtype in FLOATS else bits(dtype, arranged(x, layout or "nchw"))),), given)


@st.composite
def resample2d(draw: Draw) -> Use:
    dtype, shape = draw(dtypes), draw(shapes(least=4))
    axes = draw(sometimes(st.permutations(range(4)).map(lambda order: tuple(order[:2]))))
    places = axes or (2, 3)
    given = options(mode=draw(sometimes(st.sampled_from(["nearest-neighbor", "linear"]))), axes=axes)
    form = draw(st.sampled_from(["sizes", "scales", "both", "neither"]))
    if form in ("sizes", "both"):
        given["sizes"] = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    if form in ("scales", "both"):
        scale = st.floats(0.25, 4, width=16)
        given["scales"] = (draw(scale), draw(scale))
        assume(min(shape[axis] * s for axis, s in zip(places, given["scales"], strict=True)) >= 1)
    return Use("resample2d", (draw(elements(dtype, shape, -4, 4)),), given)


# --- Normalization

_epsilon = st.sampled_from([1e-5, 1e-3, 0.5])


def spread(dtype: str, shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Eighths: elements that differ do so by much more than the rounding of their mean, however small epsilon is."""
    return elements(dtype, shape, -2, 2).map(lambda array: np.asarray(np.rint(8 * array) / 8, dtype))


@st.composite
def affine(draw: Draw, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Scale and bias, each perhaps absent, and epsilon."""
    return options(
        scale=draw(sometimes(elements(dtype, shape, -2, 2))),
        bias=draw(sometimes(elements(dtype, shape, -2, 2))),
        epsilon=draw(sometimes(_epsilon)),
    )


@st.composite
def batch_normalization(draw: Draw) -> Use:
    dtype, shape = draw(dtypes), draw(shapes(least=1))
    axis = draw(st.integers(0, len(shape) - 1))
    channels = (shape[axis],)
    given = draw(affine(dtype, channels))
    if axis != 1 or draw(st.booleans()):
        given["axis"] = axis
    return Use(
        "batchNormalization",
        (
            draw(elements(dtype, shape, -2, 2)),
            draw(elements(dtype, channels, -1, 1)),
            draw(elements(dtype, channels, 0.25, 4)),
        ),
        given,
    )


@st.composite
def instance_normalization(draw: Draw) -> Use:
    dtype, shape = draw(dtypes), draw(shapes(least=4))
    layout = draw(sometimes(st.sampled_from(["nchw", "nhwc"])))
    given = draw(affine(dtype, (shape[(layout or "nchw").index("c")],))) | options(layout=layout)
    return Use("instanceNormalization", (draw(spread(dtype, shape)),), given)


@st.composite
def layer_normalization(draw: Draw) -> Use:
    dtype, shape = draw(dtypes), draw(shapes())
    axes = draw(sometimes(subsets(len(shape)).map(tuple)))
    over = range(1, len(shape)) if axes is None else axes
    given = draw(affine(dtype, tuple(shape[axis] for axis in over))) | options(axes=axes)
    return Use("layerNormalization", (draw(spread(dtype, shape)),), given)


# --- Recurrence

_activation = st.sampled_from(["relu", "sigmoid", "tanh"])


@st.composite
def recurrent(draw: Draw, name: str) -> Use:
    """lstm, gru, and one step of them."""
    dtype = draw(dtypes)
    is_lstm, is_cell = name.startswith("lstm"), name.endswith("Cell")
    gates, states = (4, 2) if is_lstm else (3, 1)
    steps, batch, inputs, hidden = draw(small), draw(small), draw(small), draw(small)
    direction = draw(sometimes(st.sampled_from(["forward", "backward", "both"])))
    leading = () if is_cell else (2 if direction == "both" else 1,)

    def weights(*shape: int) -> st.SearchStrategy[Any]:
        return elements(dtype, (*leading, *shape), -1, 1)

    x = draw(elements(dtype, (batch, inputs) if is_cell else (steps, batch, inputs), -1, 1))
    w, u = draw(weights(gates * hidden, inputs)), draw(weights(gates * hidden, hidden))
    given = options(
        bias=draw(sometimes(weights(gates * hidden))),
        recurrentBias=draw(sometimes(weights(gates * hidden))),
        layout=draw(sometimes(st.sampled_from(["iofg", "ifgo"] if is_lstm else ["zrn", "rzn"]))),
        activations=draw(sometimes(st.tuples(*[_activation] * (gates - 1)))),
    )
    if is_lstm:
        given |= options(peepholeWeight=draw(sometimes(weights(3 * hidden))))
    else:
        given |= options(resetAfter=draw(sometimes(st.booleans())))
    if is_cell:
        state = tuple(draw(weights(batch, hidden)) for _ in range(states))
        return Use(name, (x, w, u, *state, hidden), given)
    given |= options(
        initialHiddenState=draw(sometimes(weights(batch, hidden))),
        initialCellState=draw(sometimes(weights(batch, hidden))) if is_lstm else None,
        direction=direction,
        returnSequence=draw(sometimes(st.booleans())),
    )
    return Use(name, (x, w, u, steps, hidden), given)


USES: dict[str, st.SearchStrategy[Use]] = {
    "matmul": matmul(),
    "gemm": gemm(),
    "conv2d": conv2d(),
    "convTranspose2d": conv_transpose2d(),
    **{name: pool2d(name) for name in ("averagePool2d", "l2Pool2d", "maxPool2d")},
    "resample2d": resample2d(),
    "batchNormalization": batch_normalization(),
    "instanceNormalization": instance_normalization(),
    "layerNormalization": layer_normalization(),
    **{name: recurrent(name) for name in ("lstm", "lstmCell", "gru", "gruCell")},
}
"""A strategy for each operator."""
