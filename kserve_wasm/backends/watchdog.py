"""One thread that stops whatever runs past its deadline."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

_log = logging.getLogger(__name__)

Watch: TypeAlias = tuple[float, Callable[[], None]]
"""A deadline, and what to call once it passes."""


class Watchdog:
    """Calls ``stop`` of every watched run whose deadline passes, on one daemon thread that the first run starts.

    Made for runs of microseconds with deadlines of seconds: watching stores one entry, without a lock, and the
    thread is woken only when the new deadline is the earliest. It sleeps to the earliest deadline that it has seen,
    even if that run has ended long ago, and so wakes about once in the usual time limit, not once a run.
    """

    def __init__(self) -> None:
        self._watches: dict[int, Watch] = {}  # by id(): the caller holds the watch, so it is unique
        self._wake_at = math.inf
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, deadline: float, stop: Callable[[], None]) -> Watch:
        """Has ``stop`` called, on another thread, once ``time.monotonic()`` passes ``deadline`` (seconds).

        ``stop`` may still be called shortly after :meth:`forget`, so it must concern this one run only.

        Returns:
            The watch, for :meth:`forget`; keep it until then.
        """
        watch = (deadline, stop)
        self._watches[id(watch)] = watch
        # Published before _wake_at is read; the thread resets _wake_at before it reads the table. So one of the two
        # sees the other.
        if deadline < self._wake_at:
            self._wake()
        return watch

    def forget(self, watch: Watch) -> None:
        """Ends what :meth:`watch` began."""
        self._watches.pop(id(watch), None)

    def _wake(self) -> None:
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="kserve-wasm-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            for stop in self._due():
                try:
                    stop()
                except Exception:  # noqa: PERF203
                    _log.exception("stopping a run past its deadline failed")

    def _due(self) -> list[Callable[[], None]]:
        """Whom to call now; sleeps when that is nobody. They are called without the lock, and may watch something."""
        with self._changed:
            self._wake_at = math.inf
            now = time.monotonic()
            earliest = math.inf
            due = []
            for token, (deadline, stop) in self._watches.copy().items():
                if deadline > now:
                    earliest = min(earliest, deadline)
                elif self._watches.pop(token, None):
                    due.append(stop)
            if not due:
                self._wake_at = earliest
                timeout = None if earliest == math.inf else min(earliest - now, threading.TIMEOUT_MAX)
                self._changed.wait(timeout)
            return due


WATCHDOG = Watchdog()
"""The process's own."""
