"""Graphs that guests have built of operators: each opened once, and shared by all instances of a model."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from kserve_wasm.batching.base import GraphScheduler
from kserve_wasm.errors import InvalidRequest, ModelNotReady, QueueFull
from kserve_wasm.tensors import Tensor
from kserve_wasm.webnn import OperatorError, Program, Recordings

MAX_KEPT = 64
"""Graphs that stay open for the next instance that builds them, of one model."""
MAX_KEPT_BYTES = 256 << 20
"""Bytes of constants in them."""
MAX_NAMED = 64
"""Graphs that are kept under names, of one model."""
MAX_OPEN = 256
"""Graphs of one model that are open at once: each takes some hundred KiB."""


class BuiltGraph:
    """A graph that is used until :meth:`BuiltGraphs.release`.

    Attributes:
        program: what it computes.
        scheduler: what runs it.
    """

    __slots__ = ("_lock", "_open", "program", "scheduler", "users")

    def __init__(self, program: Program, open_program: Callable[[Program], GraphScheduler]) -> None:
        self.program = program
        self.scheduler: GraphScheduler | None = None
        self.users = 0
        self._open = open_program
        self._lock = threading.Lock()

    def open(self) -> GraphScheduler:
        """What runs it; opens the graph at the first call. Raises OperatorError, WasmServingError."""
        with self._lock:
            if self.scheduler is None:
                self.scheduler = self._open(self.program)
            return self.scheduler

    def check(self, inputs: Mapping[str, Tensor]) -> None:
        """Raises InvalidRequest unless operators take the inputs' sizes."""
        try:
            self.program.check(tuple([inputs[given.name].shape for given in self.program.inputs]))
        except OperatorError as error:
            raise InvalidRequest(str(error)) from None


class BuiltGraphs:
    """The graphs that the guests of one model have built. Thread-safe.

    Args:
        open_program: opens one. Raises OperatorError where it is too large, and WasmServingError.

    Attributes:
        recordings: what they have built, step by step.
    """

    def __init__(self, open_program: Callable[[Program], GraphScheduler]) -> None:
        self.recordings = Recordings()
        self._open = open_program
        self._graphs: OrderedDict[Program, BuiltGraph] = OrderedDict()
        self._used: set[BuiltGraph] = set()
        self._named: dict[str, BuiltGraph] = {}
        self._lock = threading.Lock()
        self._closed = False

    def use(self, program: Program) -> tuple[BuiltGraph, GraphScheduler]:
        """The graph, open, and what runs it; to be given back with :meth:`release`.

        Raises:
            ModelNotReady: the model is closed.
            QueueFull: there are too many graphs open.
            OperatorError: the graph is too large.
            WasmServingError: the graph cannot be opened.
        """
        with self._lock:
            if self._closed:
                raise ModelNotReady("the model is closed")
            graph = self._graphs.get(program)
            if graph is None:
                if len(self._used) >= MAX_OPEN:
                    raise QueueFull(f"{MAX_OPEN} graphs that guests have built are in use: try again")
                graph = self._graphs[program] = BuiltGraph(program, self._open)
            self._graphs.move_to_end(program)
            graph.users += 1
            self._used.add(graph)
        try:
            return graph, graph.open()
        except BaseException:
            with self._lock:
                if self._graphs.get(program) is graph:
                    del self._graphs[program]
            self.release(graph)
            raise

    def release(self, graph: BuiltGraph) -> None:
        """Ends one use; graphs that nobody uses are closed beyond the number that is kept."""
        closed: list[BuiltGraph] = []
        with self._lock:
            graph.users -= 1
            if not graph.users:
                self._used.discard(graph)
                if self._graphs.get(graph.program) is not graph:
                    closed.append(graph)
            idle = [g for g in self._graphs.values() if not g.users]
            size = sum(g.program.constant_bytes for g in idle)
            while len(idle) > MAX_KEPT or (idle and size > MAX_KEPT_BYTES):
                oldest = idle.pop(0)
                size -= oldest.program.constant_bytes
                del self._graphs[oldest.program]
                closed.append(oldest)
        for one in closed:
            if one.scheduler is not None:
                one.scheduler.close()

    def keep(self, name: str, graph: BuiltGraph) -> bool:
        """Keeps a graph that is in use open under a name, unless there is one; False where there are too many."""
        with self._lock:
            if name not in self._named:
                if self._closed or len(self._named) >= MAX_NAMED:
                    return False
                self._named[name] = graph
                graph.users += 1
            return True

    def named(self, name: str) -> tuple[BuiltGraph, GraphScheduler] | None:
        """The graph that is kept under this name, to be given back with :meth:`release`."""
        with self._lock:
            graph = self._named.get(name)
            if graph is None:
                return None
            graph.users += 1
        return graph, graph.open()

    def close(self) -> None:
        """Closes the graphs that nobody uses; the others are closed when they are released."""
        with self._lock:
            self._closed = True
            named = list(self._named.values())
            self._named.clear()
        for graph in named:
            self.release(graph)
        with self._lock:
            idle = [g for g in self._graphs.values() if not g.users]
            self._graphs.clear()
        for graph in idle:
            if graph.scheduler is not None:
                graph.scheduler.close()
