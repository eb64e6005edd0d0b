"""The threads that run guests: as many as are needed, up to a bound, shared by all models of the process.

A model uses some of them at a time and some of its requests may wait (:class:`Lane`). So a model whose guests all run
into their deadlines holds no more than its share of the threads.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from kserve_wasm.backends.cpus import available_cpus
from kserve_wasm.errors import DeadlineExceeded, QueueFull
from kserve_wasm.guest.engine import THREAD_STACK

MAX_THREADS = max(64, 4 * available_cpus())
"""Threads for guests in one process."""


class GuestPool:
    """Daemon threads that run work, started when there is more of it than threads.

    Args:
        max_threads: how many there may be.
    """

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self.max_threads = max_threads
        self._threads = 0
        self._outstanding = 0  # work that was handed in and has not ended
        self._lock = threading.Lock()
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def run(self, work: Callable[[], None]) -> None:
        """Runs ``work`` on one of the threads, at once or when one is free. It must not raise.

        Raises:
            QueueFull: there is no thread, and the system does not give one.
        """
        with self._lock:
            if self._outstanding >= self._threads < self.max_threads:
                try:
                    self._start()
                except RuntimeError as error:
                    if not self._threads:
                        raise QueueFull(f"the server has no thread for the request: {error}") from None
                else:
                    self._threads += 1
            self._outstanding += 1
        self._work.put(work)

    def _start(self) -> None:
        # The size is a setting of the process, read when a thread starts.
        before = threading.stack_size(THREAD_STACK)
        try:
            threading.Thread(target=self._loop, name="wasm-guest", daemon=True).start()
        finally:
            threading.stack_size(before)

    def _loop(self) -> None:
        while True:
            self._work.get()()
            with self._lock:
                self._outstanding -= 1


@dataclass(eq=False, slots=True)
class Job:
    """One piece of work of one model.

    Attributes:
        run: the work, called on a pool thread; must not raise.
        give_up: called with the reason, instead of ``run``, when the job is not run.
        deadline: ``time.monotonic()`` seconds.
        queued_at: ``time.monotonic()`` seconds at which it was made.
        taken: whether it runs, or was taken back: whoever sets it first decides which.
    """

    run: Callable[[], None]
    give_up: Callable[[Exception], None]
    deadline: float
    queued_at: float = field(default_factory=time.monotonic)
    taken: bool = False


class Lane:
    """One model's way to the pool's threads: never to more than half of them.

    Args:
        pool: the threads.
        workers: jobs of this lane that may run at once.
        queue: jobs that may wait besides.
    """

    def __init__(self, pool: GuestPool, workers: int, queue: int) -> None:
        self._pool = pool
        self._workers = min(workers, max(1, pool.max_threads // 2))
        self._capacity = queue
        self._running = 0
        self._waiting: deque[Job] = deque()
        self._lock = threading.Lock()

    @property
    def running(self) -> int:
        """Jobs that have a thread, or are next for one."""
        return self._running

    @property
    def waiting(self) -> int:
        """Jobs that wait for one of those to end."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Hands ``job`` to a thread, or lets it wait.

        Raises:
            QueueFull: as many wait as may, or the system gives no thread.
        """
        with self._lock:
            if self._running >= self._workers:
                if len(self._waiting) >= self._capacity:
                    raise QueueFull(
                        f"{len(self._waiting)} requests wait for this model already: try again, or raise its queue"
                    )
                self._waiting.append(job)
                return
            self._running += 1
        try:
            self._pool.run(lambda: self._run(job))
        except QueueFull:
            with self._lock:
                self._running -= 1
            raise

    def discard(self, job: Job) -> bool:
        """Takes ``job`` back; False when it runs, or has ended."""
        with self._lock:
            if job.taken:
                return False
            job.taken = True
            with contextlib.suppress(ValueError):
                self._waiting.remove(job)
            return True

    def _run(self, job: Job) -> None:
        """Runs ``job``, then those that waited meanwhile: a thread that is awake needs no hand-over."""
        following: Job | None = job
        while following is not None:
            with self._lock:
                mine = not following.taken
                following.taken = True
            if mine and time.monotonic() > following.deadline:
                following.give_up(
                    DeadlineExceeded("the deadline passed while the request waited for a worker")
                )
            elif mine:
                following.run()
            with self._lock:
                if self._waiting:
                    following = self._waiting.popleft()
                else:
                    following = None
                    self._running -= 1
