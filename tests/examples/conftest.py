"""The examples' scripts, the models that they build, and the package ``magika`` itself as an oracle."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.examples.magika import MAGIKA
from tests.server.process import Server

EXAMPLES = MAGIKA.parent


def script(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def build() -> ModuleType:
    """The module examples/magika/build.py."""
    return script(MAGIKA / "build.py")


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    """The module examples/magika/samples.py."""
    return script(MAGIKA / "samples.py")


@pytest.fixture(scope="session")
def oracle(build: ModuleType) -> ModuleType:
    """The package ``magika``, as its users import it."""
    sys.path.insert(0, str(build.package()))
    try:
        return importlib.import_module("magika")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="session")
def orientation_build() -> ModuleType:
    """The module examples/orientation/build.py."""
    return script(EXAMPLES / "orientation" / "build.py")


@pytest.fixture(scope="session")
def pages() -> ModuleType:
    """The module examples/orientation/pages.py."""
    return script(EXAMPLES / "orientation" / "pages.py")


@pytest.fixture(scope="session")
def faces_build() -> ModuleType:
    """The module examples/faces/build.py."""
    return script(EXAMPLES / "faces" / "build.py")


@pytest.fixture(scope="session")
def draw() -> ModuleType:
    """The module examples/draw.py."""
    return script(EXAMPLES / "draw.py")


@pytest.fixture(scope="session")
def astronaut(faces_build: ModuleType) -> Image.Image:
    """A portrait, 512 pixels square; the face is about 90 pixels wide."""
    folder = faces_build.packages(Path(__file__).with_name("picture.txt"))
    return Image.open(folder / "skimage" / "data" / "astronaut.png").convert("RGB")


@pytest.fixture(scope="session")
def models(
    tmp_path_factory: pytest.TempPathFactory, orientation_build: ModuleType, faces_build: ModuleType
) -> Path:
    """A directory with the models ``orientation`` and ``faces``."""
    folder = tmp_path_factory.mktemp("models")
    orientation_build.build(folder / "orientation" / "model.wasm")
    faces_build.build(folder / "faces" / "model.wasm")
    return folder


@pytest.fixture(scope="session")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with both. It must end well, whatever the tests asked of it."""
    folder = tmp_path_factory.mktemp("server")
    flags = (f"--model_dir={models}", f"--cache_dir={folder / 'cache'}", "--drain_seconds=0")
    server = Server(folder / "log", *flags)
    try:
        server.wait_ready()
        yield server
        assert server.stop() == 0, server.log
        assert "Traceback" not in server.log, server.log
    finally:
        server.process.kill()
        server.wait()
