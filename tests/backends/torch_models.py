"""PyTorch modules for tests, the same as those of :mod:`tests.backends.models`, and their two formats."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

from tests.backends.models import _mlp_weights


class Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x}


class AddAndSubtract(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": a + b, "difference": a - b}


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weights = {name: torch.from_numpy(value) for name, value in _mlp_weights(0).items()}
        self.first, self.second = torch.nn.Linear(4, 16), torch.nn.Linear(16, 3)
        with torch.no_grad():
            for layer, i in ((self.first, 1), (self.second, 2)):
                layer.weight.copy_(weights[f"w{i}"].T)
                layer.bias.copy_(weights[f"b{i}"])

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.second(torch.relu_(self.first(x)))}


class ScriptedCount(torch.nn.Module):
    def forward(self, n: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.zeros(1, dtype=torch.int64)
        for _ in range(int(n)):
            y = y + 1
        return {"y": y}


class ExportedCount(torch.nn.Module):
    def forward(self, n: torch.Tensor) -> dict[str, torch.Tensor]:
        zero = torch.zeros(1, dtype=torch.int64)
        (y,) = torch._higher_order_ops.while_loop(
            lambda y: (y < n).reshape(()),
            lambda y: (y + 1,),
            (zero,),
        )
        return {"y": y}


class Pick(torch.nn.Module):
    """FP32 ``x`` [n], INT64 ``at`` [m] → ``y`` [m]; fails where one of ``at`` is beyond n."""

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": torch.gather(x, 0, at)}


def exported(module: torch.nn.Module, *examples: torch.Tensor, dynamic: Any = None, **settings: Any) -> bytes:
    """A program of ``torch.export``; without ``dynamic`` every dimension of every input is open."""
    open_sizes = [dict.fromkeys(range(e.dim()), torch.export.Dim.AUTO) for e in examples]
    program = torch.export.export(
        module.eval(), examples, dynamic_shapes=open_sizes if dynamic is None else dynamic, **settings
    )
    return saved(program)


def saved(program: torch.export.ExportedProgram) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def scripted(module: torch.nn.Module) -> bytes:
    """A TorchScript archive, compiled from the module's source: without types of tensors."""
    return archived(torch.jit.script(module.eval()))


def traced(module: torch.nn.Module, *examples: torch.Tensor) -> bytes:
    """A TorchScript archive of what the module did for ``examples``: with types of tensors."""
    return archived(torch.jit.trace(module.eval(), examples, strict=False))


def archived(module: Any) -> bytes:
    file = io.BytesIO()
    torch.jit.save(module, file)
    return file.getvalue()


def spec(name: str, datatype: str, *shape: int | str) -> dict[str, Any]:
    """An entry of the options ``inputs`` and ``outputs``."""
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def example(dtype: torch.dtype, rank: int) -> torch.Tensor:
    return torch.zeros(tuple(range(2, 2 + rank)), dtype=dtype)


TORCH = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
"""V2 datatypes → PyTorch's, after both documentations: all but BYTES."""

GATHER = {
    "x": np.zeros(3, np.float32),
    "at": np.array([7]),
}
"""Inputs for :class:`Pick` that fit its specifications but not its arithmetic."""
