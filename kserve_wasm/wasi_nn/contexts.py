"""What a guest opens: graphs, and execution contexts on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kserve_wasm.batching.base import GraphScheduler
from kserve_wasm.tensors import Tensor
from kserve_wasm.wasi_nn.borrowed import AnyTensor
from kserve_wasm.wasi_nn.built import BuiltGraph


class OpenGraph:
    """A graph as one instance opened it.

    Attributes:
        scheduler: what runs it.
        loaded: bytes the guest itself gave for it, 0 for a graph of the registry. A loaded graph dies with its handle.
        built: the graph's operators, if it was built of such.
        held: bytes of constants in it that count as the instance's tensors do.
    """

    __slots__ = ("_release", "built", "held", "inputs", "loaded", "outputs", "scheduler")

    def __init__(
        self,
        scheduler: GraphScheduler,
        loaded: int = 0,
        built: BuiltGraph | None = None,
        release: Callable[[BuiltGraph], None] | None = None,
        held: int = 0,
    ) -> None:
        self.scheduler = scheduler
        self.loaded = loaded
        self.built = built
        self.held = held
        self._release = release
        self.inputs = scheduler.graph.inputs
        self.outputs = scheduler.graph.outputs

    def close(self) -> None:
        """Closes the graph if it is this instance's own; gives it back if it was built."""
        if self.loaded:
            self.scheduler.close()
        elif self.built is not None and self._release is not None:
            self._release(self.built)


class ExecutionContext:
    """The inputs that a guest has set for a graph, and the outputs of its last computation.

    Attributes:
        graph: the graph.
        inputs: the tensors set so far, by name.
        copies: for inputs that ``set_input`` copied into memory of this context, that memory: set again with the same
            type and shape, it is filled anew.
        outputs: what the last ``compute`` gave; None before it and after a failed one.
        standing: the inputs that were set before the first request and are there at every request.
    """

    __slots__ = ("copies", "graph", "inputs", "outputs", "standing")

    def __init__(self, graph: OpenGraph) -> None:
        self.graph = graph
        self.inputs: dict[str, AnyTensor] = {}
        self.copies: dict[str, memoryview] = {}
        self.outputs: Mapping[str, Tensor] | None = None
        self.standing: dict[str, AnyTensor] = {}
