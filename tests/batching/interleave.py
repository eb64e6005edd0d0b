"""Interleavings of the scheduler's threads, tried one by one, each the same whenever it is tried.

The threads take turns, line by line, on a clock that only waiting moves. One runs until it waits, or until the step at
which the interleaving says that another goes on. Who waits for what never comes is found at once.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from kserve_wasm.batching import base, queue, requests, scheduler
from tests.batching.threads import stacks

TRACED = frozenset(module.__file__ for module in (base, queue, requests, scheduler))
FOREVER = math.inf


class Stuck(BaseException):
    """Every thread waits for another."""


@dataclass(eq=False)
class _Thread:
    run: Callable[[], None]
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ready: Callable[[], bool] | None = None
    until: float = FOREVER
    done: bool = False


class Turns:
    """One interleaving.

    Attributes:
        now: seconds.
        steps: lines that were run so far.
        stuck: whether it ended with threads that wait for ever.

    Args:
        switches: at which step how many threads to skip to the one that goes on.
    """

    def __init__(self, switches: Mapping[int, int]) -> None:
        self.now = 1000.0
        self.steps = 0
        self.stuck = False
        self._switches = switches
        self._threads: list[_Thread] = []
        self._current: _Thread | None = None
        self._over = threading.Event()

    # --- What tests call

    def run(self, *functions: Callable[[], None]) -> None:
        """Runs all of them to their ends, or until they are stuck."""
        self._threads = [_Thread(function) for function in functions]
        threads = [threading.Thread(target=self._main, args=(one,), daemon=True) for one in self._threads]
        for thread in threads:
            thread.start()
        self._resume(self._threads[0])
        if not self._over.wait(60):
            pytest.fail(f"the turns do not end\n{stacks()}")
        for thread in threads:
            thread.join(60)

    def step(self) -> None:
        """Lets another thread go on, if this is the time."""
        if self._current is None:
            return
        self.steps += 1
        skip = self._switches.get(self.steps)
        if skip:
            self._yield(skip)

    def wait(self, ready: Callable[[], bool], seconds: float = FOREVER) -> bool:
        """Lets others go on until ``ready``, or for so long; tells whether it is ready."""
        me = self._current
        assert me is not None
        if not ready():
            me.ready, me.until = ready, self.now + seconds
            self._yield(1)
            me.ready, me.until = None, FOREVER
        return ready()

    def sleep(self, seconds: float) -> None:
        """Lets others go on for so long."""
        self.wait(lambda: False, seconds)

    # --- Turns

    def _main(self, me: _Thread) -> None:
        me.go.acquire()
        sys.settrace(self._trace)
        try:
            if not self.stuck:
                me.run()
        except Stuck:
            pass
        finally:
            sys.settrace(None)
            me.done = True
            self._pass_on(1)

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            self.step()
        return self._trace

    def _yield(self, skip: int) -> None:
        me = self._current
        assert me is not None
        self._pass_on(skip)
        me.go.acquire()
        if self.stuck:
            raise Stuck

    def _pass_on(self, skip: int) -> None:
        threads = self._threads
        at = threads.index(self._current) if self._current else 0
        others = [*threads[at + 1 :], *threads[: at + 1]]
        alive = [one for one in others if not one.done]
        if not alive:
            self._over.set()
            return
        while not self.stuck:
            able = [one for one in alive if one.ready is None or one.ready() or self.now >= one.until]
            if able:
                self._resume(able[(skip - 1) % len(able)])
                return
            self.now = min(one.until for one in alive)
            self.stuck = self.now == FOREVER
        self._resume(alive[0])  # each unwinds, and resumes the next

    def _resume(self, one: _Thread) -> None:
        self._current = one
        one.go.release()

    # --- What takes the place of the modules that the scheduler uses

    def threading(self) -> SimpleNamespace:
        return SimpleNamespace(
            Lock=lambda: Lock(self),
            Condition=lambda lock: Condition(self, lock),
            TIMEOUT_MAX=threading.TIMEOUT_MAX,
        )

    def time(self) -> SimpleNamespace:
        ticks = itertools.count(1)
        return SimpleNamespace(
            monotonic=lambda: self.now, perf_counter_ns=lambda: next(ticks), sleep=self.sleep
        )


class Lock:
    """As ``threading.Lock``."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._held and blocking:
            self._turns.wait(lambda: not self._held, FOREVER if timeout < 0 else timeout)
        if self._held:
            return False
        self._held = True
        return True

    def release(self) -> None:
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self._held = False
        self._turns.step()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Condition:
    """As much of ``threading.Condition`` as the scheduler uses."""

    def __init__(self, turns: Turns, lock: Lock) -> None:
        self._turns = turns
        self._lock = lock
        self._told = 0

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def notify_all(self) -> None:
        self._told += 1

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        while not predicate():
            heard = self._told
            self._lock.release()
            self._turns.wait(lambda heard=heard: self._told > heard)  # type: ignore[misc]
            self._lock.acquire()


class Watchdog:
    """As :class:`kserve_wasm.backends.watchdog.Watchdog`; its thread is one of those that take turns."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._watches: list[tuple[float, Callable[[], None]]] = []
        self._changed = False

    def watch(self, deadline: float, stop: Callable[[], None]) -> tuple[float, Callable[[], None]]:
        watch = (deadline, stop)
        self._watches.append(watch)
        self._changed = True
        return watch

    def forget(self, watch: tuple[float, Callable[[], None]]) -> None:
        self._watches = [other for other in self._watches if other is not watch]

    def run(self, over: Callable[[], bool]) -> None:
        """Its thread's work, until ``over``."""
        while not over():
            self._changed = False
            due = [watch for watch in self._watches if watch[0] <= self._turns.now]
            for watch in due:
                self.forget(watch)
                watch[1]()
            if not due:
                earliest = min((deadline for deadline, _ in self._watches), default=FOREVER)
                self._turns.wait(lambda: self._changed or over(), earliest - self._turns.now)
