"""The seam between the host and the frameworks that run graphs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kserve_wasm.tensors import Tensor, TensorSpec

if TYPE_CHECKING:
    from kserve_wasm.tensors.devices import Accelerator

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class GraphSource:
    """Where the bytes of one graph are, and how to open it.

    Either ``path`` (with ``offset`` and ``length``: a range of a ``.wasm`` file, or the whole of a side file) or
    ``data`` is set.

    Attributes:
        name: the graph's name, as ``load_by_name`` asks for it.
        encoding: WASI-NN's name of the format: ``onnx``, ``pytorch``, ``openvino``, ``tensorflowlite``, ``ggml`` …
        path: the file that holds the graph.
        offset: first byte of the graph in ``path``.
        length: bytes of the graph; None for all that follows ``offset``.
        data: the graph itself, where it is not in a file.
        weights: the file that the graph's external data lies in (its offsets count from the start of this file),
            or None when the graph is self-contained.
        options: the backend's own options, from ``model.yaml`` (threads, providers, prepacking …).
    """

    name: str
    encoding: str
    path: Path | None = None
    offset: int = 0
    length: int | None = None
    data: bytes | None = None
    weights: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Graph(Protocol):
    """An opened graph. It is shared by all instances and threads of the process.

    One whose inputs may lie in the memory of a device has an attribute ``accelerator`` besides, the device
    (:class:`~kserve_wasm.tensors.devices.Accelerator`): batches are put together there. Others need none.
    """

    @property
    def name(self) -> str:
        """The name it was opened under."""

    @property
    def device(self) -> Device:
        """The device that runs it, as it is and not as it was asked for."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The inputs, in the graph's order: WASI-NN's indices count along it."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The outputs, in the graph's order."""

    def run(self, inputs: Mapping[str, Tensor], deadline: float = math.inf) -> Mapping[str, Tensor]:
        """Runs the graph once.

        Args:
            inputs: the tensors by name.
            deadline: ``time.monotonic()`` seconds after which the run is given up.

        Returns:
            Every output by name.

        Raises:
            InvalidRequest: an input is missing, unknown, or of a type or shape that the graph does not take.
            DeadlineExceeded: the deadline passed before or during the run.
            BackendError: the framework failed; the message holds the graph's own names and shapes.
            ModelNotReady: the graph is closed.
        """

    def close(self) -> None:
        """Refuses further runs, and frees the graph when the last running one has ended. May be called again."""


def device_of(graph: Graph) -> str:
    """What runs ``graph``: a device such as ``cuda:0`` where it is known by name, or else ``cpu`` or ``gpu``."""
    accelerator: Accelerator | None = getattr(graph, "accelerator", None)
    return graph.device if accelerator is None else accelerator.name


class Backend(Protocol):
    """Opens graphs of one framework. Registered under its encoding in the entry points ``kserve_wasm.backends``."""

    def open(self, source: GraphSource, device: Device) -> Graph:
        """Opens a graph.

        Raises:
            ModelLoadError: an option is unknown or wrong.
            DeviceUnavailable: ``device`` is not there and ``source.options["fallback"]`` does not allow the CPU.
            BackendError: the framework refuses the graph.
        """
