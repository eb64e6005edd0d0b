"""What reductions do not take, and what they say of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kserve_wasm.tensors.dtypes import FP32
from kserve_wasm.webnn import Builder, OperatorError
from tests.webnn.refusals import refusal
from tests.webnn.uses import Graph, Use

X = ("FP32", (3, 4))


@pytest.mark.parametrize(
    ("operator", "operands", "arguments", "problem"),
    [
        ("reduceSum", [X], (1, (0, 0), 0), "axes must be different numbers below 2, got [0, 0]"),
        ("reduceSum", [X], (1, (2,), 0), "axes must be different numbers below 2, got [2]"),
        ("reduceSum", [("INT8", (2,))], (1, None, 0), "input must be one of FP16, FP32, INT32"),
        ("reduceMean", [("INT32", (2,))], (1, None, 0), "input must be one of FP16, FP32, got INT32"),
        ("reduceMax", [("BOOL", (2,))], (1, None, 0), "got BOOL"),
        ("argMax", [X], (1, 2, 0, 0), "axis must be below 2"),
        (
            "argMax",
            [X],
            (1, 0, 0, 1),
            "outputDataType must be one of KW_UINT8 (2), KW_INT8 (3), KW_INT32 (6)",
        ),
        ("argMax", [X], (1, 0, 0, 99), "got 99"),
        ("argMin", [("FP32", (300, 2))], (1, 0, 0, 3), "of which there are 300; got INT8"),
    ],
)
def test_refusals_tell_what_was_expected(
    operator: str, operands: list[tuple[str, tuple[int, ...]]], arguments: tuple[Any, ...], problem: str
) -> None:
    assert problem in refusal(operator, operands, arguments)


def test_there_is_no_extreme_of_nothing() -> None:
    builder = Builder(1 << 20)
    x = builder.input("x", FP32, (-1, 4))
    program = builder.build([("y", builder.add("argMax", (x, 0, 0, 0))[0])])
    with pytest.raises(OperatorError, match=r"^argMax: input must not be empty along axis"):
        program.check(((0, 4),))


@pytest.mark.parametrize("operator", ["argMin", "argMax"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("axis", [0, 1])
def test_positions_stay_in_the_dimension_whatever_the_elements(operator: str, dtype: str, axis: int) -> None:
    """The specification does not say where NaN is found; it must be somewhere."""
    for size in (1, 3, 8, 17, 64):
        array = np.full((size, size), np.nan, dtype)
        array[0, size // 2] = 1
        [[places]] = Graph([Use(operator, (array, axis))]).run()
        assert ((places >= 0) & (places < size)).all()
