"""Indices that are outside of what they are for, and operands that operators with indices do not take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_wasm.tensors.dtypes import FP32, INT64
from kserve_wasm.webnn import Builder, OperatorError
from tests.webnn.refusals import refusal
from tests.webnn.strategies import INDICES, Draw
from tests.webnn.uses import Graph, Use

X = ("FP32", (3, 4))


@pytest.mark.parametrize(
    ("operator", "operands", "arguments", "problem"),
    [
        ("gather", [X, ("INT8", (2,))], (1, 2, 0), "indices must be one of INT32, INT64, UINT32, got INT8"),
        ("gather", [X, ("INT64", (2,))], (1, 2, 2), "axis must be below 2"),
        ("gather", [("FP32", ()), ("INT64", (2,))], (1, 2, 0), "axis must be below 0"),
        ("gatherElements", [X, ("INT64", (2, 3))], (1, 2, 0), "indices must have shape [2, 4], got [2, 3]"),
        ("gatherElements", [X, ("INT64", (2,))], (1, 2, 0), "indices must have 2 dimensions, got 1"),
        ("gatherND", [X, ("INT64", (2, 3))], (1, 2), "a last dimension of a known size from 1 to 2"),
        ("gatherND", [X, ("INT64", (2, -1))], (1, 2), "a last dimension of a known size from 1 to 2"),
        ("gatherND", [X, ("INT64", ())], (1, 2), "indices must have 1 to 8 dimensions, got 0"),
        (
            "scatterElements",
            [X, ("INT64", (1, 4)), ("INT32", (1, 4))],
            (1, 2, 3, 0),
            "input, updates must have the same data type",
        ),
        (
            "scatterElements",
            [X, ("INT64", (1, 4)), ("FP32", (2, 4))],
            (1, 2, 3, 0),
            "updates must have shape [1, 4], got [2, 4]",
        ),
        (
            "scatterND",
            [X, ("INT64", (5, 1)), ("FP32", (5, 3))],
            (1, 2, 3),
            "updates must have shape [5, 4], got [5, 3]",
        ),
    ],
)
def test_refusals_tell_what_was_expected(
    operator: str, operands: list[tuple[str, tuple[int, ...]]], arguments: tuple[Any, ...], problem: str
) -> None:
    assert problem in refusal(operator, operands, arguments)


@pytest.mark.parametrize(
    ("operator", "shape", "arguments"),
    [
        ("gather", (2,), (1, 2, 0)),
        ("gatherElements", (2, 4), (1, 2, 0)),
        ("gatherND", (2, 1), (1, 2)),
    ],
)
def test_nothing_can_be_gathered_from_what_is_empty(
    operator: str, shape: tuple[int, ...], arguments: tuple[Any, ...]
) -> None:
    builder = Builder(1 << 20)
    builder.input("x", FP32, (-1, 4))
    builder.input("i", INT64, shape)
    program = builder.build([("y", builder.add(operator, arguments)[0])])
    with pytest.raises(OperatorError, match=f"^{operator}: input must not be empty"):
        program.check(((0, 4), shape))


# --- Indices are held within their dimension: "implementations can introduce clamp()"


@st.composite
def anywhere(draw: Draw, shape: tuple[int, ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of any value, and the positions that they come to in a dimension of ``size``."""
    dtype = np.dtype(draw(st.sampled_from(INDICES)))
    limits = np.iinfo(dtype)
    near = st.integers(max(limits.min, -2 * size), 2 * size)
    edges = st.sampled_from(
        [v for v in (limits.min, -(1 << 31), 1 << 31, 3 << 30, 1 << 32) if limits.min <= v <= limits.max]
        + [limits.max]
    )
    count = int(np.prod(shape))
    given = draw(st.lists(near | edges, min_size=count, max_size=count))
    held = [min(max(i, -size), size - 1) for i in given]
    return np.array(given, dtype).reshape(shape), np.array(held).reshape(shape) % size


def run(use: Use) -> np.ndarray:
    return Graph([use]).run()[0][0]


placing = st.sampled_from(
    [
        {},
        {"constants": frozenset({1})},
        {"open": frozenset({(0, 0), (0, 1)})},
        {"constants": frozenset({1}), "open": frozenset({(0, 0)})},
    ]
)
ARRAY = np.arange(15, dtype=np.float32).reshape(5, 3)


@settings(max_examples=60, derandomize=True)
@given(anywhere((4,), 5), placing)
def test_gather_holds_indices(indices: tuple[np.ndarray, np.ndarray], placed: dict[str, Any]) -> None:
    wild, held = indices
    np.testing.assert_array_equal(run(Use("gather", (ARRAY, wild), {"axis": 0}, **placed)), ARRAY[held])


@settings(max_examples=60, derandomize=True)
@given(anywhere((4, 3), 5), placing)
def test_gather_elements_holds_indices(
    indices: tuple[np.ndarray, np.ndarray], placed: dict[str, Any]
) -> None:
    wild, held = indices
    got = run(Use("gatherElements", (ARRAY, wild), {"axis": 0}, **placed))
    np.testing.assert_array_equal(got, np.take_along_axis(ARRAY, held, 0))


@settings(max_examples=60, derandomize=True)
@given(anywhere((4, 1), 5), placing)
def test_gather_nd_holds_indices(indices: tuple[np.ndarray, np.ndarray], placed: dict[str, Any]) -> None:
    wild, held = indices
    np.testing.assert_array_equal(run(Use("gatherND", (ARRAY, wild), {}, **placed)), ARRAY[held[:, 0]])


@settings(max_examples=60, derandomize=True)
@given(anywhere((1, 3), 5), placing)
def test_scatter_elements_holds_indices(
    indices: tuple[np.ndarray, np.ndarray], placed: dict[str, Any]
) -> None:
    wild, held = indices
    expected = ARRAY.copy()
    np.put_along_axis(expected, held, -1, 0)
    updates = np.full((1, 3), -1, np.float32)
    got = run(Use("scatterElements", (ARRAY, wild, updates), {"axis": 0}, **placed))
    np.testing.assert_array_equal(got, expected)


@settings(max_examples=60, derandomize=True)
@given(anywhere((1, 1), 5), placing)
def test_scatter_nd_holds_indices(indices: tuple[np.ndarray, np.ndarray], placed: dict[str, Any]) -> None:
    wild, held = indices
    expected = ARRAY.copy()
    expected[held[0, 0]] = -1
    got = run(Use("scatterND", (ARRAY, wild, np.full((1, 3), -1, np.float32)), {}, **placed))
    np.testing.assert_array_equal(got, expected)
