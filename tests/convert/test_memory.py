"""Memory of a conversion: bytes at the peak, in a process of its own, above those of a tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper

from tests.convert import models
from tests.convert.models import value

MIB = 1 << 20
SIDE = 2048  # a weight of 16 MiB

# getrusage's ru_maxrss survives exec: it would be this process's own peak.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
"""
MEASURED = f"""{PEAK}
import sys
from kserve_wasm.cli import main
status = main(sys.argv[1:])
print(peak())
sys.exit(status)
"""
OPENED = f"""{PEAK}
import pathlib, sys
from kserve_wasm.artifact import load_model_dir
from kserve_wasm.guest import GuestModel
model = GuestModel(load_model_dir(pathlib.Path(sys.argv[1]), "m")[0])
model.load()
print(peak())
"""


def peak(code: str, *arguments: object) -> int:
    """Bytes resident at the peak."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def big(path: Path, weights: int, external: bool) -> Path:
    """A chain of products with this many weights of 16 MiB."""
    rng = np.random.default_rng(0)
    arrays = {
        f"w{i}": rng.standard_normal((SIDE, SIDE), dtype=np.float32) / SIDE**0.5 for i in range(weights)
    }
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(weights)]
    nodes.append(helper.make_node("ReduceMax", [f"x{weights}"], ["y"], keepdims=0))
    return models.save(
        path, nodes, [value("x0", T.FLOAT, ["n", SIDE])], [value("y", T.FLOAT, [])], arrays, external=external
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> int:
    folder = tmp_path_factory.mktemp("tiny")
    return peak(MEASURED, "convert", models.matmul(folder / "m.onnx"), "-o", folder / "model.wasm")


@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
@pytest.mark.parametrize("weights", [7, pytest.param(64, marks=pytest.mark.slow)], ids=["112MiB", "1GiB"])
def test_a_conversion_holds_its_weights_no_more_than_once_and_in_the_page_cache(
    weights, external, tiny, tmp_path
):
    """Each run on the model touches all of its mapped weights; anything that copied them would add as much again."""
    size = weights * SIDE * SIDE * 4
    model = big(tmp_path / "m.onnx", weights, external)
    extra = peak(MEASURED, "convert", model, "-o", tmp_path / "model.wasm") - tiny
    print(f"{size / MIB:.0f} MiB of weights: {extra / MIB:.0f} MiB above a tiny model")
    assert extra < 1.25 * size
    loaded = peak(OPENED, tmp_path / "model.wasm")
    assert loaded - tiny < 0.1 * size
