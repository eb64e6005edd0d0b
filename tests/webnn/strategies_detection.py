"""Uses of the operators of our own."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from tests.webnn.strategies import ALL, FLOATS, Draw, bits, elements, options, shapes, sometimes
from tests.webnn.uses import Use


@st.composite
def top_k(draw: Draw) -> Use:
    """Equal elements occur: the first of them is the first in the answer."""
    shape, dtype = draw(shapes(least=1)), draw(st.sampled_from(ALL))
    axis = draw(st.integers(0, len(shape) - 1))
    array = draw(elements(dtype, shape, -3, 3, (math.nan, math.inf, -math.inf, -0.0)))
    if draw(st.booleans()):
        array = np.rint(array).astype(dtype)
    return Use("topK", (array, draw(st.integers(1, shape[axis])), axis, draw(st.booleans())))


@st.composite
def non_max_suppression(draw: Draw) -> Use:
    """Boxes at multiples of 1/8, whose areas float32 holds exactly, and thresholds that no ratio of them comes to."""
    batch, classes, count = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    boxes = rng.integers(0, 17, (batch, count, 4)) / 8
    scores = np.rint(draw(elements("float32", (batch, classes, count), 0, 1)) * 16) / 16
    dtype = draw(st.sampled_from(FLOATS))
    return Use(
        "nonMaxSuppression",
        (
            *(boxes.astype(dtype), scores.astype(dtype), draw(st.integers(1, 9))),
            draw(st.sampled_from([0.0, 0.1234567, 0.2871234, 0.5012345, 0.7523456, 1.0])),
            draw(st.sampled_from([-math.inf, 0.05, 0.26, 0.51])),
            draw(st.booleans()),
        ),
    )


@st.composite
def shape(draw: Draw) -> Use:
    return Use("shape", (draw(elements(draw(st.sampled_from(ALL)), draw(shapes(least=1)))),))


@st.composite
def resample_to(draw: Draw) -> Use:
    """Sizes below 1 and above the greatest are cut."""
    array = draw(elements(draw(st.sampled_from(FLOATS)), draw(shapes(least=4)), -4, 4))
    wanted = np.array(draw(st.tuples(*[st.integers(-1, 9)] * 2)), np.int32)
    most = draw(st.tuples(*[st.integers(1, 9)] * 2))
    axes = draw(sometimes(st.permutations(range(4)).map(lambda order: tuple(order[:2]))))
    mode = draw(st.sampled_from(["nearest-neighbor", "linear"]))
    return Use("resample2dTo", (array, wanted, most, mode), options(axes=axes))


@st.composite
def slice_from(draw: Draw) -> Use:
    whole = draw(shapes(least=1))
    starts = [draw(st.just(0) | st.integers(0, dim - 1)) for dim in whole]
    lengths = tuple(
        draw(st.just(dim - start) | st.integers(1, dim - start))
        for dim, start in zip(whole, starts, strict=True)
    )
    return Use(
        "sliceFrom", (draw(bits(draw(st.sampled_from(ALL)), whole)), np.array(starts, np.int32), lengths)
    )


USES: dict[str, st.SearchStrategy[Use]] = {
    "topK": top_k(),
    "nonMaxSuppression": non_max_suppression(),
    "shape": shape(),
    "resample2dTo": resample_to(),
    "sliceFrom": slice_from(),
}
"""A strategy for each operator."""
