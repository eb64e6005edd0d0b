"""Operands and attributes that convolutions do not take."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_wasm.tensors.dtypes import FP32
from kserve_wasm.webnn import Builder, OperatorError
from tests.webnn.refusals import refusal

DEFAULTS: dict[str, Any] = {
    "padding": (0, 0, 0, 0),
    "strides": (1, 1),
    "dilations": (1, 1),
    "outputPadding": (0, 0),
    "outputSizes": None,
    "groups": 1,
    "inputLayout": 0,
    "filterLayout": 0,
}


def attributes(operator: str, **given: Any) -> tuple[Any, ...]:
    own = {"outputPadding", "outputSizes"} if operator == "conv2d" else set()
    return tuple(given.get(name, default) for name, default in DEFAULTS.items() if name not in own)


X = ("FP32", (1, 4, 5, 6))


@pytest.mark.parametrize(
    ("operands", "given", "problem"),
    [
        ([("INT8", (1, 4, 5, 6)), ("INT8", (2, 4, 3, 3))], {}, "input must be one of FP16, FP32, got INT8"),
        ([X, ("FP16", (2, 4, 3, 3))], {}, "input, filter, bias must have the same data type"),
        ([("FP32", (4, 5, 6)), ("FP32", (2, 4, 3, 3))], {}, "input must have 4 dimensions, got 3"),
        ([X, ("FP32", (4, 3, 3))], {}, "filter must have 4 dimensions, got 3"),
        (
            [X, ("FP32", (2, 3, 3, 3))],
            {},
            "the filter must be for 4 channels, those of the input in each of 1",
        ),
        ([X, ("FP32", (2, 4, 3, 3))], {"groups": 3}, "4 input channels cannot be divided into 3 groups"),
        ([X, ("FP32", (3, 2, 3, 3))], {"groups": 2}, "3 output channels cannot be divided into 2 groups"),
        ([X, ("FP32", (2, 4, 3, 3))], {"groups": 0}, "groups must be at least 1, got 0"),
        ([X, ("FP32", (2, 4, 3, 3))], {"strides": (0, 1)}, "strides must be at least 1, got [0, 1]"),
        ([X, ("FP32", (2, 4, 3, 3))], {"dilations": (1, 0)}, "dilations must be at least 1, got [1, 0]"),
        (
            [X, ("FP32", (2, 4, 6, 3))],
            {},
            "the window reaches over 6 elements of the height, and there are 5",
        ),
        ([X, ("FP32", (2, 4, 3, 3))], {"dilations": (1, 1 << 31)}, "elements of the width, and there are 6"),
        ([X, ("FP32", (2, 4, 3, 3)), ("FP32", (3,))], {}, "bias must have shape [2], got [3]"),
        ([X, ("FP32", (2, 4, 3, 3))], {"inputLayout": 2}, "inputLayout must be one of 0 nchw, 1 nhwc; got 2"),
        ([X, ("FP32", (2, 4, 3, 3))], {"filterLayout": 4}, "filterLayout must be one of 0 oihw, 1 hwio"),
        (
            [X, ("FP32", (2, 4, 3, 3))],
            {"padding": ((1 << 32) - 1,) * 4},
            "multiplications, and an operator may",
        ),
    ],
)
def test_refusals_of_conv2d_tell_what_was_expected(
    operands: list[tuple[str, tuple[int, ...]]], given: dict[str, Any], problem: str
) -> None:
    numbers = (1, 2, 3 if len(operands) > 2 else 0)
    assert problem in refusal("conv2d", operands, (*numbers, *attributes("conv2d", **given)))


F = ("FP32", (4, 2, 3, 3))


@pytest.mark.parametrize(
    ("operands", "given", "problem"),
    [
        ([X, ("FP32", (3, 2, 3, 3))], {}, "the filter must be for the input's 4 channels, and it is for 3"),
        ([X, F], {"groups": 3}, "the 4 input channels cannot be divided into 3 groups"),
        ([X, F, ("FP32", (2,))], {"groups": 2}, "bias must have shape [4], got [2]"),
        ([X, F], {"outputPadding": (0, 1)}, "outputPadding must be below the stride, 1, got 1 for the width"),
        (
            [X, F],
            {"strides": (2, 2), "outputSizes": (11, 15)},
            "the width in outputSizes must be from 13 to 14, got 15",
        ),
        ([X, F], {"padding": (4, 3, 0, 0)}, "padding 4 and 3 leaves nothing of the height"),
        ([X, F], {"filterLayout": 3}, "filterLayout must be one of 0 iohw, 1 hwoi, 2 ohwi; got 3"),
        ([X, ("FP32", (4, 2, -1, 3))], {"outputSizes": (7, 8)}, "outputSizes needs a filter of known height"),
        (
            [("FP32", (1, 1, 400, 400)), ("FP32", (1, 1, 400, 400))],
            {},
            f"it takes {400**4} intermediate elements, and an operator may take {1 << 28}",
        ),
    ],
)
def test_refusals_of_conv_transpose2d_tell_what_was_expected(
    operands: list[tuple[str, tuple[int, ...]]], given: dict[str, Any], problem: str
) -> None:
    numbers = (1, 2, 3 if len(operands) > 2 else 0)
    assert problem in refusal(
        "convTranspose2d", operands, (*numbers, *attributes("convTranspose2d", **given))
    )


def test_open_sizes_are_checked_once_they_are_known() -> None:
    builder = Builder(1 << 20)
    builder.input("x", FP32, (-1, 4, -2, 6))
    builder.input("w", FP32, (2, 4, 3, 3))
    program = builder.build([("y", builder.add("conv2d", (1, 2, 0, *attributes("conv2d")))[0])])
    program.check(((2, 4, 3, 6), (2, 4, 3, 3)))
    with pytest.raises(OperatorError, match=r"^conv2d: the window reaches over 3 elements of the height"):
        program.check(((2, 4, 2, 6), (2, 4, 3, 3)))


@pytest.mark.parametrize("operator", ["conv2d", "convTranspose2d"])
def test_a_filter_is_not_empty(operator: str) -> None:
    """Over an empty one, ONNX Runtime's Conv would run for ever."""
    builder = Builder(1 << 20)
    x, w = builder.input("x", FP32, (1, -1, 4, 4)), builder.input("w", FP32, (-1, -1, -2, 3))
    program = builder.build([("y", builder.add(operator, (x, w, 0, *attributes(operator)))[0])])
    program.check(((1, 2, 4, 4), (2, 2, 3, 3)))
    for empty in ((1, 2, 4, 4), (2, 2, 0, 3)), ((1, 0, 4, 4), (0, 0, 3, 3)):
        with pytest.raises(OperatorError, match=rf"^{operator}: filter must not be empty"):
            program.check(empty)


@pytest.mark.parametrize("operator", ["conv2d", "convTranspose2d"])
def test_no_run_decides_the_size_of_a_filter(operator: str) -> None:
    builder = Builder(1 << 20)
    x = builder.input("x", FP32, (1, 1, 4, 4))
    boxes, scores = builder.input("boxes", FP32, (1, 9, 4)), builder.input("scores", FP32, (1, 1, 9))
    (found,) = builder.add("nonMaxSuppression", (boxes, scores, 9, 0.5, 0.5, 0))
    (floats,) = builder.add("cast", (found, FP32.onnx))
    (w,) = builder.add("reshape", (floats, (1, 1, builder.operand(found).shape[0], 3)))
    with pytest.raises(
        OperatorError, match="filter must not be empty, nor have sizes that only the run decides"
    ):
        builder.add(operator, (x, w, 0, *attributes(operator)))
