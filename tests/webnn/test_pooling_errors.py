"""Operands and attributes that pooling does not take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.webnn.refusals import refusal
from tests.webnn.uses import Use, check

X = ("FP32", (1, 2, 5, 6))
DEFAULTS: dict[str, Any] = {
    "windowDimensions": None,
    "padding": (0, 0, 0, 0),
    "strides": (1, 1),
    "dilations": (1, 1),
    "layout": 0,
    "outputShapeRounding": 0,
    "outputSizes": None,
}
SMALL = (2, 2)


@pytest.mark.parametrize("operator", ["averagePool2d", "l2Pool2d", "maxPool2d"])
@pytest.mark.parametrize(
    ("operand", "given", "problem"),
    [
        (("FP32", (2, 5, 6)), {}, "input must have 4 dimensions, got 3"),
        (
            X,
            {"windowDimensions": (6, 2)},
            "the window reaches over 6 elements of the height, and there are 5",
        ),
        (X, {"windowDimensions": SMALL, "strides": (1, 0)}, "strides must be at least 1, got [1, 0]"),
        (X, {"windowDimensions": SMALL, "dilations": (0, 1)}, "dilations must be at least 1, got [0, 1]"),
        (X, {"layout": 2}, "layout must be one of 0 nchw, 1 nhwc; got 2"),
        (X, {"outputShapeRounding": 2}, "outputShapeRounding must be 0 floor or 1 ceil, got 2"),
        (
            X,
            {"windowDimensions": SMALL, "strides": (2, 4), "outputSizes": (2, 3)},
            "outputSizes must be [2, 2] or [3, 2], got [2, 3]",
        ),
        (
            X,
            {"windowDimensions": SMALL, "padding": (2, 0, 0, 0)},
            "windows over the height that have padding",
        ),
        (X, {"windowDimensions": SMALL, "padding": (0, 0, 0, 2)}, "windows over the width that have padding"),
        (
            ("FP32", (1, 1, 1, 6)),
            {"windowDimensions": SMALL, "dilations": (2, 1), "padding": (1, 1, 0, 0)},
            "there are windows over the height that have padding alone",
        ),
        (
            ("FP32", (1, 1, 1, 6)),
            {"windowDimensions": SMALL, "dilations": (1 << 31, 1), "padding": (1 << 31, 1, 0, 0)},
            "there are windows over the height that have padding alone",
        ),
        (
            ("FP32", (1, 1, -1, 6)),
            {"padding": (0, 0, 1, 0)},
            "a window over the whole of an open height or width takes no padding",
        ),
        (
            ("FP32", (1, 1, -1, 6)),
            {"windowDimensions": SMALL, "outputSizes": (2, 2)},
            "outputSizes needs an input of known height and width",
        ),
        (
            ("FP32", (1, 16, 4000, 4000)),
            {"windowDimensions": (2000, 2000)},
            f"it takes {16 * 2001**2 * 2000**2} elements in windows, and an operator may take {1 << 30}",
        ),
    ],
)
def test_refusals_tell_what_was_expected(
    operator: str, operand: tuple[str, tuple[int, ...]], given: dict[str, Any], problem: str
) -> None:
    assert problem in refusal(operator, [operand], (1, *{**DEFAULTS, **given}.values()))


@pytest.mark.parametrize("operator", ["averagePool2d", "l2Pool2d"])
def test_only_floats_have_averages_and_norms(operator: str) -> None:
    problem = refusal(operator, [("INT32", (1, 1, 2, 2))], (1, *DEFAULTS.values()))
    assert "input must be one of FP16, FP32, got INT32" in problem


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("opened", [frozenset(), frozenset({(0, 1), (0, 2)})])
@pytest.mark.parametrize("operator", ["averagePool2d", "l2Pool2d", "maxPool2d"])
def test_padding_may_be_as_large_as_a_dilated_window(
    operator: str, opened: frozenset[tuple[int, int]], rounding: str
) -> None:
    """ONNX Runtime's own operators refuse that."""
    x = np.random.default_rng(1).standard_normal((2, 6, 7, 3)).astype(np.float32)
    options = {
        "windowDimensions": (2, 3),
        "dilations": (4, 2),
        "padding": (3, 2, 1, 3),
        "strides": (1, 2),
        "layout": "nhwc",
        "outputShapeRounding": rounding,
    }
    check([Use(operator, (x,), options, open=opened)])
