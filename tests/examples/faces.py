"""What the faces example does, by hand: NumPy, and any function that runs the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

FACES = Path(__file__).parents[2] / "examples" / "faces"

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Model = Callable[[Floats], "tuple[Floats, Floats]"]
"""[1, 128, 128, 3] from -1 to 1 → regressors [1, 896, 16] and scores before the sigmoid [1, 896, 1]."""

SIDE = 128
MIN_SCORE, MAX_OVERLAP = 0.5, 0.3


@dataclass(frozen=True)
class Faces:
    """Best first: left, top, right, bottom; score; eyes, nose, mouth, ears as x, y. All in the image's pixels."""

    boxes: Floats
    scores: Floats
    points: Floats


def find(model: Model, image: Image) -> Faces:
    """The faces in an RGB image [H, W, 3]."""
    picture, scale, offset = letterbox(image)
    regressors, logits = model(picture[None])
    scores = (1 / (1 + np.exp(-logits.reshape(-1).clip(-100, 100).astype(np.float64)))).astype(np.float32)
    decoded = regressors.reshape(-1, 8, 2).astype(np.float64)
    decoded[:, [0, 2, 3, 4, 5, 6, 7]] += anchors()[:, None] - offset
    decoded *= scale
    centre, size, points = decoded[:, 0], decoded[:, 1], decoded[:, 2:]
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    kept = suppress(boxes, scores)
    return Faces(boxes[kept].astype(np.float32), scores[kept], points[kept].astype(np.float32))


def letterbox(image: Image) -> tuple[Floats, Floats, Floats]:
    """The model's input [128, 128, 3], and how its pixels become the image's: ``(x, y) = (input - offset) * scale``.

    The long side becomes 128 pixels, by linear interpolation between pixels' centres, and black is around.
    """
    sides = np.array(image.shape[:2])
    scaled = np.maximum((2 * SIDE * sides + sides.max()) // (2 * sides.max()), 1)
    small = resize(image, *map(int, scaled))
    start = SIDE // 2 - scaled // 2
    picture = np.zeros((SIDE, SIDE, 3), np.float64)
    picture[start[0] : start[0] + scaled[0], start[1] : start[1] + scaled[1]] = small
    return (picture / 127.5 - 1).astype(np.float32), (sides / scaled)[::-1], start[::-1]


def resize(image: Image, height: int, width: int) -> npt.NDArray[np.float64]:
    """Linear interpolation, one axis after the other; where there is no neighbour, the pixel itself."""
    result = image.astype(np.float64)
    for axis, size in enumerate((height, width)):
        side = image.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
        before = np.floor(at).astype(int)
        weight = (at - before).reshape([-1 if i == axis else 1 for i in range(3)])
        after = result.take(np.minimum(before + 1, side - 1), axis)
        result = result.take(before, axis) * (1 - weight) + after * weight
    return result


def anchors() -> npt.NDArray[np.float64]:
    """Centres x, y of the 896 anchors in the model's pixels: 2 in each cell of 8 pixels, then 6 in each of 16."""
    grids = []
    for cell, count in ((8, 2), (16, 6)):
        ticks = np.arange(0, SIDE, cell) + cell / 2
        x, y = np.meshgrid(ticks, ticks)
        grids.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), count, axis=0))
    return np.concatenate(grids)


def suppress(boxes: npt.NDArray[np.float64], scores: Floats) -> list[int]:
    """Greedy non-maximum suppression: the best box stays, and those that overlap it too much go; and so on."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] > MIN_SCORE and all(overlap(boxes[i], boxes[k]) <= MAX_OVERLAP for k in kept):
            kept.append(int(i))
    return kept


def overlap(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Intersection over union."""
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    common = float(sides.prod())
    return common / float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common)
