"""Operands and attributes that products of matrices do not take."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_wasm.tensors.dtypes import FP32
from kserve_wasm.webnn import Builder, OperatorError
from tests.webnn.refusals import refusal

GEMM = (1.0, 1.0, 0, 0)
WIDE = 1 << 14


@pytest.mark.parametrize(
    ("operator", "operands", "arguments", "problem"),
    [
        ("matmul", [("INT32", (2, 2)), ("INT32", (2, 2))], (1, 2), "a must be one of FP16, FP32, got INT32"),
        ("matmul", [("FP32", (2, 2)), ("FP16", (2, 2))], (1, 2), "a, b must have the same data type"),
        ("matmul", [("FP32", (2,)), ("FP32", (2, 2))], (1, 2), "a must have 2 to 8 dimensions, got 1"),
        (
            "matmul",
            [("FP32", (2, 3)), ("FP32", (2, 3))],
            (1, 2),
            "a has 3 columns and b has 2 rows: they must be as many",
        ),
        (
            "matmul",
            [("FP32", (2, 2, 3)), ("FP32", (3, 3, 2))],
            (1, 2),
            "the stacks of matrices, [2] and [3], cannot be broadcast",
        ),
        (
            "matmul",
            [("FP32", (WIDE, WIDE)), ("FP32", (WIDE, WIDE))],
            (1, 2),
            f"it takes {WIDE**3} multiplications, and an operator may take {1 << 38}",
        ),
        (
            "gemm",
            [("FP32", (2, 3, 1)), ("FP32", (3, 2))],
            (1, 2, 0, *GEMM),
            "a must have 2 dimensions, got 3",
        ),
        ("gemm", [("FP32", (2, 3)), ("FP32", (2, 3))], (1, 2, 0, *GEMM), "a has 3 columns and b has 2 rows"),
        (
            "gemm",
            [("FP32", (2, 3)), ("FP32", (3, 2))],
            (1, 2, 0, 1.0, 1.0, 1, 0),
            "a has 2 columns and b has 3 rows",
        ),
        (
            "gemm",
            [("FP32", (2, 3)), ("FP32", (3, 4)), ("FP32", (4, 4))],
            (1, 2, 3, *GEMM),
            "c cannot be broadcast to [2, 4]",
        ),
        (
            "gemm",
            [("FP32", (2, 3)), ("FP32", (3, 4)), ("FP32", (1, 2, 4))],
            (1, 2, 3, *GEMM),
            "c must have 0 to 2 dimensions, got 3",
        ),
    ],
)
def test_refusals_tell_what_was_expected(
    operator: str, operands: list[tuple[str, tuple[int, ...]]], arguments: tuple[Any, ...], problem: str
) -> None:
    assert problem in refusal(operator, operands, arguments)


def test_open_sizes_are_checked_once_they_are_known() -> None:
    builder = Builder(1 << 20)
    builder.input("a", FP32, (2, -1))
    builder.input("b", FP32, (-2, 2))
    program = builder.build([("y", builder.add("matmul", (1, 2))[0])])
    program.check(((2, 3), (3, 2)))
    with pytest.raises(OperatorError, match=r"^matmul: a has 3 columns and b has 4 rows"):
        program.check(((2, 3), (4, 2)))
