"""What resampling does not take, what it says of it, and how near to the specification large images are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kserve_wasm.tensors.dtypes import FP32
from kserve_wasm.webnn import Builder, OperatorError
from tests.webnn.refusals import refusal
from tests.webnn.uses import Graph, Use

IMAGE = ("FP32", (1, 4, 4, 3))
HUGE = (1 << 32) - 1


@pytest.mark.parametrize(
    ("operands", "arguments", "problem"),
    [
        ([("FP32", (4, 4, 3))], (1, None, 0, (1, 1), None), "input must have 4 dimensions, got 3"),
        ([("UINT8", (1, 4, 4, 3))], (1, None, 0, (1, 1), None), "input must be one of FP16, FP32, got UINT8"),
        ([IMAGE], (1, None, 2, (1, 1), None), "mode must be 0 (nearest-neighbor) or 1 (linear), got 2"),
        ([IMAGE], (1, None, 0, (0, 1), None), "sizes must be above 0, got [0, 1]"),
        ([IMAGE], (1, None, 0, (HUGE, 1), None), "no size may be above 2147483647"),
        ([IMAGE], (1, (0.0, 1.0), 0, None, None), "scales must be above 0"),
        ([IMAGE], (1, (float("nan"), 1.0), 0, None, None), "scales must be above 0"),
        ([IMAGE], (1, (float("inf"), 1.0), 0, None, None), "scales must be above 0"),
        ([IMAGE], (1, (0.1, 0.1), 0, None, None), "the result would be empty with scales [0.1, 0.1]"),
        ([IMAGE], (1, None, 0, (1, 1), (1, 1)), "axes must be different numbers below 4, got [1, 1]"),
        ([IMAGE], (1, None, 0, (1, 1), (1, 4)), "axes must be different numbers below 4, got [1, 4]"),
        ([IMAGE], (1, None, 0, (30000, 30000), (1, 2)), "it takes 10800000000 intermediate elements"),
    ],
)
def test_refusals_tell_what_was_expected(
    operands: list[tuple[str, tuple[int, ...]]], arguments: tuple[Any, ...], problem: str
) -> None:
    assert problem in refusal("resample2d", operands, arguments)


@pytest.mark.parametrize(
    ("maxima", "axes", "sizes", "problem"),
    [
        ((0, 1), None, (2,), "maxSizes must be two numbers from 1"),
        ((1,), None, (2,), "maxSizes must be two numbers from 1"),
        ((HUGE, 1), None, (2,), "maxSizes must be two numbers from 1"),
        ((1, 1), (0, 1, 2), (2,), "axes must be two numbers, got [0, 1, 2]"),
        ((1, 1), None, (3,), "sizes must have shape [2], got [3]"),
        ((30000, 30000), (1, 2), (2,), "it takes 10800000000 intermediate elements"),
    ],
)
def test_refusals_of_sizes_that_are_operands(
    maxima: tuple[int, ...], axes: tuple[int, ...] | None, sizes: tuple[int, ...], problem: str
) -> None:
    assert problem in refusal("resample2dTo", [IMAGE, ("INT32", sizes)], (1, 2, maxima, 0, axes))


@pytest.mark.parametrize(
    ("size", "problem"), [(0, "input must not be empty"), (2, "the result would be empty")]
)
def test_what_was_open_is_checked_at_dispatch(size: int, problem: str) -> None:
    builder = Builder(1 << 20)
    x = builder.input("x", FP32, (1, -1, 4, 3))
    program = builder.build([("y", builder.add("resample2d", (x, (0.25, 1.0), 1, None, (1, 2)))[0])])
    program.check(((1, 8, 4, 3),))
    with pytest.raises(OperatorError, match=f"^resample2d: {problem}"):
        program.check(((1, size, 4, 3),))


@pytest.mark.parametrize("mode", ["nearest-neighbor", "linear"])
@pytest.mark.parametrize("sizes", [(101, 77), (300, 250), (701, 411)])
def test_integers_are_resampled_exactly(mode: str, sizes: tuple[int, int]) -> None:
    """Of many integers, pixels are gathered with exact coordinates; of few, Resize's are off by float32's rounding."""
    image = np.random.default_rng(3).integers(0, 256, (1, 700, 500, 3), np.uint8)
    use = Use(
        "resample2d",
        (Use("cast", (image, "float32")),),
        {"mode": mode, "sizes": sizes, "axes": (1, 2)},
    )
    [[got]] = Graph([use]).run()
    gathered = mode != "linear" or 24 * np.prod(sizes) <= 700 * 500
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if gathered else {"rtol": 0, "atol": 700 * 1e-7 * 255}
    np.testing.assert_allclose(got, use.expected()[0], **tolerance)
