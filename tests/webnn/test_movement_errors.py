"""What operators that move elements do not take, and what they say of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.errors import WasmServingError
from kserve_wasm.tensors import Tensor
from kserve_wasm.tensors.dtypes import FP32
from kserve_wasm.webnn import Builder, OperatorError
from tests.webnn.refusals import refusal
from tests.webnn.uses import Graph, Use

X = ("FP32", (2, 3, 4))
BATCH = ("FP32", (-1, 3, 4))
HUGE = (1 << 32) - 1


@pytest.mark.parametrize(
    ("operator", "operands", "arguments", "problem"),
    [
        ("reshape", [X], (1, (5, 5)), "newShape [5, 5] must have as many elements as input"),
        ("reshape", [X], (1, (0, 5)), "newShape must have no 0"),
        ("reshape", [X], (1, (-8, -9)), "newShape may have one open dimension that no input has, got 2"),
        ("reshape", [X], (1, (-8, 5)), "must have as many elements"),
        ("reshape", [BATCH], (1, (-1, 5)), "must have as many elements"),
        ("expand", [X], (1, (2, 3, 5)), "input must be broadcastable to newShape, got [2, 3, 5]"),
        ("expand", [X], (1, (3, 4)), "input must be broadcastable to newShape"),
        ("expand", [X], (1, (-7, 2, 3, 4)), "an open dimension of newShape must be that of an input"),
        ("transpose", [X], (1, (0, 0, 1)), "permutation must have each number below 3 once, got [0, 0, 1]"),
        ("transpose", [X], (1, (0, 1)), "permutation must have each number below 3 once"),
        ("reverse", [X], (1, (3,)), "axes must be different numbers below 3, got [3]"),
        ("concat", [X, ("FP32", (2, 3, 1))], ((1, 2), 1), "the same size in all dimensions but 1"),
        ("concat", [X, ("INT8", (2, 3, 4))], ((1, 2), 1), "inputs must have the same data type"),
        ("concat", [X, ("FP32", (2, 3))], ((1, 2), 1), "inputs must have the same number of dimensions"),
        ("concat", [X], ((1,), 3), "axis must be below 3"),
        ("concat", [], ((), 0), "inputs must be one operand at least, got none"),
        ("split", [X], (1, 5, None, 2), "input must have a size along axis that 5 divides, got 4"),
        ("split", [X], (1, 0, None, 2), "count must be a number of equal parts from 1"),
        ("split", [BATCH], (1, HUGE, None, 0), "count must be a number of equal parts from 1"),
        ("split", [X], (1, 0, (1, 1), 2), "splits must be above 0 and together input's size along axis"),
        ("split", [X], (1, 0, (0, 4), 2), "splits must be above 0"),
        ("split", [X], (1, 3, (2, 2), 2), "of which count is the number; got 3 and [2, 2]"),
        ("slice", [X], (1, (0, 0), (1, 1), None), "starts must have 3 numbers"),
        ("slice", [X], (1, (0, 0, 1), (2, 3, 4), None), "the slice must be in input, got starts [0, 0, 1]"),
        ("slice", [X], (1, (HUGE, 0, 0), (1, 3, 4), None), "the slice must be in input"),
        ("slice", [X], (1, (0, 0, 0), (2, 3, 0), None), "sizes must be above 0"),
        ("slice", [X], (1, (0, 0, 0), (2, 3, 4), (1, 0, 1)), "strides and sizes must be above 0"),
        ("slice", [BATCH], (1, (1, 0, 0), (-1, 3, 4), None), "the slice must be in input"),
        (
            "slice",
            [BATCH],
            (1, (0, 0, 0), (-5, 3, 4), None),
            "a negative size keeps an input's open dimension whole",
        ),
        ("pad", [X], (1, (0, 0, 4), (0, 0, 0), 2, 0.0), "reflection must be less than the size"),
        ("pad", [X], (1, (0, 0, 0), (0, 0, 0), 3, 0.0), "mode must be 0 (constant), 1 (edge) or 2"),
        ("pad", [X], (1, (0, 0, HUGE), (0, 0, HUGE), 0, 0.0), "no size may be above 2147483647"),
        ("pad", [X], (1, (0,), (0, 0, 0), 0, 0.0), "beginningPadding must have 3 numbers"),
        ("pad", [("INT8", (2,))], (1, (1,), (1,), 0, float("nan")), "value must be a number that INT8 has"),
        ("tile", [X], (1, (1, 1, 0)), "repetitions must be above 0"),
        ("tile", [X], (1, (1, 1, HUGE)), "no size may be above 2147483647"),
        ("tile", [X], (1, (1, 10000, 10000)), "takes 9600000000 bytes"),
        ("tile", [BATCH], (1, (1, 1, HUGE)), "no size may be above 2147483647"),
    ],
)
def test_refusals_tell_what_was_expected(
    operator: str, operands: list[tuple[str, tuple[int, ...]]], arguments: tuple[Any, ...], problem: str
) -> None:
    assert problem in refusal(operator, operands, arguments)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("reshape", (1, (4, 3))),
        ("slice", (1, (2, 0), (2, 3), None)),
        ("pad", (1, (3, 0), (0, 0), 2, 0.0)),
        ("split", (1, 2, None, 0)),
        ("split", (1, 0, (2, 2), 0)),
        ("expand", (1, (7, 3))),
    ],
)
def test_what_was_open_is_checked_at_dispatch(operator: str, arguments: tuple[Any, ...]) -> None:
    builder = Builder(1 << 20)
    builder.input("x", FP32, (-1, 3))
    program = builder.build([(f"y{n}", n) for n in builder.add(operator, arguments)])
    with pytest.raises(OperatorError, match=f"^{operator}: "):
        program.check(((3, 3),))


def test_a_reshape_is_to_the_size_that_another_input_has() -> None:
    """Whatever the number of elements allows: the name of an open dimension is one size."""
    builder = Builder(1 << 20)
    x, y = builder.input("x", FP32, (-1, 6)), builder.input("y", FP32, (-2, 3))
    (z,) = builder.add("reshape", (x, (-2, 3)))
    (w,) = builder.add("add", (z, y))
    program = builder.build([("w", w)])
    program.check(((2, 6), (4, 3)))
    with pytest.raises(OperatorError, match="as many elements"):
        program.check(((2, 6), (3, 3)))


def boxes(count: int) -> Use:
    """As many boxes as there are scores above 0, [boxes, 3]; known only to the run."""
    corners = np.arange(count * 4, dtype=np.float32).reshape(1, count, 4)
    scores = np.ones((1, 1, count), np.float32)
    return Use(
        "nonMaxSuppression",
        (corners, scores),
        {"maxOutputBoxesPerClass": 100, "iouThreshold": 0.5, "scoreThreshold": 0.0},
    )


@pytest.mark.parametrize(
    "use",
    [
        Use("slice", (boxes(3), (0, 0), (4, 3))),
        Use("slice", (boxes(3), (2, 0), (2, 2)), {"strides": (2, 1)}),
        Use("split", (boxes(3), 2), {"axis": 0}),
        Use("split", (boxes(3), (2, 2)), {"axis": 0}),
        Use("reshape", (boxes(3), (4, 3))),
        Use("topK", (Use("cast", (boxes(3), "float32")), 4), {"axis": 0, "largest": True}),
    ],
)
def test_too_few_of_what_the_run_counts_fail_the_run(use: Use) -> None:
    graph = Graph([use])
    with pytest.raises(WasmServingError):
        graph.run()


def test_memory_of_what_the_run_counts_is_bounded() -> None:
    builder = Builder(1 << 20)
    corners, scores = builder.input("b", FP32, (1, 1000, 4)), builder.input("s", FP32, (1, 1, 1000))
    (kept,) = builder.add("nonMaxSuppression", (corners, scores, 100, 0.5, 0.0, 0))
    with pytest.raises(OperatorError, match=r"^tile: .* takes 12000000 bytes"):
        builder.add("tile", (kept, (1, 10000)))
    (flat,) = builder.add("reshape", (kept, (-1,)))
    with pytest.raises(OperatorError, match=r"^tile: .* takes 12000000 bytes"):
        builder.add("tile", (flat, (10000,)))
    for refused in (("expand", (kept, (7, 100, 3))), ("pad", (kept, (1, 0), (0, 0), 1, 0.0))):
        with pytest.raises(OperatorError):
            builder.add(*refused)


def test_an_open_dimension_can_be_taken_from_another_input() -> None:
    """Also by an operator none of whose operands has it: and then requests still merge."""
    builder = Builder(1 << 20)
    x = builder.input("x", FP32, (-1, 2))
    row = builder.constant(FP32, (1, 3), np.array([[7, 8, 9]], np.float32).tobytes())
    (y,) = builder.add("concat", ((x, builder.add("expand", (row, (-1, 3)))[0]), 1))
    program = builder.build([("y", y)])
    assert program.merges()
    given = np.arange(8, dtype=np.float32).reshape(4, 2)
    graph = open_graph(GraphSource("g", "onnx", data=program.model_bytes()), "cpu")
    answer = graph.run({"x": Tensor.from_numpy(given)})["y"].numpy()
    np.testing.assert_array_equal(answer, np.concatenate([given, np.tile([[7, 8, 9]], (4, 1))], 1))


def test_a_sum_over_rows_made_of_the_batch_does_not_merge() -> None:
    """The number of rows is in the sum, though no operand of the batch is."""
    builder = Builder(1 << 20)
    x = builder.input("x", FP32, (-1, 1))
    one = builder.constant(FP32, (1, 1), np.ones((1, 1), np.float32).tobytes())
    (rows,) = builder.add("expand", (one, (-1, 1)))
    (total,) = builder.add("reduceSum", (rows, (0,), 0))
    program = builder.build([("y", builder.add("add", (x, total))[0])])
    assert not program.merges()
