#!/usr/bin/env python3
"""Send a picture to the running server, and draw the answer on it.

python examples/draw.py faces photo.jpg -o faces.png
python examples/draw.py orientation page.png -o upright.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.http as triton
from PIL import Image, ImageDraw, ImageFont

Answer = Mapping[str, npt.NDArray[Any]]
COLOUR = (255, 64, 0)


def ask(url: str, model: str, picture: Image.Image) -> Answer:
    """Return the outputs that ``model`` gives for the picture's pixels."""
    pixels = np.asarray(picture)[None]
    tensor = triton.InferInput("image", pixels.shape, "UINT8")
    tensor.set_data_from_numpy(pixels)
    with triton.InferenceServerClient(url) as client:
        result = client.infer(model, [tensor])
    return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


def draw_faces(picture: Image.Image, answer: Answer) -> Image.Image:
    """Frame each face, write its score above, and dot its eyes, nose, mouth and ears."""
    draw, unit = _brush(picture)
    font = ImageFont.load_default(8 * unit)
    for box, score, points in zip(answer["boxes"], answer["scores"], answer["points"], strict=True):
        draw.rectangle(box.tolist(), outline=COLOUR, width=unit)
        draw.text((box[0], box[1] - unit), f"{score:.0%}", COLOUR, font, anchor="lb")
        for x, y in points:
            draw.circle((x, y), 1.5 * unit, COLOUR)
    return picture


def draw_orientation(picture: Image.Image, answer: Answer) -> Image.Image:
    """Turn the page upright, and write on it how it was turned."""
    (degrees,) = answer["rotation"].tolist()
    upright = picture.rotate(degrees, expand=True)
    draw, unit = _brush(upright)
    text = f"was turned by {degrees}° ({answer['probabilities'].max():.0%})"
    draw.text((4 * unit, 4 * unit), text, COLOUR, ImageFont.load_default(8 * unit))
    return upright


def _brush(picture: Image.Image) -> tuple[ImageDraw.ImageDraw, int]:
    """Return what draws on the picture, and a line's width in pixels that suits its size."""
    return ImageDraw.Draw(picture), max(2, min(picture.size) // 200)


MODELS: dict[str, Callable[[Image.Image, Answer], Image.Image]] = {
    "faces": draw_faces,
    "orientation": draw_orientation,
}


def main() -> None:
    """Ask and draw what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("picture", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("answer.png"))
    parser.add_argument(
        "--url", default="localhost:8080", help="the server's REST port (default: %(default)s)"
    )
    arguments = parser.parse_args()
    with Image.open(arguments.picture) as file:
        picture = file.convert("RGB")
    answer = ask(arguments.url, arguments.model, picture)
    for name, values in answer.items():
        print(f"{name}  {values.shape}\n{values}")
    MODELS[arguments.model](picture, answer).save(arguments.output)
    print(f"drawn on {arguments.output}")


if __name__ == "__main__":
    main()
