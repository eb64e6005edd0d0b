"""Pages of text, drawn with Pillow: something to ask the orientation model about."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw, ImageFont

WORDS = """
    a above and answer as at before between by chapter column each figure first for from graph has if image in is it
    large letter line margin memory method not number of on or order over page paper print request result small system
    table tensor text than that the their this to two under value was weight when which with word
"""


def page(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draw an upright page: a title, and paragraphs of chance words down to the lower margin.

    Args:
        width: in pixels.
        height: in pixels.
        seed: of the words and the paper's colour.
    """
    chance = random.Random(seed)
    image = Image.new("RGB", (width, height), chance.choice(["white", "ivory", "#f0f0f5"]))
    draw = ImageDraw.Draw(image)
    size = max(12, min(width, height) // 40)
    title, font = ImageFont.load_default(2 * size), ImageFont.load_default(size)
    margin = width // 12
    draw.text((margin, margin), " ".join(chance.sample(WORDS.split(), 2)).title(), "black", title)
    y = margin + 4 * size
    while y < height - margin - size:
        for line in _lines(chance, draw, font, width - 2 * margin):
            if y >= height - margin - size:
                break
            draw.text((margin, y), line, "#181820", font)
            y += size * 3 // 2
        y += size
    return image


def turned(image: Image.Image, degrees: int) -> Image.Image:
    """Turn a picture clockwise by a multiple of 90 degrees."""
    return image.rotate(-degrees, expand=True)


def _lines(
    chance: random.Random, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, width: int
) -> list[str]:
    """Return the lines of a paragraph, none wider than ``width`` pixels."""
    lines = [""]
    for word in chance.choices(WORDS.split(), k=chance.randint(25, 90)):
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
