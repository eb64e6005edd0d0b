"""Operands that quantization does not take."""

from __future__ import annotations

import pytest

from tests.webnn.refusals import refusal

X, Q = ("FP32", (4, 6)), ("UINT8", (4, 6))


@pytest.mark.parametrize(
    ("operator", "operands", "problem"),
    [
        ("quantizeLinear", [("INT32", (4, 6)), X, Q], "input must be one of FP16, FP32, got INT32"),
        ("quantizeLinear", [X, ("FP16", (4, 6)), Q], "input, scale must have the same data type"),
        ("quantizeLinear", [X, X, ("INT64", (4, 6))], "zeroPoint must be one of INT32, INT8, UINT32, UINT8"),
        ("quantizeLinear", [X, ("FP32", (6,)), ("UINT8", (6,))], "scale must have 2 dimensions, got 1"),
        (
            "quantizeLinear",
            [X, ("FP32", (4, 1)), ("UINT8", (1, 1))],
            "scale and zeroPoint must have the same shape",
        ),
        (
            "quantizeLinear",
            [X, ("FP32", (4, 4)), ("UINT8", (4, 4))],
            "[4, 4] does not divide [4, 6] into blocks",
        ),
        (
            "quantizeLinear",
            [X, ("FP32", (8, 6)), ("UINT8", (8, 6))],
            "[8, 6] does not divide [4, 6] into blocks",
        ),
        (
            "dequantizeLinear",
            [("UINT8", (-1, 6)), ("FP32", (2, 6)), ("UINT8", (2, 6))],
            "where one of input and scale is open, the scale must have size 1, or both the same open size",
        ),
        ("dequantizeLinear", [("UINT64", (4, 6)), X, ("UINT64", (4, 6))], "input must be one of INT32, INT8"),
        ("dequantizeLinear", [Q, ("INT32", (4, 6)), Q], "scale must be one of FP16, FP32, got INT32"),
        ("dequantizeLinear", [Q, X, ("INT8", (4, 6))], "input, zeroPoint must have the same data type"),
    ],
)
def test_refusals_tell_what_was_expected(
    operator: str, operands: list[tuple[str, tuple[int, ...]]], problem: str
) -> None:
    assert problem in refusal(operator, operands, (1, 2, 3))
