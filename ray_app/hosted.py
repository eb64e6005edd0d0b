"""One graph in an executor: who waits for it, and which of them run together."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Executor
from itertools import count

from ray import serve

from kserve_wasm.artifact.config import Batching
from kserve_wasm.backends import Graph
from kserve_wasm.backends.cpus import available_cpus
from kserve_wasm.batching.base import Outcome
from kserve_wasm.batching.gain import Gain
from kserve_wasm.batching.merge import MergingGraph
from kserve_wasm.batching.queue import BatchQueue
from kserve_wasm.batching.signature import Fit
from kserve_wasm.errors import BackendError, DeadlineExceeded, QueueFull, WasmServingError
from kserve_wasm.tensors import Tensor
from ray_app.wire import Answer, RunReport

logger = logging.getLogger(__name__)


class _Computation:
    """One that waits or runs; see :class:`~kserve_wasm.batching.queue.Waiting`.

    Attributes:
        turn: done when it is to run, or not to wait any longer.
        batch: those that run with it, itself among them; None while it waits.
    """

    __slots__ = ("batch", "deadline", "fit", "inputs", "key", "rank", "rows", "since", "turn", "until")

    def __init__(
        self, inputs: Mapping[str, Tensor], fit: Fit | None, rank: tuple[int, int], timeout: float
    ) -> None:
        self.inputs = inputs
        self.fit = fit
        self.rows = fit.rows if fit else 1
        self.key: Hashable = fit.key if fit else None
        self.rank = rank
        self.since = time.monotonic()
        self.deadline = self.until = self.since + timeout
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.batch: _Batch | None = None


class _Batch:
    """Computations that are to run together.

    Attributes:
        present: how many of them have not left.
    """

    __slots__ = ("present",)

    def __init__(self, size: int) -> None:
        self.present = size


class HostedGraph:
    """A graph, with a queue in front of it. All methods are for the event loop of one replica.

    ``@serve.batch`` puts batches together, keeps cancelled computations out of them, and feeds Ray's metrics. It forms
    them as soon as somebody comes, also while the graph is busy: under load each would hold a single one, unless all
    had to wait for a fixed time. So computations come to it only when there is a slot for a run. Until then they wait
    in a :class:`~kserve_wasm.batching.queue.BatchQueue`, which knows priorities, preferred sizes and shapes.

    Args:
        graph: the graph; it belongs to this object, which closes it.
        batching: how to merge.
        threads: run the graph.

    Raises:
        ModelLoadError: the configuration asks for what the graph does not offer.
    """

    def __init__(self, graph: Graph, batching: Batching, threads: Executor) -> None:
        self.graph = graph
        self._batching = batching
        self._merging = MergingGraph(graph, batching)
        self._threads = threads
        self._gain = Gain(batching.max_batch_size if self._merging.merges else 1, adaptive=batching.adaptive)
        self._slots = batching.max_concurrent_batches or (2 if graph.device == "gpu" else available_cpus())
        self._queue: BatchQueue[_Computation] = BatchQueue(batching)
        self._running = 0
        self._arrivals = count()
        self._alarm: asyncio.TimerHandle | None = None
        self._together = serve.batch(
            max_batch_size=batching.max_batch_size,
            batch_wait_timeout_s=0.0,
            max_concurrent_batches=self._slots,
            batch_size_fn=_rows,
        )(self._run_batch)

    @property
    def idle(self) -> bool:
        """Whether nobody runs or waits."""
        return not self._running and not self._queue.waiting

    async def compute(self, inputs: Mapping[str, Tensor], timeout: float, priority: int) -> Answer:
        """Runs the graph on ``inputs``, with others where they fit together.

        Args:
            inputs: the tensors by name.
            timeout: seconds after which the answer is of no use.
            priority: as :attr:`kserve_wasm.batching.Caller.priority`.

        Raises:
            QueueFull: too many wait already.
            DeadlineExceeded: it waited too long.
        """
        computation = self._enter(inputs, timeout, priority)
        try:
            await self._turn(computation)
            answer: Answer = await self._together(computation)
            return answer
        finally:
            self._leave(computation)

    def _enter(self, inputs: Mapping[str, Tensor], timeout: float, priority: int) -> _Computation:
        batching = self._batching
        waiting = len(self._queue.waiting)
        if waiting >= batching.max_queue_size > 0 and self._running >= self._slots:
            raise QueueFull(
                f"{waiting} computations wait for graph '{self.graph.name}' already: try again, or raise "
                "batching.max_queue_size"
            )
        rank = 0
        if batching.priority_levels:
            rank = priority or batching.default_priority_level
        fit = self._merging.fit(inputs)
        computation = _Computation(inputs, fit, (rank, next(self._arrivals)), timeout)
        if batching.queue_timeout:
            computation.until = min(computation.until, computation.since + batching.queue_timeout)
        if self._running < self._slots and not self._queue.waiting:
            self._admit([computation])  # one that finds the graph idle waits for nobody
        else:
            self._queue.add(computation)
            self._start_batches()
        return computation

    async def _turn(self, computation: _Computation) -> None:
        """Waits until ``computation`` is to run."""
        if computation.batch is not None:
            return
        timer = None
        if computation.until < math.inf:
            patience = computation.until - time.monotonic()
            timer = asyncio.get_running_loop().call_later(patience, self._expire, computation)
        try:
            await computation.turn
        finally:
            if timer is not None:
                timer.cancel()

    def _expire(self, computation: _Computation) -> None:
        if computation.batch is None and not computation.turn.done():
            self._queue.remove(computation)
            computation.turn.set_exception(
                DeadlineExceeded(
                    f"graph '{self.graph.name}': the deadline passed while the computation waited for its turn"
                )
            )

    def _leave(self, computation: _Computation) -> None:
        """Takes ``computation`` out, however it ended; the last of a batch gives its slot to the next."""
        batch = computation.batch
        if batch is None:
            if computation.turn.cancelled():
                self._queue.remove(computation)
            return
        batch.present -= 1
        if not batch.present:
            self._running -= 1
            self._start_batches()

    def _start_batches(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._queue.waiting and self._running < self._slots:
            now = time.monotonic()
            computations = self._queue.take(now, self._gain.limit)
            if not computations:
                self._set_alarm(now)
                return
            self._admit(computations)

    def _set_alarm(self, now: float) -> None:
        """Looks again when one of those that wait for others has waited long enough."""
        delay = self._batching.max_queue_delay
        waits = [ripe for c in self._queue.waiting if (ripe := c.since + delay - now) > 0]
        if waits:
            self._alarm = asyncio.get_running_loop().call_later(min(waits), self._start_batches)

    def _admit(self, computations: Sequence[_Computation]) -> None:
        self._running += 1
        batch = _Batch(len(computations))
        for computation in computations:
            computation.batch = batch
            if not computation.turn.done():  # cancelled, but its task has not noticed yet
                computation.turn.set_result(None)

    async def _run_batch(self, computations: list[_Computation]) -> list[Answer]:
        """What ``@serve.batch`` calls: with those of one batch, or of several that began at the same moment."""
        batches: dict[int, list[_Computation]] = {}
        for computation in computations:
            batches.setdefault(id(computation.batch), []).append(computation)
        loop = asyncio.get_running_loop()
        runs = [loop.run_in_executor(self._threads, self._run, batch) for batch in batches.values()]
        answers: dict[int, Answer] = {}
        for batch, run in zip(batches.values(), await asyncio.gather(*runs), strict=True):
            answers.update(zip(map(id, batch), run, strict=True))
        return [answers[id(computation)] for computation in computations]

    def _run(self, batch: list[_Computation]) -> list[Answer]:
        """On a thread. Never raises."""
        now = time.monotonic()
        queued = tuple(int((now - computation.since) * 1e9) for computation in batch)
        # Others may leave before; each has its own deadline where it waits for the answer.
        deadline = max(computation.deadline for computation in batch)
        began = time.perf_counter_ns()
        times = (0, 0, 0)
        outcomes: Sequence[Outcome]
        try:
            if len(batch) == 1:
                outcomes = [self.graph.run(batch[0].inputs, deadline)]
                times = (0, time.perf_counter_ns() - began, 0)
            else:
                fits = [computation.fit for computation in batch if computation.fit is not None]
                run = self._merging.run_all([computation.inputs for computation in batch], fits, deadline)
                outcomes = run.outcomes
                times = (run.input_ns, run.infer_ns, run.output_ns)
        except WasmServingError as error:
            outcomes = [error.with_traceback(None) for _ in batch]
        except Exception:
            logger.exception("a run of graph '%s' failed", self.graph.name)
            failure = BackendError(f"graph '{self.graph.name}' failed; the executor's log says more")
            outcomes = [failure for _ in batch]
        answers = [Answer(outcome, ns) for outcome, ns in zip(outcomes, queued, strict=True)]
        if not isinstance(outcomes[0], WasmServingError):
            rows = sum(c.rows for c in batch) if len(batch) > 1 else self._merging.rows(batch[0].inputs)
            self._gain.ran(rows, sum(times) * 1e-9)
            answers[0] = Answer(outcomes[0], queued[0], RunReport(rows, queued, *times))
        return answers


def _rows(computations: Sequence[_Computation]) -> int:
    # What runs alone counts as one: serve.batch refuses a single request above the largest batch.
    return sum(computation.rows for computation in computations)
