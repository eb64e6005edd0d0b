"""examples/draw.py: pictures sent to a real server, and what is drawn on them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.server.process import Server


def run(
    draw: ModuleType,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    picture: Image.Image,
    folder: Path,
) -> Image.Image:
    """What the script makes of the picture, as its users start it."""
    source, target = folder / "picture.png", folder / "answer.png"
    picture.save(source)
    url = f"127.0.0.1:{server.http_port}"
    monkeypatch.setattr(sys, "argv", ["draw.py", model, str(source), "-o", str(target), "--url", url])
    draw.main()
    return Image.open(target)


def test_a_frame_is_drawn_around_the_face_and_nothing_far_from_it(
    draw: ModuleType,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    astronaut: Image.Image,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn = run(draw, server, monkeypatch, "faces", astronaut, tmp_path)
    changed = (np.asarray(drawn) != np.asarray(astronaut)).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (np.asarray(drawn)[changed] == draw.COLOUR).all(axis=1).mean() > 0.5  # letters have soft edges
    assert 50 < rows.min() < 90 < 165 < rows.max() < 190
    assert 160 < columns.min() < 190 < 260 < columns.max() < 290
    assert "boxes  (1, 4)" in capsys.readouterr().out


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_pages_are_turned_upright(
    degrees: int,
    draw: ModuleType,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    pages: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = pages.page(600, 800)
    drawn = run(draw, server, monkeypatch, "orientation", pages.turned(page, degrees), tmp_path)
    assert drawn.size == page.size
    same = (np.asarray(drawn) == np.asarray(page)).all(axis=2)
    assert same[100:].all()  # what is written stands at the top
    assert not same[:100].all()
    assert f"rotation  (1,)\n[{degrees}]" in capsys.readouterr().out
