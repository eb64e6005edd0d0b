"""The operators of our own: topK and nonMaxSuppression, after ONNX's, and those whose sizes are operands."""

# ruff: noqa: A002, A004, N802, N803  # named as the specification would

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tests.webnn.oracle.movement import slice
from tests.webnn.oracle.precision import Array
from tests.webnn.oracle.windows import resample2d


def topK(input: Array, k: int, axis: int, largest: bool) -> list[Array]:
    """The ``k`` largest (or smallest) elements along ``axis``, the most extreme first, and their positions, int32.

    Of equal elements, that with the lower position comes first. A NaN counts as the infinity that comes last.
    """
    x = np.moveaxis(input, axis, -1)
    places = np.empty((*x.shape[:-1], k), np.int32)
    for row in np.ndindex(*x.shape[:-1]):
        last = -math.inf if largest else math.inf
        values = [last if value != value else value for value in x[row].tolist()]
        order = sorted(range(len(values)), key=lambda n: (-values[n] if largest else values[n], n))
        places[row] = order[:k]
    return [
        np.moveaxis(np.take_along_axis(x, places.astype(np.int64), -1), -1, axis),
        np.moveaxis(places, -1, axis),
    ]


def nonMaxSuppression(
    boxes: Array,
    scores: Array,
    maxOutputBoxesPerClass: int,
    iouThreshold: float,
    scoreThreshold: float,
    centerPointBox: bool,
) -> Array:
    """The [batch, class, box] of every box that is kept, int32, best first within a class.

    Args:
        boxes: [batch, n, 4]: two opposite corners (y, x, y, x), or with ``centerPointBox`` (x, y, width, height).
        scores: [batch, classes, n].
        maxOutputBoxesPerClass: the most boxes kept of a class.
        iouThreshold: a box that overlaps a better one by a greater share of their union is dropped.
        scoreThreshold: only boxes with a greater score are kept.
        centerPointBox: the form of ``boxes``.
    """
    kept = []
    for batch, class_ in np.ndindex(*scores.shape[:2]):
        corners = [_corners(box, centerPointBox) for box in boxes[batch].astype(np.float64)]
        own = scores[batch, class_].astype(np.float64)
        chosen: list[int] = []
        for n in sorted(range(len(own)), key=lambda n: (-own[n], n)):
            if len(chosen) >= maxOutputBoxesPerClass:
                break
            if own[n] <= np.float32(scoreThreshold):
                continue
            if all(_overlap(corners[n], corners[m]) <= np.float32(iouThreshold) for m in chosen):
                chosen.append(n)
        kept += [(batch, class_, n) for n in chosen]
    return np.array(kept, np.int32).reshape(-1, 3)


def _corners(box: Array, center: bool) -> tuple[float, float, float, float]:
    a, b, c, d = map(float, box)
    if center:
        return b - d / 2, a - c / 2, b + d / 2, a + c / 2
    return min(a, c), min(b, d), max(a, c), max(b, d)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union; 0 where the boxes have no area."""
    height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - height * width
    return height * width / union if height * width > 0 and union > 0 else 0.0


def shape(input: Array) -> Array:
    """The sizes of the dimensions, int32."""
    return np.array(input.shape, np.int32)


def resample2dTo(
    input: Array, sizes: Array, maxSizes: Sequence[int], mode: str, *, axes: Sequence[int] = (2, 3)
) -> Array:
    """resample2d to ``sizes``, cut to be from 1 to ``maxSizes``."""
    cut = [int(size) for size in np.clip(sizes, 1, maxSizes)]
    return resample2d(input, sizes=cut, mode=mode, axes=axes)


def sliceFrom(input: Array, starts: Array, sizes: Sequence[int]) -> Array:
    """Slice from ``starts``."""
    return slice(input, starts.tolist(), sizes)
