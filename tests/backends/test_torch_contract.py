from __future__ import annotations

import functools
from importlib.util import find_spec

from kserve_wasm.backends import GraphSource
from kserve_wasm.tensors import Tensor
from tests.backends.contract import GraphContract
from tests.support import require

require(find_spec("torch"), "torch is not installed: pip install torch")

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.backends import torch_models as models  # noqa: E402
from tests.backends.torch_models import spec  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def source(data: bytes, **options: object) -> GraphSource:
    return GraphSource("g", "pytorch", data=data, options=options)


class TorchContract(GraphContract):
    dtypes = tuple(models.TORCH)

    def failing(self) -> tuple[GraphSource, dict[str, Tensor]]:
        return self.gather(), {name: Tensor.from_numpy(array) for name, array in models.GATHER.items()}

    def gather(self) -> GraphSource:
        raise NotImplementedError

    def damaged(self) -> GraphSource:
        mlp = self.mlp()
        assert mlp.data is not None
        return GraphSource("g", "pytorch", data=mlp.data[:-9], options=mlp.options)

    def has_gpu(self) -> bool:
        return torch.cuda.is_available()


@functools.cache
def exported_identity(dtype: str, rank: int) -> bytes:
    return models.exported(models.Identity(), models.example(models.TORCH[dtype], rank))


class TestExported(TorchContract):
    def identity(self, dtype: str, rank: int) -> GraphSource:
        return source(exported_identity(dtype, rank))

    def add_and_subtract(self) -> GraphSource:
        n = torch.export.Dim("n")
        examples = torch.zeros(2, 3), torch.zeros(2, 3)  # of one tensor, torch.export would make one input
        return source(models.exported(models.AddAndSubtract(), *examples, dynamic=[{0: n}, {0: n}]))

    def mlp(self) -> GraphSource:
        batch = {0: torch.export.Dim("batch")}
        return source(models.exported(models.Mlp(), torch.zeros(2, 4), dynamic=[batch]))

    def count(self) -> GraphSource:
        return source(models.exported(models.ExportedCount(), torch.tensor(3)))

    def gather(self) -> GraphSource:
        return source(models.exported(models.Pick(), torch.zeros(3), torch.zeros(2, dtype=torch.int64)))


class TestScripted(TorchContract):
    def identity(self, dtype: str, rank: int) -> GraphSource:
        shape = [f"d{i}" for i in range(rank)]
        names = {"inputs": [spec("x", dtype, *shape)], "outputs": [spec("y", dtype, *shape)]}
        return source(models.scripted(models.Identity()), **names)

    def add_and_subtract(self) -> GraphSource:
        return source(
            models.scripted(models.AddAndSubtract()),
            inputs=[spec(name, "FP32", "n", 3) for name in ("a", "b")],
            outputs=[spec(name, "FP32", "n", 3) for name in ("sum", "difference")],
        )

    def mlp(self) -> GraphSource:
        data = models.scripted(models.Mlp())
        return source(data, inputs=[spec("x", "FP32", "batch", 4)], outputs=[spec("y", "FP32", "batch", 3)])

    def count(self) -> GraphSource:
        data = models.scripted(models.ScriptedCount())
        return source(data, inputs=[spec("n", "INT64")], outputs=[spec("y", "INT64", 1)])

    def gather(self) -> GraphSource:
        data = models.scripted(models.Pick())
        return source(
            data,
            inputs=[spec("x", "FP32", -1), spec("at", "INT64", -1)],
            outputs=[spec("y", "FP32", -1)],
        )
