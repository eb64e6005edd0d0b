"""Windows of resampled images, which are computed without the rest of the image."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_wasm.errors import WasmServingError
from kserve_wasm.tensors.dtypes import FP32
from kserve_wasm.webnn import Builder
from tests.webnn.strategies import Draw, numbers, opened
from tests.webnn.uses import Graph, Use, check

MODES = st.sampled_from(["nearest-neighbor", "linear"])


@st.composite
def windows(draw: Draw) -> Use:
    """A window of an image of bytes that was made floats and resampled; sometimes further dimensions are cut."""
    whole = draw(
        st.tuples(*[st.sampled_from([1, 2, 3, 5, 8, 20])] * 4).filter(lambda s: math.prod(s) <= 2000)
    )
    axes = draw(st.sampled_from([(1, 2), (2, 3), (2, 1), (0, 2), (1, 3)]))
    sizes = draw(st.tuples(*[st.integers(1, 20)] * 2))
    resampled = list(whole)
    for axis, size in zip(axes, sizes, strict=True):
        resampled[axis] = size
    cut = [dim if axis not in axes and draw(st.integers(0, 3)) else None for axis, dim in enumerate(whole)]
    starts = [0 if kept else draw(st.integers(0, dim - 1)) for dim, kept in zip(resampled, cut, strict=True)]
    lengths = tuple(
        kept or draw(st.integers(1, dim - start))
        for dim, kept, start in zip(resampled, cut, starts, strict=True)
    )
    floats = Use("cast", (draw(numbers(draw(st.sampled_from(["uint8", "int8"])), whole)), "float32"))
    if draw(st.booleans()):
        floats = draw(opened(st.just(floats)))
    image = Use("resample2dTo", (floats, np.array(sizes, np.int32), (20, 20), draw(MODES)), {"axes": axes})
    return Use("sliceFrom", (image, np.array(starts, np.int32), lengths))


@settings(max_examples=150, derandomize=True)
@given(windows())
def test_windows_agree_with_the_oracle(use: Use) -> None:
    check([use])


def crop(image: np.ndarray, sizes: tuple[int, int], starts: list[int], lengths: tuple[int, ...]) -> Use:
    resampled = Use(
        "resample2dTo",
        (Use("cast", (image, "float32")), np.array(sizes, np.int32), (64, 64), "linear"),
        {"axes": (1, 2)},
    )
    return Use("sliceFrom", (resampled, np.array(starts, np.int32), lengths))


IMAGE = np.random.default_rng(5).integers(0, 256, (2, 70, 50, 3), np.uint8)


@pytest.mark.parametrize(
    "starts",
    [
        [0, 24, 0, 0],
        [0, 0, 25, 0],
        [0, -1, 0, 0],
        [0, 0, -1, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 1],
        [-1, 0, 0, 0],
        [0, 0, 0, -(1 << 31)],
    ],
)
def test_windows_that_reach_beyond_the_image_fail(starts: list[int]) -> None:
    with pytest.raises(WasmServingError):
        Graph([crop(IMAGE, (40, 41), starts, (2, 17, 17, 3))]).run()


def test_only_the_pixels_of_a_window_are_made_floats() -> None:
    """A cast of the whole image, or the whole of what it becomes, would cost what the window spares."""
    graph = Graph([crop(IMAGE, (40, 41), [0, 20, 20, 0], (2, 5, 4, 3))])
    model = onnx.shape_inference.infer_shapes(
        onnx.load_from_string(graph.program.model_bytes()), data_prop=True
    )
    casts = {node.output[0] for node in model.graph.node if node.op_type == "Cast"}
    elements = {
        value.name: math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and value.name in casts
    }
    assert max(elements.values()) == 2 * 5 * 4 * 3  # each neighbour of each pixel


def test_what_no_output_needs_is_not_in_the_graph() -> None:
    builder = Builder(1 << 20)
    x = builder.input("x", FP32, (3,))
    (y,), _ = builder.add("neg", (x,)), builder.add("exp", (builder.add("sin", (x,))[0],))
    model = onnx.load_from_string(builder.build([("y", y)]).model_bytes())
    assert [node.op_type for node in model.graph.node] == ["Neg", "Identity"]
