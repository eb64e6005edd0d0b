"""int64 elements that differ in little more than their lower halves, which some of ONNX Runtime's kernels compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.webnn.uses import Use, check

# The signs of the lower halves, as 32-bit numbers, are all there is between these.
NEAR = np.array(
    [3504064333, 1191196492, 2881392816, 11761768, -3504064333, -1191196492, 1 << 32, -1 << 32] * 5
)
FAR = np.roll(NEAR, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("max", (NEAR, FAR), {}),
        ("min", (NEAR, FAR), {}),
        ("sign", (NEAR,), {}),
        ("relu", (NEAR,), {}),
        ("prelu", (NEAR, FAR), {}),
        ("clamp", (NEAR,), {"minValue": 1191196492.0, "maxValue": 3504064333.0}),
        ("maxPool2d", (NEAR.reshape(1, 2, 4, 5),), {"windowDimensions": (2, 3)}),
        ("maxPool2d", (NEAR.reshape(1, 2, 4, 5),), {}),
    ],
)
def test_int64_is_compared_with_both_halves(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    check([Use(name, arguments, options)])
