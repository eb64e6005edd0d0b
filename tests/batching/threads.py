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
    """One call of ``compute`` on a thread of its own, or of ``submit`` on the thread that starts it.

    Attributes:
        answers: what it returned or raised; exactly one thing.

    Args:
        scheduler: whose.
        inputs: the tensors.
        caller: for whom.
        then: called as soon as there is an answer.
        submits: whether it is submitted, and runs on threads of its own.
    """

    def __init__(
        self,
        scheduler: GraphScheduler,
        inputs: Mapping[str, Tensor],
        caller: Caller | None = None,
        then: Callable[[], None] | None = None,
        *,
        submits: bool = False,
    ) -> None:
        self.caller = Caller() if caller is None else caller
        self.inputs = inputs
        self.answers: list[Mapping[str, Tensor] | BaseException] = []
        self._scheduler = scheduler
        self._then = then
        self._submits = submits
        self._answered = threading.Event()

    def start(self) -> Computation:
        """Starts it."""
        if self._submits:
            try:
                self._scheduler.submit(self.inputs, self.caller, self._answer, spawn)
            except BaseException as error:
                self._answer(error)
        else:
            spawn(self._run)
        return self

    def _run(self) -> None:
        answer: Mapping[str, Tensor] | BaseException
        try:
            answer = self._scheduler.compute(self.inputs, self.caller)
        except BaseException as error:
            answer = error
        self._answer(answer)

    def _answer(self, answer: Mapping[str, Tensor] | BaseException) -> None:
        self.answers.append(answer)
        if self._then is not None:
            self._then()
        self._answered.set()

    def join(self, seconds: float = PATIENCE) -> None:
        """Waits until it is answered; fails with every thread's stack when it is not."""
        if not self._answered.wait(seconds):
            pytest.fail(f"a computation has no answer after {seconds:g} s\n{stacks()}")

    @property
    def running(self) -> bool:
        """Whether there is no answer yet."""
        return not self._answered.is_set()

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


def spawn(work: Callable[[], None]) -> None:
    """Runs ``work`` on a new thread."""
    threading.Thread(target=work, daemon=True).start()


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
