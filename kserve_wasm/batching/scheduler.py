"""Batches computations that come together, on the threads that ask for them.

There is no thread of the scheduler's own, because each hand-over from one thread to another costs 20 to 100 µs: it
needs the other thread awake, and the interpreter lock. A computation that finds the graph idle runs where it was asked
for. Those that come meanwhile wait. When a run ends, the next batch is formed of them, and one of its own threads runs
it for all. So each computation is handed over once, however large its batch.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import TypeVar

from kserve_wasm.artifact.config import Batching
from kserve_wasm.backends.base import Graph
from kserve_wasm.backends.watchdog import WATCHDOG
from kserve_wasm.batching.base import Caller, Outcome, Spawn
from kserve_wasm.batching.gain import HANDOVER, Gain
from kserve_wasm.batching.merge import MergingGraph, Run
from kserve_wasm.batching.queue import BatchQueue
from kserve_wasm.batching.requests import Request, State, SubmittedRequest
from kserve_wasm.errors import (
    DeadlineExceeded,
    ModelNotReady,
    QueueFull,
    RequestCancelled,
    WasmServingError,
)
from kserve_wasm.metrics import GraphMetrics
from kserve_wasm.tensors import Tensor

logger = logging.getLogger(__name__)

_STAGING_POLL = 0.001
"""Seconds between looks at whether a request's memory has been read, when its caller wants to leave."""

_QUICK = 4 * HANDOVER
"""Runs that take fewer seconds do not wait for each other unless they are merged."""
_QUICK_SLOTS = 128
_LONG = 20 * HANDOVER
"""Seconds of a run beside which a hand-over does not count."""


_R = TypeVar("_R", bound=Request)


