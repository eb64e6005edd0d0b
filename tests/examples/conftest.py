"""The magika example's scripts, and the package itself as its oracle."""

from __future__ import annotations

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest

from tests.examples.magika import MAGIKA


def script(name: str) -> ModuleType:
    spec = spec_from_file_location(f"magika_{name}", MAGIKA / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def build() -> ModuleType:
    """The module examples/magika/build.py."""
    return script("build")


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    """The module examples/magika/samples.py."""
    return script("samples")


@pytest.fixture(scope="session")
def oracle(build: ModuleType) -> ModuleType:
    """The package ``magika``, as its users import it."""
    sys.path.insert(0, str(build.package()))
    try:
        return importlib.import_module("magika")
    finally:
        sys.path.pop(0)
