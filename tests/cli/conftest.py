"""The command line in this process, and one converted model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kserve_wasm.cli import main
from tests.convert import models


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str


@pytest.fixture
def kserve_wasm(capsys) -> Callable[..., Outcome]:
    """Runs ``kserve-wasm`` with these arguments."""

    def run(*arguments: object) -> Outcome:
        argv: Sequence[str] = [str(a) for a in arguments]
        try:
            status = main(argv)
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def onnx_model(tmp_path_factory) -> Path:
    """Takes "x" FP32 [batch, 64] and gives "y" and "z" FP32 [batch, 512]."""
    return models.matmul(tmp_path_factory.mktemp("onnx") / "mlp.onnx")


@pytest.fixture(scope="session")
def wasm_model(onnx_model, tmp_path_factory) -> Path:
    """The same, converted. Read it only."""
    path = tmp_path_factory.mktemp("wasm") / "model.wasm"
    assert main(["convert", str(onnx_model), "-o", str(path)]) == 0
    return path
