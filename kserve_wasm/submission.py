"""One inference on its way through a model: on the event loop, on a thread, or in a batch without either."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from kserve_wasm.batching import Caller
from kserve_wasm.errors import (
    BackendError,
    DeadlineExceeded,
    GuestError,
    ModelNotReady,
    QueueFull,
    WasmServingError,
    printable,
)
from kserve_wasm.guest import Timing
from kserve_wasm.guest.pace import INLINE_BUDGET, INLINE_SECONDS, Pace, Shapes
from kserve_wasm.guest.pending import PendingResponse
from kserve_wasm.guest.pool import GuestPool, Job
from kserve_wasm.request import InferenceRequest, InferenceResponse
from kserve_wasm.tensors import Tensor

if TYPE_CHECKING:
    from kserve_wasm.model import WasmModel

logger = logging.getLogger(__name__)

GRAPHS = GuestPool()
"""The threads that run graphs for requests whose guests have ended: not those that guests wait on for graphs."""

INLINE_BATCH_SECONDS = 5 * INLINE_SECONDS
"""A batch may hold the event loop for as long before graphs of its model are kept from there."""

Outcome: TypeAlias = InferenceResponse | Exception
"""What a request ends with."""


class Submission:
    """One inference on its way.

    Attributes:
        caller: for whom.
    """

    __slots__ = (
        "_cancelled",
        "_done",
        "_here",
        "_job",
        "_loop",
        "_model",
        "_pending",
        "_request",
        "_thread",
        "_timer",
        "_timing",
        "caller",
    )

    def __init__(
        self, model: WasmModel, request: InferenceRequest, caller: Caller, done: Callable[[Outcome], None]
    ) -> None:
        self._model = model
        self._request = request
        self.caller = caller
        self._done = done
        self._cancelled = False
        self._timing = Timing()
        self._job: Job | None = None
        self._pending: PendingResponse | None = None
        self._here: Caller | None = None
        self._thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def cancel(self) -> None:
        """The client is gone: a waiting request is not run, and the outcome of a running one is dropped."""
        self._cancelled = True
        self.caller.cancel()
        if self._here is not None:
            self._here.cancel()
        job = self._job
        if job is not None and self._model.lane.discard(job):
            self._job = None
        if self._timer is not None:
            self._timer.cancel()

    def run_inline(self, pace: Pace, *, defers: bool) -> bool:
        """Runs the guest here and now; False when it took too long, and all must run again on a thread.

        Args:
            pace: what decided that it may.
            defers: a graph that the guest passes its request on to runs later, if need be with others'.
        """
        model = self._model
        limit = time.monotonic() + INLINE_BUDGET
        caller = Caller(min(self.caller.deadline, limit), may_wait=False)
        caller.defers = defers
        outcome = self._begin(caller)
        if time.monotonic() >= limit:
            pace.surprised()
            if limit < self.caller.deadline:
                # Whatever it is: the guest may have met the limit and made something of it.
                return False
        elif isinstance(outcome, PendingResponse):
            model.guest_pace.ran_inline(self._timing.total * 1e-9)
        else:
            pace.ran_inline(self._timing.total * 1e-9)
        if isinstance(outcome, PendingResponse):
            self._put_off(outcome, quick=pace is model.pace)
            return True
        self._done(outcome)
        self._count(outcome, 0)
        return True

    def _put_off(self, pending: PendingResponse, *, quick: bool) -> None:
        """Has the graph run that is still missing: quick ones on the event loop, with all that arrive in this turn."""
        model = self._model
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._pending = pending
        if model.put_off >= model.lane.capacity:
            self._conclude(
                QueueFull(
                    f"{model.put_off} requests wait for this model's graphs already: try again, or raise its queue"
                )
            )
            return
        model.put_off += 1
        try:
            if quick:
                limit = min(self.caller.deadline, time.monotonic() + INLINE_BUDGET)
                caller = self._here = Caller(limit, self.caller.priority)
                pending.scheduler.submit(pending.inputs, caller, self._computed_soon, self._spawn_here)
            else:
                pending.scheduler.submit(pending.inputs, self.caller, self._computed, GRAPHS.run)
        except WasmServingError as error:
            self._complete(error)

    def _spawn_here(self, work: Callable[[], None]) -> None:
        """Has a batch run on the event loop; called on any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._run_here, work)
        except RuntimeError:  # it has ended
            raise ModelNotReady("the server has stopped") from None

    def _run_here(self, work: Callable[[], None]) -> None:
        self._model.company.came(self._model.put_off)
        start = time.monotonic()
        work()
        if time.monotonic() - start > INLINE_BATCH_SECONDS:
            self._model.pace.surprised()

    def _computed_soon(self, outputs: Mapping[str, Tensor] | Exception) -> None:
        """On any thread, though the event loop's as a rule."""
        if threading.get_ident() == self._thread:
            self._computed_here(outputs)
            return
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._computed_here, outputs)

    def _computed_here(self, outputs: Mapping[str, Tensor] | Exception) -> None:
        """On the event loop."""
        assert self._pending is not None
        assert self._here is not None
        self.caller.queued_ns += self._here.queued_ns
        if isinstance(outputs, DeadlineExceeded) and time.monotonic() < self.caller.deadline:
            self._model.pace.surprised()
            self._model.put_off -= 1
            self._put_off(self._pending, quick=False)
        else:
            self._complete(outputs)

    def _computed(self, outputs: Mapping[str, Tensor] | Exception) -> None:
        """On any thread."""
        assert self._loop is not None
        pending = self._pending
        if pending is not None and not isinstance(outputs, Exception):
            try:
                pending.fetch(outputs)
            except WasmServingError as error:
                outputs = error
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._complete, outputs)

    def _complete(self, outputs: Mapping[str, Tensor] | Exception) -> None:
        """On the event loop, with what a graph gave that was put off."""
        self._model.put_off -= 1
        pending = self._pending
        assert pending is not None
        if isinstance(outputs, Exception):
            self._conclude(self._told(outputs))
            return
        outcome: Outcome
        try:
            outcome = pending.complete(outputs)
        except Exception as error:
            outcome = self._told(error)
        self._conclude(outcome)

    def _conclude(self, outcome: Outcome) -> None:
        self._pending = None
        now = time.monotonic_ns()
        self._timing.infer += now - self._timing.start - self._timing.total
        self._timing.total = now - self._timing.start
        self._deliver(outcome)
        self._count(outcome, 0)

    def run_on_thread(self) -> None:
        """Hands the request to a thread, or lets it wait for one."""
        self._loop = asyncio.get_running_loop()
        self._job = Job(self._run, self._refuse, self.caller.deadline, self.caller.priority)
        try:
            self._model.lane.submit(self._job)
        except WasmServingError as error:
            self._job = None
            self._done(error)
            self._count(error, 0)
            return
        self._timer = self._loop.call_later(self.caller.deadline - time.monotonic(), self._expire)

    def _expire(self) -> None:
        job = self._job
        if job is not None and self._model.lane.discard(job):
            self._job = None
            error = DeadlineExceeded("the deadline passed while the request waited for a worker")
            self._deliver(error)
            self._count(error, time.monotonic_ns() - int(job.queued_at * 1e9))

    def _refuse(self, error: Exception) -> None:
        """On a pool thread, in place of :meth:`_run`."""
        job, self._job = self._job, None
        self._answer(error)
        if job is not None:
            self._count(error, time.monotonic_ns() - int(job.queued_at * 1e9))

    def _run(self) -> None:
        """On a pool thread."""
        assert self._job is not None
        waited = time.monotonic() - self._job.queued_at
        outcome = self._begin(self.caller)
        assert not isinstance(outcome, PendingResponse)
        self._answer(outcome)
        self._count(outcome, int(waited * 1e9))
        shapes, total = shapes_of(self._request), self._timing.total
        self._model.pace.ran_on_thread(total * 1e-9, shapes)
        self._model.guest_pace.ran_on_thread((total - self.caller.passed_on_ns) * 1e-9, shapes)
        # A job holds this method, and so its request: the tensors would wait for the cycle collector.
        self._job = None

    def _begin(self, caller: Caller) -> Outcome | PendingResponse:
        timing = self._timing
        timing.start = time.monotonic_ns()
        try:
            return self._model.guest.begin(self._request, caller, timing)
        except Exception as error:
            return self._told(error)
        finally:
            timing.total = time.monotonic_ns() - timing.start

    def _told(self, error: Exception) -> WasmServingError:
        """``error`` as the client is told of it."""
        if isinstance(error, WasmServingError):
            # What the traceback holds (tensors, the instance) would live as long as the error.
            return error.with_traceback(None)
        logger.error("Request to model %s failed", self._model.name, exc_info=error)
        return GuestError("the request failed for a reason of the server's own; its log says more")

    def _count(self, outcome: Outcome, queued_ns: int) -> None:
        """Counts the request, when its answer is on its way."""
        model, timing = self._model, self._timing
        model.metrics.queued(queued_ns * 1e-9)
        total = timing.total + queued_ns
        if isinstance(outcome, InferenceResponse):
            batched_ns = self.caller.queued_ns
            queued_ns += batched_ns
            model.statistics.succeeded(
                total, queued_ns, timing.instantiate, timing.infer - batched_ns, timing.finish
            )
        else:
            model.statistics.failed(total)
            # Only what failed here while it ran: a line for everything that a client can ask for would let any client
            # fill the log.
            if isinstance(outcome, GuestError | BackendError):
                logger.error(
                    "model %s version %s: %s: %s",
                    model.name,
                    model.version,
                    type(outcome).__name__,
                    printable(str(outcome)),
                )

    def _answer(self, outcome: Outcome) -> None:
        """From a pool thread to the event loop, unless that has ended."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, outcome)

    def _deliver(self, outcome: Outcome) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._cancelled:
            self._done(outcome)


def shapes_of(request: InferenceRequest) -> Shapes:
    """The shapes of the inputs, in the request's order."""
    return tuple([tensor.shape for tensor in request.inputs.values()])
