"""Operators whose operands other operators give: what one lowering knows of another must not change what they give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_wasm.webnn.operator import OPERATORS
from tests.webnn.oracle.precision import Array
from tests.webnn.strategies import ALL, INTEGERS, Draw, elements, narrower, numbers, shapes
from tests.webnn.test_operators import USES
from tests.webnn.uses import Graph, Use, check

GENTLE = ("abs", "neg", "relu", "softsign", "tanh", "sigmoid", "identity", "hardSwish")
"""Operators of floats that keep numbers small and errors small: none that steps, as ceil does."""


@st.composite
def expressions(draw: Draw, shape: tuple[int, ...], depth: int) -> Use | Array:
    """float32 of one shape, or of one that broadcasts to it, made by up to 2 ** ``depth`` operators."""
    if not depth or not draw(st.integers(0, 5)):
        return draw(elements("float32", shape, -2, 2))
    kind = draw(st.sampled_from(["unary", "binary", "where", "cast"]))
    operand = expressions(shape, depth - 1)
    if kind == "unary":
        return Use(draw(st.sampled_from(GENTLE)), (draw(operand),))
    if kind == "binary":
        return Use(draw(st.sampled_from(["add", "sub", "mul", "max", "min"])), (draw(operand), draw(operand)))
    if kind == "where":
        truth = Use("greater", (draw(elements("float32", shape)), draw(elements("float32", shape))))
        return Use("where", (truth, draw(operand), draw(operand)))
    whole = draw(numbers(draw(st.sampled_from(INTEGERS)), shape))
    return Use("cast", (Use("clamp", (whole,), {"minValue": 0, "maxValue": 9}), "float32"))


@settings(max_examples=100, derandomize=True)
@given(shapes(most=3).flatmap(lambda shape: expressions(shape, 5)).filter(lambda made: isinstance(made, Use)))
def test_trees_of_operators_agree_with_the_oracle(use: Use) -> None:
    check([use])


@st.composite
def moved(draw: Draw, array: Array) -> Use:
    """A use that gives ``array``, by operators that move its elements."""
    rank = array.ndim
    kind = draw(st.sampled_from(["transpose", "slice", "reshape", "concat", "reverse"]))
    if kind == "transpose":
        order = draw(st.permutations(range(rank)))
        back = tuple(order.index(axis) for axis in range(rank))
        return Use("transpose", (np.transpose(array, order),), {"permutation": back})
    if kind == "slice":
        before = tuple(draw(st.integers(0, 2)) for _ in range(rank))
        wider = np.pad(array, [(n, 1) for n in before], constant_values=1)
        return Use("slice", (wider, before, array.shape))
    if kind == "reshape":
        return Use("reshape", (array.reshape(-1), array.shape))
    axis = draw(st.integers(0, rank - 1))
    if kind == "reverse":
        return Use("reverse", (np.flip(array, axis),), {"axes": (axis,)})
    cut = draw(st.integers(1, array.shape[axis]))
    parts = [part for part in np.split(array, [cut], axis) if part.size]
    return Use("concat", (tuple(parts), axis))


@st.composite
def followed(draw: Draw, use: Use) -> Use:
    """A use of what ``use`` gives, by operators that networks have behind others."""
    (result,) = use.expected()
    if result.dtype.kind != "f":
        return Use("cast", (use, draw(st.sampled_from(["float32", "int64"]))))
    kind = draw(st.sampled_from(["relu", "clamp", "add", "mul", "transpose", "leakyRelu", "sigmoid"]))
    if kind in ("add", "mul"):
        other = draw(elements(result.dtype.name, draw(narrower(result.shape)), -2, 2))
        return Use(kind, (use, other) if draw(st.booleans()) else (other, use))
    return Use(kind, (use,), {"minValue": -1.0, "maxValue": 2.5} if kind == "clamp" else {})


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_operators_between_others_agree_with_the_oracle(name: str) -> None:
    """What is moved into an operator, and applied behind it, can be fused with it: it must stay the same."""

    @settings(max_examples=20, derandomize=True)
    @given(USES[name], st.data())
    def agrees(use: Use, data: st.DataObject) -> None:
        places = [n for n, value in enumerate(use.arguments) if isinstance(value, np.ndarray) and value.ndim]
        arguments = list(use.arguments)
        for place in places:
            if data.draw(st.booleans()):
                arguments[place] = data.draw(moved(arguments[place]))
        use = replace(use, arguments=tuple(arguments))
        if len(use.expected()) == 1 and data.draw(st.booleans()):
            use = data.draw(followed(use))
        check([use])

    agrees()


@pytest.mark.parametrize("mode", ["nearest-neighbor", "linear"])
@settings(max_examples=60, derandomize=True)
@given(st.data())
def test_resampled_images_of_integers_are_as_exact_as_those_of_floats(mode: str, data: st.DataObject) -> None:
    """An image of integers is gathered where its floats would be resized: small to large and large to small."""
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    axes = data.draw(st.sampled_from([(1, 2), (2, 1), (2, 3), (0, 3)]))
    shape = tuple({axes[0]: height, axes[1]: width}.get(axis, 2) for axis in range(4))
    image = data.draw(elements(data.draw(st.sampled_from(["uint8", "int8", "int32"])), shape, 0, 255))
    opened = data.draw(st.frozensets(st.tuples(st.just(0), st.integers(0, 3))))
    floats = Use("cast", (image, data.draw(st.sampled_from(["float32", "float16"]))), open=opened)
    sizes = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    uses = [
        Use("resample2d", (floats,), {"mode": mode, "sizes": sizes, "axes": axes}),
        Use("resample2dTo", (floats, np.array(sizes, np.int32), (15, 15), mode), {"axes": axes}),
    ]
    check(uses)


@settings(max_examples=100, derandomize=True)
@given(st.data())
def test_casts_of_casts_keep_each_step(data: st.DataObject) -> None:
    """float32 → uint8 → float32 loses the fraction, int64 → int8 → int64 the high bits."""
    types = data.draw(st.lists(st.sampled_from(ALL), min_size=2, max_size=5))
    use: Use | Array = data.draw(elements(types[0], data.draw(shapes(most=2)), -100, 300))
    for dtype in types[1:]:
        use = Use("cast", (use, dtype))
    check([use])


@pytest.mark.parametrize("name", ["averagePool2d", "l2Pool2d", "maxPool2d", "conv2d"])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("value", [0.0, -2.5])
def test_padded_elements_are_elements_to_the_window_that_follows(name: str, width: int, value: float) -> None:
    """ONNX Runtime fuses ``Pad`` into what follows, and takes its zeros for padding, which is no element."""
    rng = np.random.default_rng(1)
    image = rng.uniform(-2, -1, (1, 2, 4, 4)).astype(np.float32)
    padded = Use("pad", (image, (0, 0, width, width), (0, 0, width, width)), {"value": value})
    filters = (rng.uniform(-1, 1, (2, 2, 2, 2)).astype(np.float32),) if name == "conv2d" else ()
    options = {} if filters else {"windowDimensions": (2, 2)}
    check([Use(name, (padded, *filters), {**options, "padding": p}) for p in ((0, 0, 0, 0), (1, 0, 1, 0))])


QUANTIZED = [
    "averagePool2d",
    "conv2d",
    "identity",
    "matmul",
    "maxPool2d",
    "mul",
    "relu",
    "resample2d",
    "softmax",
]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_what_lies_between_dequantizing_and_quantizing_is_computed_as_it_is_written(
    name: str, dtype: str
) -> None:
    """ONNX Runtime would fuse the three to an operator in 8 bits, whose results are near."""
    rng = np.random.default_rng(1)

    def quantization(scale: float) -> tuple[Array, Array]:
        zero = 120 if dtype == "uint8" else 3
        return np.full((1, 1, 1, 1), scale, np.float32), np.full((1, 1, 1, 1), zero, dtype)

    def integers(*shape: int) -> Array:
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)

    for _ in range(10):
        x = Use("dequantizeLinear", (integers(1, 2, 4, 4), *quantization(0.05)), constants=frozenset({1, 2}))
        w = Use(
            "dequantizeLinear", (integers(2, 2, 4, 4), *quantization(0.02)), constants=frozenset({0, 1, 2})
        )
        result = {
            "conv2d": Use("conv2d", (x, w), {"padding": (1, 1, 1, 1)}),
            "matmul": Use("matmul", (x, w)),
            "mul": Use("mul", (x, w)),
            "softmax": Use("softmax", (x, 3)),
            "resample2d": Use("resample2d", (x,), {"sizes": (5, 7), "mode": "linear"}),
        }.get(name) or Use(name, (x,), {"windowDimensions": (2, 2)} if "Pool" in name else {})
        scale = rng.uniform(0.01, 0.05)
        use = Use("quantizeLinear", (result, *quantization(scale)), constants=frozenset({1, 2}))
        (got,) = Graph([use]).run()[0]
        # Where the quotient is nearly halfway, an error of float32 decides.
        quotient = result.expected()[0] / np.float32(scale)
        certain = np.abs(quotient - np.floor(quotient) - 0.5) > 1e-3
        np.testing.assert_array_equal(got[certain], use.expected()[0][certain])
