"""An opened PyTorch graph: tensors in, tensors out, on the caller's thread."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kserve_wasm.backends.base import Device
from kserve_wasm.backends.inputs import failed, wrong_names
from kserve_wasm.backends.torch.errors import plain
from kserve_wasm.backends.torch.exchange import TORCH_DTYPES, as_tensor, from_torch, memory, to_torch
from kserve_wasm.backends.torch.program import Program, Stopped
from kserve_wasm.errors import BackendError, DeadlineExceeded, ModelNotReady
from kserve_wasm.tensors import Tensor
from kserve_wasm.tensors.devices import Accelerator


class TorchGraph:
    """A program in PyTorch; implements :class:`~kserve_wasm.backends.base.Graph`.

    Any number of threads may run it at once. Input memory is used in place, on the host unless it is misaligned for its
    type; outputs are PyTorch's own memory, where the graph runs, freed with the tensors.
    """

    def __init__(self, name: str, program: Program, accelerator: Accelerator | None, threads: int) -> None:
        """Wraps ``program``.

        Args:
            name: the graph's name.
            program: what to run.
            accelerator: where it runs; None for the CPU.
            threads: how many one operator may use.
        """
        self.name = name
        self.device: Device = "cpu" if accelerator is None else "gpu"
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._program: Program | None = program
        self.accelerator = accelerator
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
                return self._run(program, tensors, deadline)
        except Stopped as stopped:
            raise DeadlineExceeded(
                f"graph '{self.name}': stopped, the deadline passed during the run"
            ) from stopped
        except Exception as error:
            raise BackendError(failed(self.name, plain(error), self.inputs, inputs)) from error

    def close(self) -> None:
        """Refuses further runs; the memory is freed when the last running one ends."""
        self._program = None

    def _run(self, program: Program, tensors: list[Tensor], deadline: float) -> dict[str, Tensor]:
        accelerator, numbers = self.accelerator, program.numbers
        named = list(zip([spec.name for spec in self.inputs], tensors, strict=True))
        values = to_torch([tensor for name, tensor in named if name not in numbers], accelerator)
        arguments: list[Any] = values
        if numbers:
            rest = iter(values)
            arguments = [tensor.numpy().item() if name in numbers else next(rest) for name, tensor in named]
        try:
            results = self._results(program.call(arguments, deadline), {memory(value) for value in values})
        finally:
            # Until then what CUDA's stream has to do may read the inputs, whose memory goes to others once they are
            # dropped, and write the outputs.
            if accelerator is not None and torch.cuda.is_initialized():
                torch.cuda.current_stream(accelerator.runtime.index).synchronize()
        return {
            spec.name: from_torch(result, accelerator)
            for spec, result in zip(self.outputs, results, strict=True)
        }

    def _checked(self, program: Program, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        if inputs.keys() != self._input_names:
            raise wrong_names(self.name, self.inputs, inputs)
        tensors = []
        for spec in self.inputs:
            tensor = inputs[spec.name]
            spec.check(tensor)
            tensors.append(tensor)
        program.check(tensors)
        return tensors

    def _results(self, results: Sequence[Any], taken: set[int]) -> list[torch.Tensor]:
        """The outputs as they go out; ``taken`` is the memory of the inputs."""
        if len(results) != len(self.outputs):
            raise BackendError(f"it gave {len(results)} outputs instead of {len(self.outputs)}")
        settled = []
        for spec, result in zip(self.outputs, results, strict=True):
            value = as_tensor(result)
            if value is None or TORCH_DTYPES.get(value.dtype) is not spec.dtype:
                came = type(result).__name__ if value is None else str(value.dtype)
                raise BackendError(f"output '{spec.name}' is {came} instead of {spec.dtype}")
            # The request's memory is not the answer's: it may change, or go, before the answer is read.
            value = value.clone() if memory(value) in taken else value
            settled.append(value.detach().resolve_conj().resolve_neg().contiguous())
        return settled
