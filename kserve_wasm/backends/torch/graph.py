"""An opened PyTorch graph: tensors in, tensors out, on the caller's thread."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from kserve_wasm.backends.base import Device
from kserve_wasm.backends.torch.errors import plain
from kserve_wasm.backends.torch.exchange import TORCH_DTYPES, as_tensor, from_torch, memory, to_torch
from kserve_wasm.backends.torch.program import Program, Stopped
from kserve_wasm.errors import BackendError, DeadlineExceeded, InvalidRequest, ModelNotReady
from kserve_wasm.tensors import Tensor


class TorchGraph:
    """A program in PyTorch; implements :class:`~kserve_wasm.backends.base.Graph`.

    Any number of threads may run it at once. Input memory is used in place unless it is misaligned for its type;
    outputs are PyTorch's own memory, freed with the tensors.
    """

    def __init__(self, name: str, program: Program, device: torch.device, threads: int) -> None:
        """Wraps ``program``, whose weights are on ``device``; ``threads`` are those of one operator."""
        self.name = name
        self.device: Device = "cpu" if device.type == "cpu" else "gpu"
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._program: Program | None = program
        self._torch_device = device
        self._threads = threads
        self._input_names = frozenset(spec.name for spec in self.inputs)

    def run(self, inputs: Mapping[str, Tensor], deadline: float = math.inf) -> dict[str, Tensor]:
        """Runs the graph once; see :class:`~kserve_wasm.backends.base.Graph`.

        The deadline is looked at between operators, so one long operator ends before it is seen.
        """
        program = self._program
        if program is None:
            raise ModelNotReady(f"graph '{self.name}' is closed")
        tensors = self._checked(program, inputs)
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"graph '{self.name}': the deadline passed before the run")
        if torch.get_num_threads() != self._threads:  # of this thread
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                values = [to_torch(tensor, self._torch_device) for tensor in tensors]
                taken = {memory(value) for value in values}
                arguments: list[Any] = values
                if program.numbers:
                    arguments = [
                        value.item() if spec.name in program.numbers else value
                        for spec, value in zip(self.inputs, values, strict=True)
                    ]
                results = program.call(arguments, deadline)
                return self._answers(results, taken)
        except Stopped as stopped:
            raise DeadlineExceeded(
                f"graph '{self.name}': stopped, the deadline passed during the run"
            ) from stopped
        except Exception as error:
            got = ", ".join(f"{name} {t.dtype} {list(t.shape)}" for name, t in inputs.items())
            takes = ", ".join(f"{s.name} {s.dtype} {s.v2_shape}" for s in self.inputs)
            raise BackendError(
                f"graph '{self.name}' failed: {plain(error)} (it takes {takes}; got {got})"
            ) from error

    def close(self) -> None:
        """Refuses further runs; the memory is freed when the last running one ends."""
        self._program = None

    def _checked(self, program: Program, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        if inputs.keys() != self._input_names:
            wrong = [f"'{name}' is missing" for name in sorted(self._input_names - inputs.keys())]
            wrong += [f"'{name}' is unknown" for name in sorted(inputs.keys() - self._input_names)]
            known = ", ".join(f"'{spec.name}'" for spec in self.inputs) or "none"
            raise InvalidRequest(f"graph '{self.name}': input {', '.join(wrong)}; its inputs are {known}")
        tensors = []
        for spec in self.inputs:
            tensor = inputs[spec.name]
            spec.check(tensor)
            tensors.append(tensor)
        program.check(tensors)
        return tensors

    def _answers(self, results: Any, taken: set[int]) -> dict[str, Tensor]:
        if len(results) != len(self.outputs):
            raise BackendError(f"it gave {len(results)} outputs instead of {len(self.outputs)}")
        answers = {}
        for spec, result in zip(self.outputs, results, strict=True):
            value = as_tensor(result)
            if value is None or TORCH_DTYPES.get(value.dtype) is not spec.dtype:
                came = type(result).__name__ if value is None else str(value.dtype)
                raise BackendError(f"output '{spec.name}' is {came} instead of {spec.dtype}")
            # The request's memory is not the answer's: it may change, or go, before the answer is read.
            answers[spec.name] = from_torch(value.clone() if memory(value) in taken else value)
        return answers
