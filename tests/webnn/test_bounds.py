"""What a graph may take of memory and time, whatever its guest builds and the run decides."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.tensors import Tensor
from kserve_wasm.tensors.dtypes import FP32, INT32, INT64, UINT8
from kserve_wasm.webnn import Builder, OperatorError, Recordings

MAX_BYTES = 1 << 24
NO_PADDING = (0, 0, 0, 0)


def image(b: Builder, sizes: int, most: tuple[int, int]) -> int:
    """[1, 1, ?, ?], whose sizes the run decides, at most ``most``."""
    pixel = b.constant(FP32, (1, 1, 1, 1), np.ones(1, np.float32).tobytes())
    return b.add("resample2dTo", (pixel, sizes, most, 0, None))[0]


def pool_far_into_its_padding(b: Builder) -> int:
    x, far = b.input("x", INT32, (1, 1, 1, 1)), 1 << 14
    return b.add("maxPool2d", (x, (2, 2), (far,) * 4, (4 * far, 4 * far), (far, far), 0, 0, None))[0]


def resample_up_before_down(b: Builder) -> int:
    x = b.input("x", UINT8, (1, 1, 1, 1 << 20))
    return b.add("resample2d", (b.add("cast", (x, FP32.onnx))[0], None, 0, (1 << 12, 1), None))[0]


def resample_to_many_positions(b: Builder) -> int:
    return b.add("resample2d", (b.input("x", FP32, (-1, 1, 1, 1)), None, 1, (1 << 21, 1), (1, 3)))[0]


def tile_of_an_open_batch(b: Builder) -> int:
    return b.add("tile", (b.input("x", FP32, (-1, 1)), (1, 1 << 30)))[0]


def transposed_convolution_of_a_size_that_the_run_decides(b: Builder) -> int:
    x = image(b, b.input("sizes", INT32, (2,)), (4, 1))
    w = b.constant(FP32, (1, 1, 1, 1), np.ones(1, np.float32).tobytes())
    for _ in range(2):
        options = (NO_PADDING, (1 << 15, 1), (1, 1), ((1 << 15) - 1, 0), None, 1, 0, 0)
        (x,) = b.add("convTranspose2d", (x, w, 0, *options))
    return x


def broadcast_of_sizes_that_the_run_decides(b: Builder) -> int:
    sizes = b.input("sizes", INT32, (2,))
    small, large = (b.add("reshape", (image(b, sizes, (n, 1)), (1, -9)))[0] for n in (1, 1 << 17))
    (row,) = b.add("add", (small, large))
    return b.add("add", (row, b.add("transpose", (row, None))[0]))[0]


def convolution_of_sizes_that_the_run_decides(b: Builder) -> int:
    x = image(b, b.input("sizes", INT32, (2,)), (1 << 10, 1 << 10))
    w = b.constant(FP32, (1, 1, 1 << 10, 1 << 10), bytes(4 << 20))
    half = 1 << 9
    return b.add("conv2d", (x, w, 0, (half, half, half, half), (1, 1), (1, 1), 1, 0, 0))[0]


def recurrence_of_as_many_steps_as_the_run_decides(b: Builder) -> int:
    (x,) = b.add("reshape", (image(b, b.input("sizes", INT32, (2,)), (1 << 10, 1)), (-9, 1, 1)))
    w, r = (b.constant(FP32, (1, 6, n), bytes(24 * n)) for n in (1, 2))
    return b.add("gru", (x, w, r, 1, 2, 0, 0, 0, 0, 1, 0, 0, (0, 0)))[1]


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (pool_far_into_its_padding, "maxPool2d: .* intermediate elements"),
        (resample_up_before_down, "resample2d: .* intermediate elements"),
        (resample_to_many_positions, "may have 1048576 pixels"),
        (tile_of_an_open_batch, "tile: the result"),
        (transposed_convolution_of_a_size_that_the_run_decides, "convTranspose2d: the result"),
        (broadcast_of_sizes_that_the_run_decides, "add: the result"),
        (convolution_of_sizes_that_the_run_decides, "conv2d: .* multiplications"),
        (recurrence_of_as_many_steps_as_the_run_decides, "gru: input must not"),
    ],
)
def test_what_takes_too_much_is_refused_when_it_is_added(use: Callable[[Builder], int], reason: str) -> None:
    with pytest.raises(OperatorError, match=reason):
        use(Builder(MAX_BYTES))


def test_sizes_that_the_run_decides_broadcast_to_the_larger() -> None:
    b = Builder(MAX_BYTES)
    sizes = b.input("sizes", INT32, (2,))
    one, several = (b.add("reshape", (image(b, sizes, (n, 1)), (-9,)))[0] for n in (1, 7))
    program = b.build([("y", b.add("add", (one, several))[0])])
    graph = open_graph(GraphSource("g", "onnx", data=program.model_bytes()), "cpu")
    given = {"sizes": Tensor.from_numpy(np.array([5, 1], np.int32))}
    program.check(((2,),))
    answer = graph.run(given, time.monotonic() + 60)["y"].numpy()
    np.testing.assert_array_equal(answer, np.full(5, 2, np.float32))
    graph.close()


def test_operators_that_are_lowered_to_many_nodes_are_refused_before_the_graph_is_opened() -> None:
    b = Builder(MAX_BYTES)
    x = b.input("x", INT64, (1, 1, 33, 33))
    for _ in range(200):
        (x,) = b.add("maxPool2d", (x, (33, 33), (16, 16, 16, 16), (1, 1), (1, 1), 0, 0, None))
    with pytest.raises(OperatorError, match="more than 8192 values"):
        b.build([("y", x)]).model_bytes()


def test_constants_that_operators_add_are_bounded() -> None:
    b = Builder(MAX_BYTES)
    x = b.input("x", INT64, (1, 1 << 20))
    sums = [(f"y{i}", b.add("reduceSum", (x, None, 0))[0]) for i in range(40)]
    with pytest.raises(OperatorError, match="constants"):
        b.build(sums).model_bytes()


def test_lists_of_operands_are_bounded_together() -> None:
    b = Builder(MAX_BYTES)
    x = b.input("x", UINT8, (1,))
    for _ in range(4):
        b.add("concat", ((x,) * 4096, 0))
    with pytest.raises(OperatorError, match="16384 entries"):
        b.add("concat", ((x, x), 0))


def test_graphs_that_differ_in_their_outputs_names_alone_are_forgotten_in_time() -> None:
    recordings = Recordings()
    root = recordings.root
    for i in range(40):
        b = Builder(MAX_BYTES, recordings)
        x = b.input("x", FP32, (-1,))
        for _ in range(2000):
            (x,) = b.add("relu", (x,))
        b.build([(f"y{i}", x)])
    assert recordings.root is not root


@pytest.mark.parametrize(("first", "second", "same"), [(0.0, -0.0, False), (np.nan, -np.nan, True)])
def test_what_was_built_is_found_by_what_its_numbers_are(first: float, second: float, same: bool) -> None:
    recordings = Recordings()

    def built(value: float) -> object:
        b = Builder(MAX_BYTES, recordings)
        return b.build([("y", b.add("linear", (b.input("x", FP32, (1,)), 1.0, value))[0])])

    assert (built(float(first)) is built(float(second))) is same


@pytest.mark.parametrize("keep", [0, 1])
def test_the_product_of_no_integers_is_1(keep: int) -> None:
    b = Builder(MAX_BYTES)
    program = b.build([("y", b.add("reduceProduct", (b.input("x", INT32, (-1, 2)), (0,), keep))[0])])
    graph = open_graph(GraphSource("g", "onnx", data=program.model_bytes()), "cpu")
    answer = graph.run({"x": Tensor.from_numpy(np.zeros((0, 2), np.int32))}, time.monotonic() + 60)
    np.testing.assert_array_equal(answer["y"].numpy(), np.ones((1, 2) if keep else 2, np.int32))
    graph.close()
