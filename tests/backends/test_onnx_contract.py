from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from kserve_wasm.backends import GraphSource
from kserve_wasm.tensors import DTYPES, Tensor
from tests.backends import models
from tests.backends.contract import GraphContract


def source(model: onnx.ModelProto) -> GraphSource:
    return GraphSource("g", "onnx", data=model.SerializeToString())


class TestOnnx(GraphContract):
    dtypes = tuple(DTYPES)

    def identity(self, dtype: str, rank: int) -> GraphSource:
        return source(models.identity(dtype, [f"d{i}" for i in range(rank)]))

    def add_and_subtract(self) -> GraphSource:
        return source(models.add_and_subtract())

    def mlp(self) -> GraphSource:
        return source(models.mlp())

    def count(self) -> GraphSource:
        return source(models.count())

    def failing(self) -> tuple[GraphSource, dict[str, Tensor]]:
        to = Tensor.from_numpy(np.array([7]))
        return source(models.reshape()), {"x": Tensor.from_numpy(np.zeros(3, np.float32)), "to": to}

    def damaged(self) -> GraphSource:
        return GraphSource("g", "onnx", data=models.mlp().SerializeToString()[:-9])

    def has_gpu(self) -> bool:
        return "CUDAExecutionProvider" in ort.get_available_providers() and Path("/dev/nvidiactl").exists()