class BatchScheduler:
    """Merges computations on one graph; implements :class:`~kserve_wasm.batching.base.GraphScheduler`.

    Args:
        graph: the graph; it belongs to the scheduler, which closes it.
        batching: how to merge.
        slots: runs at a time.
        alone: the same while none are merged; runs of microseconds are not counted then. None: as ``slots``.
        metrics: what is counted.

    Raises:
        ModelLoadError: the configuration asks for what the graph does not offer.
    """

    def __init__(
        self, graph: Graph, batching: Batching, slots: int, metrics: GraphMetrics, alone: int | None = None
    ) -> None:
        self._graph = graph
        self._batching = batching
        self._merging = MergingGraph(graph, batching, metrics.model)
        self._metrics = metrics
        self._gain = Gain(batching.max_batch_size if self._merging.merges else 1, adaptive=batching.adaptive)
        self._merged_slots = slots
        self._alone_slots = slots if alone is None else alone
        self._queue: BatchQueue[Request] = BatchQueue(batching)
        self._running = 0
        self._closed = False
        self._warned = False
        self._arrivals = count()
        self._lock = threading.Lock()  # held to look and count, never while the graph runs
        self._idle = threading.Condition(self._lock)
        self._unwatch: Callable[[], None] | None = metrics.watch(lambda: len(self._queue.waiting))

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
        """While one full batch runs, the next is to fill up."""
        return 2 * self._batching.max_batch_size if self._merging.merges else 0

    def compute(self, inputs: Mapping[str, Tensor], caller: Caller) -> Mapping[str, Tensor]:
        """Runs the graph on ``inputs``; see :class:`~kserve_wasm.batching.base.GraphScheduler`."""
        caller.check()
        with self._lock:
            if self._closed:
                raise ModelNotReady(f"graph '{self._graph.name}' is closed")
            at_once = not caller.may_wait or (self._running < self._slots() and not self._queue.waiting)
            if at_once:
                self._running += 1
        if not at_once:
            request = self._request(Request, inputs, caller)
            self._enqueue(request)
            return self._wait(request)
        try:
            return self._run_alone(inputs, caller)
        finally:
            leader = None
            with self._lock:
                if self._queue.waiting or self._closed:
                    leader = self._hand_on()
                else:
                    self._running -= 1
            if leader is not None:
                leader.wake()

    @property
    def merging_pays(self) -> bool:
        """As past runs have shown."""
        return self._gain.limit > 1 and self._merging.merges

    def submit(
        self,
        inputs: Mapping[str, Tensor],
        caller: Caller,
        done: Callable[[Outcome], None],
        spawn: Spawn,
    ) -> None:
        """As :meth:`compute`, without blocking; see :class:`~kserve_wasm.batching.base.GraphScheduler`."""
        caller.check()
        request = self._request(SubmittedRequest, inputs, caller)
        request.done, request.scheduler, request.spawn, request.watch = done, self, spawn, None
        self._enqueue(request)
        caller.on_cancel(lambda: self._give_up(request, RequestCancelled("the client went away")))
        self._watch(request)

    def close(self) -> None:
        """Refuses further work, waits for what runs or waits, and closes the graph. May be called again."""
        with self._lock:
            self._closed = True
            leaders = list(iter(self._claim, None))  # nobody is to wait for others any more
        for leader in leaders:
            leader.wake()
        with self._idle:
            self._idle.wait_for(lambda: not self._running and not self._queue.waiting)
            unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:
            unwatch()
        self._graph.close()

    # --- Waiting

    def _request(self, kind: type[_R], inputs: Mapping[str, Tensor], caller: Caller) -> _R:
        batching = self._batching
        until = caller.deadline
        if batching.queue_timeout:
            until = min(until, time.monotonic() + batching.queue_timeout)
        priority = (caller.priority or batching.default_priority_level) if batching.priority_levels else 0
        request = kind(inputs, caller, self._merging.fit(inputs), (priority, next(self._arrivals)), until)
        request.ripe = not batching.max_queue_delay
        return request

    def _enqueue(self, request: Request) -> None:
        with self._lock:
            if self._closed:
                raise ModelNotReady(f"graph '{self._graph.name}' is closed")
            waiting = len(self._queue.waiting)
            if waiting >= self._batching.max_queue_size > 0:
                self._metrics.rejected("queue_full")
                raise QueueFull(
                    f"{waiting} computations wait for graph '{self._graph.name}' already: try again, or raise "
                    "batching.max_queue_size"
                )
            idle = self._running < self._slots() and not self._queue.waiting
            self._queue.add(request)
            leader = self._claim(ripe=idle)
            request.at_once = leader is request
        if leader is not None:
            leader.wake()

    def _watch(self, request: SubmittedRequest) -> None:
        """Has its times seen to, as a thread that waits does for itself."""
        wake = self._next_time(request)
        if wake < math.inf and not request.told():
            former = request.watch
            watch = request.watch = WATCHDOG.watch(wake, lambda: self._at_time(request))
            if former is not None:
                WATCHDOG.forget(former)
            if request.told():  # meanwhile, and nobody is to hold it any longer
                WATCHDOG.forget(watch)
                request.caller.on_cancel(None)

    def _wait(self, request: Request) -> Mapping[str, Tensor]:
        """Waits for the outcome of ``request``, and runs a batch when it is this thread's turn to."""
        caller = request.caller
        caller.on_cancel(lambda: self._give_up(request, RequestCancelled("the client went away")))
        try:
            while request.state is not State.DONE:
                patience = min(max(0.0, self._next_time(request) - time.monotonic()), threading.TIMEOUT_MAX)
                if not request.turn.acquire(timeout=patience):
                    # Even when it is to lead now: who says so releases its turn, which must not stay released.
                    self._at_time(request)
                    continue
                batch, request.batch = request.batch, None
                if batch is not None:
                    self.lead(request, batch)
        finally:
            caller.on_cancel(None)
        while not request.memory_free:  # it is read at this moment
            time.sleep(_STAGING_POLL)
        outcome, request.outcome = request.outcome, None
        assert outcome is not None
        if isinstance(outcome, Exception):
            try:
                raise outcome
            finally:
                del outcome  # its traceback holds this frame: a cycle would keep the tensors
        return outcome

    def _next_time(self, request: Request) -> float:
        """``time.monotonic()`` seconds at which a request that waits has to be seen to."""
        if request.state is not State.QUEUED:
            return request.caller.deadline
        if request.ripe:
            return request.until
        return min(request.until, request.since + self._batching.max_queue_delay)

    def _at_time(self, request: Request) -> None:
        """A time that concerns ``request`` has come: it has waited long enough, or too long."""
        now = time.monotonic()
        queued = request.state is State.QUEUED
        if now >= (request.until if queued else request.caller.deadline):
            when = "during the run"
            if queued:
                when = "while the computation waited for its turn"
                if now < request.caller.deadline:
                    when += " (batching.queue_timeout)"
            self._give_up(request, self._too_late(when))
            return
        request.ripe |= now >= request.since + self._batching.max_queue_delay
        with self._lock:
            leader = self._claim()
        if leader is not None:
            leader.wake()
        if isinstance(request, SubmittedRequest):
            self._watch(request)

    def _too_late(self, when: str) -> DeadlineExceeded:
        return DeadlineExceeded(f"graph '{self._graph.name}': the deadline passed {when}")

    def _give_up(self, request: Request, error: WasmServingError) -> None:
        """Ends ``request`` with ``error``, unless its thread runs a batch for others, or its outcome is there."""
        with self._lock:
            if request.state is State.QUEUED:
                self._queue.remove(request)
                if self._closed:
                    self._idle.notify_all()
                self._metrics.rejected("cancelled" if isinstance(error, RequestCancelled) else "timeout")
            elif request.state is not State.RIDING:
                return
            request.outcome = error  # before its thread, which may be awake, sees that it is there
            request.state = State.DONE
        request.wake()

    # --- Running

    def _slots(self) -> int:
        """Runs at a time, now."""
        if self.merging_pays:
            if self._gain.alone >= _LONG:
                return self._merged_slots
            # The time between two runs counts where they are short: it takes further runs to fill it.
            return max(self._merged_slots, self._alone_slots // 2)
        # Without a batch to fill, waiting only costs; but large graphs' memory is not for any number of runs.
        return _QUICK_SLOTS if 0 < self._gain.alone < _QUICK else self._alone_slots

    def _claim(self, *, ripe: bool = False) -> Request | None:
        """Takes a free slot for those that wait, if they need not wait for others; returns who is to be woken.

        The lock is held. While a slot is free, those that wait need to: so one claim is enough for one arrival.
        """
        leader = self._next_leader(ripe=ripe) if self._running < self._slots() else None
        if leader is not None:
            self._running += 1
        return leader

    def _next_leader(self, *, ripe: bool = False) -> Request | None:
        """Forms the next batch, and returns the request whose thread is to run it; None when nobody's is, yet.

        The latest deadline leads: the run may take until then, and the others may leave before.

        Args:
            ripe: nobody is to wait for others.
        """
        if not self._queue.waiting:
            return None
        limit = self._gain.limit if self._merging.merges else 1
        batch = self._queue.take(time.monotonic(), limit, ripe=ripe or self._closed)
        if not batch:
            return None
        leader = max(batch, key=_deadline) if len(batch) > 1 else batch[0]
        for request in batch:
            request.state = State.RIDING
            request.memory_free = False
        leader.state = State.LEADING
        leader.batch = batch
        return leader

    def _hand_on(self) -> Request | None:
        """Gives the slot of a run that ended to the next batch, whose leader is returned, or back."""
        leader = self._next_leader() if self._running <= self._slots() else None
        if leader is None:
            self._running -= 1
            if self._closed:
                self._idle.notify_all()
        return leader

    def _run_alone(
        self, inputs: Mapping[str, Tensor], caller: Caller, waited_ns: Sequence[int] = ()
    ) -> Mapping[str, Tensor]:
        began = time.perf_counter_ns()
        try:
            outputs = self._graph.run(inputs, caller.deadline)
        except BaseException:
            self._metrics.failed(time.perf_counter_ns() - began)
            raise
        took = time.perf_counter_ns() - began
        rows = self._merging.rows(inputs)
        self._gain.ran(rows, took * 1e-9)
        self._metrics.executed(rows, waited_ns, 0, took, 0)
        return outputs

    def lead(self, leader: Request, batch: list[Request]) -> None:
        """Runs ``batch`` on the thread of ``leader``, one of it, and tells the others."""
        now = time.monotonic()
        waited = []
        for request in batch:
            if not request.at_once:
                ns = int((now - request.since) * 1e9)
                request.caller.queued_ns += ns
                waited.append(ns)
        outcomes: Sequence[Outcome] | None = None
        run: Run | None = None
        try:
            if len(batch) == 1:
                outcomes = [self._run_alone(leader.inputs, leader.caller, waited)]
            else:
                run = self._run_merged(batch, leader.caller.deadline)
                outcomes = run.outcomes
        except DeadlineExceeded as error:
            outcomes = [DeadlineExceeded(str(error)) for _ in batch]
        except Exception as error:
            # Of several nobody knows yet whose fault it was: they are run again, each alone.
            outcomes = [error] if len(batch) == 1 else None
            if outcomes is None and not self._warned:
                self._warned = True
                logger.warning(
                    "a merged run of graph '%s' failed, and each request is run alone; of further ones only "
                    "kserve_wasm_batch_retries tells: %s",
                    self._graph.name,
                    str(error),
                )
        self.settle(leader, batch, outcomes)
        outcomes = None  # an error's traceback holds this frame
        if run is None:
            return
        if run.merged:
            rows = sum(request.rows for request in batch)
            self._gain.ran(rows, (run.input_ns + run.infer_ns + run.output_ns) * 1e-9)
            self._metrics.executed(rows, waited, run.input_ns, run.infer_ns, run.output_ns)
        else:
            for i, request in enumerate(batch):
                self._metrics.executed(request.rows, waited[i : i + 1], 0, run.infer_ns // len(batch), 0)

    def _run_merged(self, batch: list[Request], deadline: float) -> Run:
        fits = [request.fit for request in batch if request.fit is not None]

        def staged() -> None:
            for request in batch:
                request.memory_free = True

        began = time.perf_counter_ns()
        try:
            return self._merging.run([request.inputs for request in batch], fits, deadline, staged)
        except BaseException:
            self._metrics.failed(time.perf_counter_ns() - began)
            raise

    def settle(self, leader: Request, batch: list[Request], outcomes: Sequence[Outcome] | None) -> None:
        """Hands out ``outcomes``; without them, each request is run again alone, so that only the culprit fails."""
        told = []
        now = time.monotonic()
        with self._lock:
            for i, request in enumerate(batch):
                request.memory_free = True
                if request.state is State.DONE:
                    continue  # it left
                if outcomes is None and request.caller.deadline > now:
                    request.key = None
                    request.since = now
                    request.until = request.caller.deadline
                    request.state = State.QUEUED
                    self._queue.add(request)
                    continue
                request.outcome = self._too_late("during the run") if outcomes is None else outcomes[i]
                request.state = State.DONE
                if request is not leader or isinstance(request, SubmittedRequest):
                    told.append(request)
            following = self._hand_on()
        if outcomes is None:
            self._metrics.retried(len(batch))
            for request in batch:
                if isinstance(request, SubmittedRequest):
                    self._watch(request)  # its time may have come while it led
        if following is not None:
            following.wake()
        for request in told:
            request.wake()


def _deadline(request: Request) -> float:
    return request.caller.deadline
