"""Operands and attributes that activation functions do not take."""

from __future__ import annotations

from typing import Any

import pytest

from tests.webnn.refusals import refusal


@pytest.mark.parametrize(
    ("operator", "operands", "arguments", "problem"),
    [
        ("sigmoid", [("INT32", (2,))], (1,), "input must be one of FP16, FP32, got INT32"),
        ("elu", [("UINT8", (2,))], (1, 1.0), "input must be one of FP16, FP32, got UINT8"),
        ("relu", [("UINT8", (2,))], (1,), "input must be one of FP16, FP32, INT32, INT64, INT8, got UINT8"),
        ("prelu", [("UINT32", (2,)), ("UINT32", (2,))], (1, 2), "input must be one of"),
        ("prelu", [("FP32", (2,)), ("FP16", (2,))], (1, 2), "input, slope must have the same data type"),
        ("prelu", [("FP32", (2,)), ("FP32", (3,))], (1, 2), "the shapes cannot be broadcast"),
        (
            "softmax",
            [("FP32", (2, 3))],
            (1, 2),
            "axis must be below 2, the number of dimensions, and counts from the first; got 2",
        ),
        ("softmax", [("FP32", ())], (1, 0), "axis must be below 0"),
        ("softmax", [("INT64", (2, 3))], (1, 0), "input must be one of FP16, FP32, got INT64"),
    ],
)
def test_refusals_tell_what_was_expected(
    operator: str, operands: list[tuple[str, tuple[int, ...]]], arguments: tuple[Any, ...], problem: str
) -> None:
    assert problem in refusal(operator, operands, arguments)
