"""No batching: each computation runs at once, on its caller's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from kserve_wasm.backends.base import Graph
from kserve_wasm.batching.base import BlockingScheduler, Caller
from kserve_wasm.errors import ModelNotReady
from kserve_wasm.tensors import Tensor


class DirectScheduler(BlockingScheduler):
    """Runs a graph as soon as it is asked to; implements :class:`~kserve_wasm.batching.base.GraphScheduler`.

    Args:
        graph: the graph; it belongs to the scheduler, which closes it.
        observe: told the seconds of every computation, failed ones included; called on the computing thread.
    """

    def __init__(self, graph: Graph, observe: Callable[[float], None] | None = None) -> None:
        self._graph = graph
        self._observe = observe
        self._running = 0
        self._closed = False
        self._changed = threading.Condition()  # held to count, never while the graph runs

    @property
    def graph(self) -> Graph:
        """The graph it runs."""
        return self._graph

    @property
    def ready(self) -> bool:
        """The graph is here."""
        return True

    @property
    def concurrency(self) -> int:
        """One for each CPU."""
        return 0

    def compute(self, inputs: Mapping[str, Tensor], caller: Caller) -> Mapping[str, Tensor]:
        """Runs the graph on ``inputs``; see :class:`~kserve_wasm.batching.base.GraphScheduler`.

        Raises:
            ModelNotReady: the scheduler is closed.
        """
        caller.check()
        with self._changed:
            if self._closed:
                raise ModelNotReady(f"graph '{self._graph.name}' is closed")
            self._running += 1
        try:
            start = time.perf_counter()
            try:
                return self._graph.run(inputs, caller.deadline)
            finally:
                if self._observe is not None:
                    self._observe(time.perf_counter() - start)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @property
    def merging_pays(self) -> bool:
        """No."""
        return False

    def close(self) -> None:
        """Refuses further work, waits for what runs, and closes the graph. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._running)
        self._graph.close()
