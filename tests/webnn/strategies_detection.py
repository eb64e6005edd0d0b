"""Uses of the operators that are not of the specification: topK and nonMaxSuppression."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tests.webnn.strategies import ALL, Draw, elements, options, shapes, sometimes
from tests.webnn.uses import Use


@st.composite
def top_k(draw: Draw) -> Use:
    """Equal elements occur: the first of them is the first in the answer."""
    shape, dtype = draw(shapes(least=1)), draw(st.sampled_from(ALL))
    axis = draw(st.integers(0, len(shape) - 1))
    array = draw(elements(dtype, shape, -3, 3))
    if draw(st.booleans()):
        array = np.rint(array).astype(dtype)
    given = options(axis=axis, smallest=draw(sometimes(st.booleans())))
    return Use("topK", (array, draw(st.integers(1, shape[axis]))), given)


@st.composite
def non_max_suppression(draw: Draw) -> Use:
    """Boxes at multiples of 1/8, whose areas float32 holds exactly, and thresholds that no ratio of them comes to."""
    batch, classes, count = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    boxes = rng.integers(0, 17, (batch, count, 4)) / 8
    scores = np.rint(draw(elements("float32", (batch, classes, count), 0, 1)) * 16) / 16
    given = options(
        maxOutputBoxesPerClass=draw(st.integers(1, 9)),
        iouThreshold=draw(sometimes(st.sampled_from([0.1234567, 0.2871234, 0.5012345, 0.7523456]))),
        scoreThreshold=draw(sometimes(st.sampled_from([0.05, 0.26, 0.51]))),
        centerPointBox=draw(sometimes(st.booleans())),
    )
    return Use("nonMaxSuppression", (boxes.astype(np.float32), scores.astype(np.float32)), given)


USES: dict[str, st.SearchStrategy[Use]] = {"topK": top_k(), "nonMaxSuppression": non_max_suppression()}
"""A strategy for each operator."""
