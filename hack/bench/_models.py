"""The models that the benchmarks serve: made by the tests' builders, converted once a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from kserve_wasm.convert import Conversion, convert

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.backends import models


def mean() -> onnx.ModelProto:
    """FP32 ``x`` [batch, n] → ``y`` [batch, 1], the mean: next to no work for many bytes."""
    node = onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[1])
    return models.model([node], {"x": ("FP32", ["batch", "n"])}, {"y": ("FP32", ["batch", 1])})


BATCHABLE: dict[str, Callable[[], onnx.ModelProto]] = {
    "wide": lambda: models.dense((1024, 2048, 2048, 2048, 1000)),
    "deep": lambda: models.dense([64] * 101),
    "gru": models.gru,
    "encoder": models.encoder,
    "mobilenet": models.mobilenet,
    "mlp": models.mlp,
}
"""``x`` [batch, …] → ``y`` [batch, …]: bound by memory, by cost per node, by steps, twice by arithmetic, by nothing."""

MAKERS = {
    **BATCHABLE,
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


def configured(model_dir: Path, name: str, model_yaml: str) -> Path:
    """A model directory beside that one: the same ``.wasm``, with this ``model.yaml``."""
    other = model_dir.parent / name
    other.mkdir()
    os.link(model_dir / "model.wasm", other / "model.wasm")
    (other / "model.yaml").write_text(model_yaml)
    return other


def session(onnx_file: Path, threads: int) -> ort.InferenceSession:
    """ONNX Runtime as this project opens it: its threads do not spin while they wait."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(onnx_file, options)


def rows(direct: ort.InferenceSession, count: int) -> npt.NDArray[Any]:
    """Random values for ``x``, ``count`` of them along the batch dimension."""
    (x,) = direct.get_inputs()
    shape = [count, *x.shape[1:]]
    rng = np.random.default_rng(0)
    if x.type == "tensor(int64)":
        return rng.integers(0, 100, shape)
    return rng.standard_normal(shape, dtype=np.float32)
