"""Operands and attributes that normalizations do not take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kserve_wasm.tensors.dtypes import FP16
from kserve_wasm.webnn import Builder, OperatorError
from tests.webnn.refusals import refusal
from tests.webnn.uses import Use, check

X = ("FP32", (2, 3, 4, 5))
C = ("FP32", (3,))


@pytest.mark.parametrize(
    ("operator", "operands", "arguments", "problem"),
    [
        (
            "batchNormalization",
            [("INT32", (2, 3)), C, C],
            (1, 2, 3, 0, 0, 1, 1e-5),
            "input must be one of FP16",
        ),
        ("batchNormalization", [X, C, C], (1, 2, 3, 0, 0, 4, 1e-5), "axis must be below 4"),
        (
            "batchNormalization",
            [X, C, ("FP32", (4,))],
            (1, 2, 3, 0, 0, 1, 1e-5),
            "variance must have shape [3], got [4]",
        ),
        (
            "batchNormalization",
            [X, C, C, ("FP32", (3, 1))],
            (1, 2, 3, 4, 0, 1, 1e-5),
            "scale must have shape [3], got [3, 1]",
        ),
        (
            "batchNormalization",
            [X, C, C, ("FP16", (3,))],
            (1, 2, 3, 0, 4, 1, 1e-5),
            "must have the same data type",
        ),
        ("instanceNormalization", [("FP32", (2, 3, 4))], (1, 0, 0, 1e-5, 0), "input must have 4 dimensions"),
        ("instanceNormalization", [X, C], (1, 2, 0, 1e-5, 1), "scale must have shape [5], got [3]"),
        ("instanceNormalization", [X], (1, 0, 0, 1e-5, 7), "layout must be one of 0 nchw, 1 nhwc; got 7"),
        ("layerNormalization", [X], (1, 0, 0, (1, 1), 1e-5), "axes must be different numbers below 4"),
        ("layerNormalization", [X], (1, 0, 0, (4,), 1e-5), "axes must be different numbers below 4, got [4]"),
        (
            "layerNormalization",
            [X, ("FP32", (4, 3))],
            (1, 0, 2, (1, 2), 1e-5),
            "bias must have shape [3, 4], got [4, 3]",
        ),
    ],
)
def test_refusals_tell_what_was_expected(
    operator: str, operands: list[tuple[str, tuple[int, ...]]], arguments: tuple[Any, ...], problem: str
) -> None:
    assert problem in refusal(operator, operands, arguments)


@pytest.mark.parametrize("constants", [frozenset(), frozenset({1, 2, 3, 4})])
def test_a_mean_far_from_zero_costs_batch_normalization_no_digits(constants: frozenset[int]) -> None:
    """Values and means share their leading digits: what differs must not be lost to them."""
    rng = np.random.default_rng(1)
    mean = rng.uniform(900, 1000, 3).astype(np.float32)
    x = (mean[:, None, None] + rng.standard_normal((2, 3, 4, 5))).astype(np.float32)
    variance, scale, bias = (rng.uniform(0.5, 2, 3).astype(np.float32) for _ in range(3))
    check([Use("batchNormalization", (x, mean, variance), {"scale": scale, "bias": bias}, constants)])


def test_an_empty_input_has_no_instances() -> None:
    """ONNX Runtime's kernel for float16 would read what is not there."""
    builder = Builder(1 << 20)
    builder.input("x", FP16, (1, 2, -1, 3))
    program = builder.build([("y", builder.add("instanceNormalization", (1, 0, 0, 1e-5, 0))[0])])
    program.check(((1, 2, 4, 3),))
    with pytest.raises(OperatorError, match=r"^instanceNormalization: input must not be empty"):
        program.check(((1, 2, 0, 3),))
