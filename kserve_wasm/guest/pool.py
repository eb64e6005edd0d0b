"""The threads that run guests: as many as are needed, up to a bound, shared by all models of the process.

A model uses some of them at a time and some of its requests may wait (:class:`Lane`). So a model whose guests all run
into their deadlines holds no more than its share of the threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from kserve_wasm.errors import DeadlineExceeded, QueueFull
from kserve_wasm.guest.engine import THREAD_STACK

MAX_THREADS = 64
"""Threads for guests in one process."""


class GuestPool:
    """Daemon threads that run work, started when there is more of it than idle threads.

    Args:
        max_threads: how many there may be.
    """

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._max = max_threads
        self._threads = 0
        self._idle = 0
        self._lock = threading.Lock()
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def run(self, work: Callable[[], None]) -> None:
        """Runs ``work`` on one of the threads, at once or when one is free. It must not raise."""
        # Before the count: a thread that finds nothing to do counts itself idle.
        self._work.put(work)
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._threads < self._max:
                self._threads += 1
                self._start()

    def _start(self) -> None:
        # The size is a setting of the process, read when a thread starts.
        before = threading.stack_size(THREAD_STACK)
        try:
            threading.Thread(target=self._loop, name="wasm-guest", daemon=True).start()
        finally:
            threading.stack_size(before)

    def _loop(self) -> None:
        while True:
            try:
                work = self._work.get_nowait()
            except Empty:
                with self._lock:
                    self._idle += 1
                work = self._work.get()
            work()


@dataclass(eq=False, slots=True)
class Job:
    """One piece of work of one model.

    Attributes:
        run: the work, called on a pool thread; must not raise.
        give_up: called with the reason, instead of ``run``, when the job is not run.
        deadline: ``time.monotonic()`` seconds.
        queued_at: ``time.monotonic()`` seconds at which it was made.
    """

    run: Callable[[], None]
    give_up: Callable[[Exception], None]
    deadline: float
    queued_at: float = field(default_factory=time.monotonic)


class Lane:
    """One model's way to the pool's threads.

    Args:
        pool: the threads.
        workers: jobs of this lane that may run at once.
        queue: jobs that may wait besides.
    """

    def __init__(self, pool: GuestPool, workers: int, queue: int) -> None:
        self._pool = pool
        self._workers = workers
        self._capacity = queue
        self._running = 0
        self._waiting: deque[Job] = deque()
        self._lock = threading.Lock()

    @property
    def running(self) -> int:
        """Jobs that have a thread."""
        return self._running

    @property
    def waiting(self) -> int:
        """Jobs that wait for one."""
        return len(self._waiting)

    def submit(self, job: Job) -> bool:
        """Hands ``job`` to a thread (True), or lets it wait (False).

        Raises:
            QueueFull: as many wait as may.
        """
        with self._lock:
            if self._running >= self._workers:
                if len(self._waiting) >= self._capacity:
                    raise QueueFull(
                        f"{len(self._waiting)} requests wait for this model already: try again, or raise its queue"
                    )
                self._waiting.append(job)
                return False
            self._running += 1
        self._pool.run(lambda: self._run(job))
        return True

    def discard(self, job: Job) -> bool:
        """Takes ``job`` back; False when it does not wait (any more)."""
        with self._lock:
            try:
                self._waiting.remove(job)
            except ValueError:
                return False
            return True

    def _run(self, job: Job | None) -> None:
        """Runs ``job``, then those that waited meanwhile: a thread that is awake needs no hand-over."""
        while job is not None:
            if time.monotonic() > job.deadline:
                job.give_up(DeadlineExceeded("the deadline passed while the request waited for a worker"))
            else:
                job.run()
            with self._lock:
                if self._waiting:
                    job = self._waiting.popleft()
                else:
                    job = None
                    self._running -= 1
