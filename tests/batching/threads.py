"""Threads that compute, and waiting for what they come to: a hang is a failure that shows where."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kserve_wasm.batching import BatchScheduler, Caller, GraphScheduler
from kserve_wasm.tensors import Tensor

PATIENCE = 60.0
"""Seconds after which something hangs."""


class Computation:
    """One call of ``compute`` on a thread of its own, which calls ``then`` as soon as it has the answer.

    Attributes:
        answers: what it returned or raised; exactly one thing.
    """

    def __init__(
        self,
        scheduler: GraphScheduler,
        inputs: Mapping[str, Tensor],
        caller: Caller | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        self.caller = Caller() if caller is None else caller
        self.inputs = inputs
        self.answers: list[Mapping[str, Tensor] | BaseException] = []
        self._scheduler = scheduler
        self._then = then
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Computation:
        """Starts it."""
        self._thread.start()
        return self

    def _run(self) -> None:
        try:
            self.answers.append(self._scheduler.compute(self.inputs, self.caller))
        except BaseException as error:
            self.answers.append(error)
        if self._then is not None:
            self._then()

    def join(self, seconds: float = PATIENCE) -> None:
        """Waits until it is answered; fails with every thread's stack when it is not."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            pytest.fail(f"a computation has no answer after {seconds:g} s\n{stacks()}")

    @property
    def running(self) -> bool:
        """Whether there is no answer yet."""
        return self._thread.is_alive()

    def outcome(self) -> Mapping[str, Tensor] | BaseException:
        """Its one answer or error."""
        self.join()
        (answer,) = self.answers
        return answer

    def result(self, name: str = "y") -> Any:
        """The output of this name as an array; raises its error."""
        answer = self.outcome()
        if isinstance(answer, BaseException):
            raise answer
        return answer[name].numpy()


def until(condition: Callable[[], object], what: str) -> None:
    """Waits for ``condition``; fails with every thread's stack when it does not come."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"never came: {what}\n{stacks()}")
        time.sleep(0.0005)


def waits(scheduler: BatchScheduler) -> int:
    """How many computations wait."""
    return len(scheduler._queue.waiting)


def stacks() -> str:
    """What every thread is doing."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
