"""What the orientation example does, by hand: NumPy, Pillow's pixels, and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

ORIENTATION = Path(__file__).parents[2] / "examples" / "orientation"

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
SPREAD = 1 / (np.array([0.229, 0.224, 0.225], np.float32) * 255)
SHORT, SIDE = 256, 224


def prepare(image: Image) -> Floats:
    """The graph's input [1, 3, 224, 224] for an RGB image [H, W, 3].

    The image's short side becomes 256 pixels, by linear interpolation between pixels' centres; of that the middle
    is taken. Only what ends up there is computed.
    """
    sides = np.array(image.shape[:2])
    short = sides.min()
    scaled = (2 * SHORT * sides + short) // (2 * short)
    (top, bottom, v), (left, right, u) = map(_neighbours, sides, scaled)
    pixels = image.reshape(-1, 3)

    def row(y: Indices) -> Floats:
        starts = y[:, None] * image.shape[1]
        return _between(pixels.take(starts + left, axis=0), pixels.take(starts + right, axis=0), u[:, None])

    crop = _between(row(top), row(bottom), v[:, None, None])
    crop -= MEAN
    crop *= SPREAD
    return np.ascontiguousarray(crop.transpose(2, 0, 1))[None]


def _neighbours(side: np.int64, scaled: np.int64) -> tuple[Indices, Indices, Floats]:
    """For each of the middle pixels after scaling: the pixels before and after it, and where it is between them."""
    start = (scaled - SIDE) // 2
    at = (np.arange(start, start + SIDE) + 0.5) * (side / scaled) - 0.5
    at = np.clip(at, 0, side - 1)
    before = at.astype(np.int64)
    return before, np.minimum(before + 1, side - 1), (at - before).astype(np.float32)


def _between(before: npt.NDArray[Any], after: npt.NDArray[Any], weight: Floats) -> Floats:
    first = before.astype(np.float32, copy=False)
    result = after.astype(np.float32)
    result -= first
    result *= weight
    result += first
    return result


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def orientation(session: ort.InferenceSession, image: Image) -> tuple[int, Floats]:
    """How far an RGB image [H, W, 3] is turned clockwise, in degrees, and the probability of each quarter turn [1, 4].

    ``session`` gives logits.
    """
    (logits,) = session.run(None, {"x": prepare(image)})
    probabilities = softmax(logits)
    return 90 * int(probabilities.argmax()), probabilities
