"""Computations that wait for a run, with a thread each or without one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING

from kserve_wasm.backends.watchdog import WATCHDOG, Watch
from kserve_wasm.batching.base import Caller, Outcome, Spawn
from kserve_wasm.batching.signature import Fit
from kserve_wasm.errors import QueueFull, WasmServingError
from kserve_wasm.tensors import Tensor

if TYPE_CHECKING:
    from kserve_wasm.batching.scheduler import BatchScheduler

logger = logging.getLogger(__name__)


class State(Enum):
    """Where a computation is; changed under its scheduler's lock."""

    QUEUED = auto()
    LEADING = auto()  # its thread runs a batch, or is about to
    RIDING = auto()  # another thread runs it
    DONE = auto()  # its outcome is there


class Request:
    """One computation that has to wait; see :class:`~kserve_wasm.batching.queue.Waiting`.

    Attributes:
        turn: released when its thread has something to do: lead :attr:`batch`, or take :attr:`outcome`.
        at_once: it did not have to wait.
        batch: those that its thread is to run, itself among them.
        memory_free: nobody reads its inputs.
        ripe: a slot was asked for when its delay was over. Until then its thread has to do so, however late it is.
    """

    __slots__ = (
        "at_once",
        "batch",
        "caller",
        "fit",
        "inputs",
        "key",
        "memory_free",
        "outcome",
        "rank",
        "ripe",
        "rows",
        "since",
        "state",
        "turn",
        "until",
    )

    def __init__(
        self,
        inputs: Mapping[str, Tensor],
        caller: Caller,
        fit: Fit | None,
        rank: tuple[int, int],
        until: float,
    ) -> None:
        self.inputs = inputs
        self.caller = caller
        self.fit = fit
        self.rows = fit.rows if fit else 1
        self.key: Hashable = fit.key if fit else None
        self.rank = rank
        self.since = time.monotonic()
        self.until = until
        self.state = State.QUEUED
        self.turn = threading.Lock()
        self.turn.acquire()
        self.at_once = False
        self.batch: list[Request] | None = None
        self.outcome: Outcome | None = None
        self.memory_free = True
        self.ripe = False

    def wake(self) -> None:
        """Tells its thread that there is something to do."""
        self.turn.release()


class SubmittedRequest(Request):
    """A computation that no thread waits for. In place of a thread's turn, it is this that is told what to do.

    Attributes:
        done: takes the outcome.
        spawn: where a batch runs that it is to lead.
        scheduler: whose it is.
        watch: what sees to its times.
    """

    __slots__ = ("done", "scheduler", "spawn", "watch")

    done: Callable[[Outcome], None]
    scheduler: BatchScheduler
    spawn: Spawn
    watch: Watch | None

    def told(self) -> bool:
        """Whether its outcome is there."""
        return self.outcome is not None

    def wake(self) -> None:
        """Tells it that there is something to do."""
        batch, self.batch = self.batch, None
        if batch is not None:
            try:
                self.spawn(lambda: self.scheduler.lead(self, batch))
            except WasmServingError as error:
                self.scheduler.settle(self, batch, [QueueFull(str(error)) for _ in batch])
        elif self.outcome is not None:
            watch, self.watch = self.watch, None
            if watch is not None:
                WATCHDOG.forget(watch)
            self.caller.on_cancel(None)
            try:
                self.done(self.outcome)
            except Exception:  # it must not keep the others of a batch from theirs
                logger.exception("an answer could not be given")
