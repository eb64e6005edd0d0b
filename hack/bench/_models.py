"""The models that the benchmarks serve: made by the tests' builders, converted once a run."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx

from kserve_wasm.convert import Conversion, convert

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.backends import models


def mean() -> onnx.ModelProto:
    """FP32 ``x`` [batch, n] → ``y`` [batch, 1], the mean: next to no work for many bytes."""
    node = onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[1])
    return models.model([node], {"x": ("FP32", ["batch", "n"])}, {"y": ("FP32", ["batch", 1])})


MAKERS = {
    "mlp": models.mlp,
    "cnn": models.cnn,
    "identity": lambda: models.identity("FP32", ["b", "n"]),
    "mean": mean,
}


def make(name: str, directory: Path) -> tuple[Path, Path]:
    """The model as ONNX, and as a model directory of this project."""
    onnx_file, model_dir = directory / f"{name}.onnx", directory / name
    onnx.save(MAKERS[name](), onnx_file)
    model_dir.mkdir()
    convert(Conversion(onnx_file, model_dir / "model.wasm"))
    return onnx_file, model_dir
