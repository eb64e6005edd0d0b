"""What this project's own operators do not take, what they say of it, and what fails when they run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kserve_wasm.errors import WasmServingError
from tests.webnn.refusals import refusal
from tests.webnn.uses import Graph, Use

X = ("FP32", (2, 4))
BOXES, SCORES = ("FP32", (1, 5, 4)), ("FP32", (1, 2, 5))


@pytest.mark.parametrize(
    ("operator", "operands", "arguments", "problem"),
    [
        ("shape", [("FP32", ())], (1,), "input must have 1 to 8 dimensions, got 0"),
        ("topK", [X], (1, 5, 1, 1), "k must be from 1 to input's size along axis, got 5"),
        ("topK", [X], (1, 0, 1, 1), "k must be from 1 to input's size along axis, got 0"),
        ("topK", [X], (1, 1, 2, 1), "axis must be below 2"),
        ("sliceFrom", [X, ("INT32", (1,))], (1, 2, (1, 1)), "starts must have shape [2], got [1]"),
        ("sliceFrom", [X, ("INT64", (2,))], (1, 2, (1, 1)), "starts must be one of INT32, got INT64"),
        ("sliceFrom", [X, ("INT32", (2,))], (1, 2, (1, 5)), "from 1 to its size; got [1, 5]"),
        ("sliceFrom", [X, ("INT32", (2,))], (1, 2, (1, 0)), "from 1 to its size; got [1, 0]"),
        ("sliceFrom", [X, ("INT32", (2,))], (1, 2, (1,)), "from 1 to its size; got [1]"),
        (
            "nonMaxSuppression",
            [BOXES, ("FP32", (1, 2, 6))],
            (1, 2, 1, 0.5, 0.5, 0),
            "boxes must have shape [1, 6, 4], got [1, 5, 4]",
        ),
        (
            "nonMaxSuppression",
            [BOXES, SCORES],
            (1, 2, 0, 0.5, 0.5, 0),
            "maxOutputBoxesPerClass must be above 0",
        ),
        ("nonMaxSuppression", [BOXES, SCORES], (1, 2, 1, 1.5, 0.5, 0), "iouThreshold must be from 0 to 1"),
        (
            "nonMaxSuppression",
            [BOXES, SCORES],
            (1, 2, 1, float("nan"), 0.5, 0),
            "iouThreshold must be from 0",
        ),
        ("nonMaxSuppression", [BOXES, SCORES], (1, 2, 1, 0.5, float("nan"), 0), "scoreThreshold a number"),
        (
            "nonMaxSuppression",
            [("FP32", (1, 200000, 4)), ("FP32", (1, 1, 200000))],
            (1, 2, (1 << 32) - 1, 0.5, 0.5, 0),
            "it compares up to 40000000000 pairs of boxes",
        ),
    ],
)
def test_refusals_tell_what_was_expected(
    operator: str, operands: list[tuple[str, tuple[int, ...]]], arguments: tuple[Any, ...], problem: str
) -> None:
    assert problem in refusal(operator, operands, arguments)


@pytest.mark.parametrize("opened", [frozenset(), frozenset({(0, 0), (0, 1), (0, 2)})])
@pytest.mark.parametrize(
    "starts",
    [
        (0, 4, 0),
        (0, 0, 7),
        (-1, 0, 0),
        (0, -1, 0),
        (0, -5, 0),
        (0, 1 << 30, 0),
        (0, 0, -(1 << 31)),
        (1, 0, 0),
    ],
)
def test_slices_that_reach_beyond_the_input_fail_the_run(
    starts: tuple[int, ...], opened: frozenset[tuple[int, int]]
) -> None:
    array = np.arange(70, dtype=np.float32).reshape(2, 5, 7)
    use = Use("sliceFrom", (array, np.array(starts, np.int32), (2, 2, 1)), {}, open=opened)
    with pytest.raises(WasmServingError):
        Graph([use]).run()


@pytest.mark.parametrize("largest", [False, True])
def test_nan_is_the_infinity_that_comes_last(largest: bool) -> None:
    array = np.random.default_rng(1).random((3, 5000)).astype(np.float32)
    array[:, ::3] = np.nan
    finite = [np.flatnonzero(~np.isnan(row)) for row in array]
    [[values, places]] = Graph([Use("topK", (array, 4000), {"axis": 1, "largest": largest})]).run()
    for row, found, where, numbers in zip(array, values, places, finite, strict=True):
        order = numbers[np.argsort(-row[numbers] if largest else row[numbers], kind="stable")]
        np.testing.assert_array_equal(where, [*order, *np.flatnonzero(np.isnan(row))][:4000])
        np.testing.assert_array_equal(found, row[where])


def test_boxes_that_are_no_numbers_harm_nothing() -> None:
    rng = np.random.default_rng(2)
    boxes, scores = rng.random((1, 50, 4)).astype(np.float32), rng.random((1, 2, 50)).astype(np.float32)
    boxes[0, 3], boxes[0, 4], scores[0, 1, 5] = np.nan, np.inf, np.nan
    options = {"maxOutputBoxesPerClass": 7, "iouThreshold": 0.3, "scoreThreshold": 0.1}
    [[kept]] = Graph([Use("nonMaxSuppression", (boxes, scores), options)]).run()
    assert len(kept) == 14
    assert not ((kept[:, 1] == 1) & (kept[:, 2] == 5)).any()
    assert ((kept >= 0) & (kept < [1, 2, 50])).all()
