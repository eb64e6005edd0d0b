"""Operands and attributes that triangles and running sums do not take, and diagonals beyond every matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.webnn.refusals import refusal
from tests.webnn.uses import Use, check


@pytest.mark.parametrize(
    ("operator", "operands", "arguments", "problem"),
    [
        ("triangular", [("FP32", (3,))], (1, 1, 0), "input must have 2 to 8 dimensions, got 1"),
        ("triangular", [("BOOL", (3, 3))], (1, 1, 0), "input must be one of"),
        ("cumulativeSum", [("FP32", (3, 3))], (1, 2, 0, 0), "axis must be below 2, the number of dimensions"),
        ("cumulativeSum", [("FP32", ())], (1, 0, 0, 0), "axis must be below 0"),
        ("cumulativeSum", [("INT16", (3,))], (1, 0, 0, 0), "input must be one of"),
    ],
)
def test_refusals_tell_what_was_expected(
    operator: str, operands: list[tuple[str, tuple[int, ...]]], arguments: tuple[Any, ...], problem: str
) -> None:
    assert problem in refusal(operator, operands, arguments)


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("diagonal", [-(1 << 31), -4, 5, (1 << 31) - 1])
def test_a_diagonal_may_lie_outside_of_the_matrix(diagonal: int, upper: bool) -> None:
    x = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
    check([Use("triangular", (x,), {"upper": upper, "diagonal": diagonal})])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_sums_of_small_integers_wrap_around(dtype: str) -> None:
    x = np.full((2, 9), 100, dtype)
    for exclusive in (False, True):
        check([Use("cumulativeSum", (x, 1), {"exclusive": exclusive, "reversed": True})])
