"""ONNX models to convert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

Shape = Sequence[int | str | None] | None


def value(name: str, dtype: int, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, np.ndarray[Any, Any]] | Sequence[onnx.TensorProto] = (),
    external: bool = False,
) -> Path:
    """Writes a model; ``external`` puts its weights into ``weights.bin`` beside it."""
    tensors = weights
    if isinstance(weights, Mapping):
        tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


def matmul(path: Path, rows: int = 64, columns: int = 512, external: bool = False) -> Path:
    """FP32 ["batch", rows] → "y" ["batch", columns], and "z", its relu."""
    weights = np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)
    return save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        [value("x", T.FLOAT, ["batch", rows])],
        [value("y", T.FLOAT, ["batch", columns]), value("z", T.FLOAT, None)],
        {"w": weights},
        external,
    )


def random_normal(path: Path) -> Path:
    """A model whose answer hangs on what it was asked before: INT64 "ids" below 3, plus noise.

    ONNX Runtime seeds every session alike, so only further runs move the noise on: here those of guesses at "ids" that
    the table refuses, after the noise is drawn.
    """
    return save(
        path,
        [
            helper.make_node("RandomNormalLike", ["ids"], ["noise"], dtype=T.FLOAT),
            helper.make_node("Mul", ["noise", "zero"], ["zeros"]),
            helper.make_node("Cast", ["zeros"], ["whole"], to=T.INT64),
            helper.make_node("Add", ["ids", "whole"], ["late"]),
            helper.make_node("Gather", ["table", "late"], ["rows"]),
            helper.make_node("Add", ["rows", "noise"], ["y"]),
        ],
        [value("ids", T.INT64, ["n"])],
        [value("y", T.FLOAT, ["n"])],
        {"table": np.float32([1, 2, 3]), "zero": np.float32([0])},
    )
