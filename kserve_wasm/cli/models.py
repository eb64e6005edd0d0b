"""Models on the command line: as the user named them, in errors too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kserve_wasm.artifact import ModelConfig, load_model_dir
from kserve_wasm.errors import ModelLoadError, ModelNotFound


def existing(path: Path) -> Path:
    """``path``, when it may be a model.

    Raises:
        ModelNotFound: nothing is there.
        ModelLoadError: it is an ONNX file.
    """
    if not path.exists():
        raise ModelNotFound(f"'{path}' does not exist")
    if path.suffix == ".onnx":
        raise ModelLoadError(f"'{path}' is to be converted first: kserve-wasm convert {path} -o model.wasm")
    return path


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Puts ``path`` before errors of what it holds, which name no directory: a server shows them to clients."""
    try:
        yield
    except ModelLoadError as error:
        raise type(error)(f"{path}: {error}") from error


def load(path: Path, version: str | None = None) -> ModelConfig:
    """Reads the ``.wasm`` file or model directory at ``path``.

    Args:
        path: where it is.
        version: which of a directory's numbered versions; the highest when None.

    Raises:
        ModelLoadError: it is no model.
        ModelNotFound: there is no such version.
    """
    existing(path)
    with named(path):
        configs = load_model_dir(path, path.stem)
    if version is None:
        return configs[-1]
    for config in configs:
        if config.version == version:
            return config
    raise ModelNotFound(f"there is no version '{version}', only {', '.join(c.version for c in configs)}")
