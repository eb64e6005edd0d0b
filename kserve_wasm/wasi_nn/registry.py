"""The graphs that the guests of one model may open by name, and those that they build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from kserve_wasm.batching.base import GraphScheduler
from kserve_wasm.wasi_nn.built import BuiltGraphs

GraphOpener: TypeAlias = Callable[[str, tuple[bytes, ...]], GraphScheduler]
"""Opens a graph from a guest's own bytes: WASI-NN's name of the encoding, then the buffers (two for OpenVINO: topology
and weights). The bytes are hostile: the opener must refuse those that refer to files of the host (ONNX external data).
What opening and running them takes of memory and threads is the framework's and in no limit. Raises
WasmServingError."""


class GraphRegistry:
    """Named graphs, opened once and shared by all instances.

    A name is only ever looked up here; it never becomes a path.

    Args:
        schedulers: the graphs by the name that ``load_by_name`` asks for. They stay the caller's to close.
        opener: opens graphs for WASI-NN ``load``; None refuses every such call.
        built: the graphs that they have built of operators; None where none can.
    """

    __slots__ = ("_schedulers", "built", "opener")

    def __init__(
        self,
        schedulers: Mapping[str, GraphScheduler],
        opener: GraphOpener | None = None,
        built: BuiltGraphs | None = None,
    ) -> None:
        self._schedulers = dict(schedulers)
        self.opener = opener
        self.built = built

    @property
    def names(self) -> tuple[str, ...]:
        """The names, for messages."""
        return tuple(self._schedulers)

    def get(self, name: str) -> GraphScheduler | None:
        """The graph of this name, or None."""
        return self._schedulers.get(name)
