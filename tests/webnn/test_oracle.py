"""The oracle itself: it gives what the specification's examples give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.webnn.oracle import OPERATORS
from tests.webnn.oracle.precision import Array

INPUT = np.array([[0, 1, 2], [10, 11, 12], [20, 21, 22], [30, 31, 32]], np.float32)
CUBE = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
TALL = np.array([[[100 * n + 10 * i + j for j in range(2)] for i in range(2)] for n in range(4)], np.float32)
SQUARE = np.array([[7, 1, 2], [9, 4, 8], [2, 6, 3]], np.float32)


def u32(values: Any) -> Array:
    return np.array(values, np.uint32)


def f32(values: Any) -> Array:
    return np.array(values, np.float32)


def case(name: str, arguments: tuple[Any, ...], expected: Any, **options: Any) -> Any:
    label = ", ".join([name, *(f"{key}={value}" for key, value in options.items())])
    return pytest.param(name, arguments, options, expected, id=label)


EXAMPLES = [
    case("gather", (INPUT, u32([3, 1])), [[30, 31, 32], [10, 11, 12]]),
    case("gather", (INPUT, u32([2, 1, 1])), [[2, 1, 1], [12, 11, 11], [22, 21, 21], [32, 31, 31]], axis=1),
    case(
        "gather",
        (INPUT, u32([[0, 1], [1, 2]])),
        [[[0, 1], [1, 2]], [[10, 11], [11, 12]], [[20, 21], [21, 22]], [[30, 31], [31, 32]]],
        axis=1,
    ),
    case("gatherElements", (INPUT, u32([[3, 1, 1], [2, 0, 3]])), [[30, 11, 12], [20, 1, 32]]),
    case("gatherElements", (INPUT, u32([[2], [1], [0], [2]])), [[2], [11], [20], [32]], axis=1),
    case("gatherElements", (TALL, u32([[[0, 2], [1, 3]]])), [[[0, 201], [110, 311]]], axis=0),
    case("gatherND", (CUBE[0], u32([[0, 0], [1, 1], [1, 0]])), [0, 3, 2]),
    case("gatherND", (CUBE[0], u32([[1], [0]])), [[2, 3], [0, 1]]),
    case("gatherND", (CUBE, u32([[0, 1], [1, 0]])), [[2, 3], [4, 5]]),
    case("gatherND", (CUBE, u32([[1], [0], [1]])), [[[4, 5], [6, 7]], [[0, 1], [2, 3]], [[4, 5], [6, 7]]]),
    case("gatherND", (CUBE, u32([[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]])), [1, 2, 4, 6, 7]),
    case(
        "scatterElements",
        (INPUT, u32([[3, 1, 1], [2, 0, 3]]), f32([[-1, -2, -3], [-4, -5, -6]])),
        [[0, -5, 2], [10, -2, -3], [-4, 21, 22], [-1, 31, -6]],
    ),
    case(
        "scatterElements",
        (INPUT, u32([[2], [1], [0], [2]]), f32([[-1], [-2], [-3], [-4]])),
        [[0, 1, -1], [10, -2, 12], [-3, 21, 22], [30, 31, -4]],
        axis=1,
    ),
    case(
        "pad",
        (f32([[1, 2, 3], [4, 5, 6]]), [1, 2], [1, 2]),
        [[0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 2, 3, 0, 0], [0, 0, 4, 5, 6, 0, 0], [0, 0, 0, 0, 0, 0, 0]],
    ),
    case(
        "pad",
        (f32([[1, 2, 3], [4, 5, 6]]), [1, 2], [1, 2]),
        [[1, 1, 1, 2, 3, 3, 3], [1, 1, 1, 2, 3, 3, 3], [4, 4, 4, 5, 6, 6, 6], [4, 4, 4, 5, 6, 6, 6]],
        mode="edge",
    ),
    case(
        "pad",
        (f32([[1, 2, 3], [4, 5, 6]]), [1, 2], [1, 2]),
        [[6, 5, 4, 5, 6, 5, 4], [3, 2, 1, 2, 3, 2, 1], [6, 5, 4, 5, 6, 5, 4], [3, 2, 1, 2, 3, 2, 1]],
        mode="reflection",
    ),
    case("cumulativeSum", (f32([1, 2, 3, 4]), 0), [1, 3, 6, 10]),
    case("cumulativeSum", (f32([1, 2, 3, 4]), 0), [0, 1, 3, 6], exclusive=True),
    case("cumulativeSum", (f32([1, 2, 3, 4]), 0), [10, 9, 7, 4], reversed=True),
    case("triangular", (SQUARE,), [[7, 1, 2], [0, 4, 8], [0, 0, 3]]),
    case("triangular", (SQUARE,), [[0, 1, 2], [0, 0, 8], [0, 0, 0]], diagonal=1),
    case("triangular", (SQUARE,), [[7, 1, 2], [9, 4, 8], [0, 6, 3]], diagonal=-1),
    case("triangular", (SQUARE,), [[7, 0, 0], [9, 4, 0], [2, 6, 3]], upper=False),
    case("triangular", (SQUARE,), [[7, 1, 0], [9, 4, 8], [2, 6, 3]], upper=False, diagonal=1),
    case("triangular", (SQUARE,), [[0, 0, 0], [9, 0, 0], [2, 6, 0]], upper=False, diagonal=-1),
    # "casting -1 from int8 to uint8 is specified to yield 255"
    case("cast", (np.array([-1], np.int8), "uint8"), [255]),
    # Blockwise: "values [1,2,3,4,5] ... would be repeated to [1,1,2,2,3,3,4,4,5,5]"
    case(
        "dequantizeLinear",
        (np.ones(10, np.uint8), f32([1, 2, 3, 4, 5]), np.zeros(5, np.uint8)),
        [1, 1, 2, 2, 3, 3, 4, 4, 5, 5],
    ),
]


@pytest.mark.parametrize(("name", "arguments", "options", "expected"), EXAMPLES)
def test_examples_of_the_specification(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any], expected: Any
) -> None:
    np.testing.assert_array_equal(OPERATORS[name](*arguments, **options), expected)


def test_linear_resampling_is_the_specifications_example() -> None:
    x = f32([[0, 1, 2, 3], [0, 1, 2, 3], [12, 13, 14, 15], [12, 13, 14, 15]]).reshape(1, 1, 4, 4)
    along = np.array([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    down = np.array([0, 0, 0, 3, 9, 12, 12, 12])
    for options in ({"sizes": (8, 8)}, {"scales": (2.0, 2.0)}):
        made = OPERATORS["resample2d"](x, mode="linear", **options)
        np.testing.assert_array_equal(made[0, 0], down[:, None] + along)


def test_nearest_resampling_takes_the_lower_of_two_equally_near() -> None:
    """At 2 → 3 elements the middle one lies at 0.5: ``ceil(0.5 - 0.5)`` is 0."""
    made = OPERATORS["resample2d"](f32([[[[10, 20]]]]), sizes=(1, 3))
    assert made.tolist() == [[[[10, 10, 20]]]]


def test_ratio_of_sizes_and_not_the_scale_tells_where_elements_lie() -> None:
    """3 · 1.5 are 4 elements, so that the scale is 4 / 3: the third lies at 2.5 · 3/4 - 0.5 = 1.375."""
    made = OPERATORS["resample2d"](f32([[[[10, 20, 30]]]]), scales=(1.0, 1.5))
    assert made.tolist() == [[[[10, 20, 20, 30]]]]
