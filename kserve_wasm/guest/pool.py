"""The threads that run guests: as many as are needed, up to a bound, shared by all models of the process.

A model uses some of them at a time and some of its requests may wait (:class:`Lane`). So a model whose guests all run
into their deadlines holds no more than its share of the threads.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from kserve_wasm.backends.cpus import available_cpus
from kserve_wasm.errors import DeadlineExceeded, QueueFull
from kserve_wasm.guest.engine import THREAD_STACK

MAX_THREADS = max(256, 4 * available_cpus())
"""Threads for guests in one process. Those that wait for a run of a graph, merged with others' or not, count too."""

IDLE_SECONDS = 30.0
"""After that long without work a thread ends, unless few others are idle."""

_NICE = 10

KEPT_IDLE = 4
"""Threads that wait for work however long it takes."""


class GuestPool:
    """Daemon threads that run work, started when there is more of it than threads.

    Args:
        max_threads: how many there may be.
        idle_seconds: after that long without work, all but :data:`KEPT_IDLE` threads end.
    """

    def __init__(self, max_threads: int = MAX_THREADS, idle_seconds: float = IDLE_SECONDS) -> None:
        self.max_threads = max_threads
        self._idle_seconds = idle_seconds
        self._threads = 0
        self._idle: list[_Thread] = []  # the last one in has the warmest caches, and gets the next work
        self._waiting: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()

    @property
    def threads(self) -> int:
        """Threads that there are."""
        return self._threads

    @property
    def idle(self) -> int:
        """Threads of them that wait for work."""
        return len(self._idle)

    def run(self, work: Callable[[], None]) -> None:
        """Runs ``work`` on one of the threads, at once or when one is free. It must not raise.

        Raises:
            QueueFull: there is no thread, and the system does not give one.
        """
        with self._lock:
            if self._idle:
                thread = self._idle.pop()
                thread.work = work
                thread.wake.release()
                return
            if self._threads < self.max_threads:
                try:
                    self._start(work)
                except RuntimeError as error:
                    if not self._threads:
                        raise QueueFull(f"the server has no thread for the request: {error}") from None
                else:
                    self._threads += 1
                    return
            self._waiting.append(work)

    def _start(self, work: Callable[[], None]) -> None:
        # The size is a setting of the process, read when a thread starts.
        before = threading.stack_size(THREAD_STACK)
        try:
            threading.Thread(target=self._loop, args=(_Thread(work),), name="wasm-guest", daemon=True).start()
        finally:
            threading.stack_size(before)

    def _loop(self, thread: _Thread) -> None:
        _give_way()
        while True:
            thread.work()
            # It holds the request's tensors, which are not to wait for the next.
            thread.work = _nothing
            with self._lock:
                if self._waiting:
                    thread.work = self._waiting.popleft()
                    continue
                self._idle.append(thread)
            while not thread.wake.acquire(timeout=self._idle_seconds):
                with self._lock:
                    # Work may have been given to it meanwhile.
                    if len(self._idle) > KEPT_IDLE and thread in self._idle:
                        self._idle.remove(thread)
                        self._threads -= 1
                        return


class _Thread:
    """What one thread is to do next, and the lock that it waits at until that is there."""

    __slots__ = ("wake", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.wake = threading.Lock()
        self.wake.acquire()


def _give_way() -> None:
    """Gives the calling thread's priority up for the event loop's, and has it not preempt who wakes it (Linux).

    Who wakes a guest's thread holds the interpreter lock. A woken thread that ran at once would find it taken and sleep
    again: that took a third of all CPU time where guests of microseconds wait for each other. And requests that the
    loop has read while guests wait for the CPU can be batched.
    """
    with contextlib.suppress(AttributeError, OSError):  # another system, or a sandbox that forbids it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _nothing() -> None:
    pass


@dataclass(eq=False, slots=True)
class Job:
    """One piece of work of one model.

    Attributes:
        run: the work, called on a pool thread; must not raise.
        give_up: called with the reason, instead of ``run``, when the job is not run.
        deadline: ``time.monotonic()`` seconds.
        priority: of those that wait, the lowest is run first, and of equals the one that came first.
        queued_at: ``time.monotonic()`` seconds at which it was made.
        taken: whether it runs, or was taken back: whoever sets it first decides which.
    """

    run: Callable[[], None]
    give_up: Callable[[Exception], None]
    deadline: float
    priority: int = 0
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
        self._waiting: dict[int, deque[Job]] = {}  # by priority; never an empty one
        self._length = 0
        self._lock = threading.Lock()

    @property
    def capacity(self) -> int:
        """Jobs that there may be, running and waiting."""
        return self._workers + self._capacity

    @property
    def running(self) -> int:
        """Jobs that have a thread, or are next for one."""
        return self._running

    @property
    def waiting(self) -> int:
        """Jobs that wait for one of those to end."""
        return self._length

    def submit(self, job: Job) -> None:
        """Hands ``job`` to a thread, or lets it wait.

        Raises:
            QueueFull: as many wait as may, or the system gives no thread.
        """
        with self._lock:
            if self._running >= self._workers:
                if self._length >= self._capacity:
                    raise QueueFull(
                        f"{self._length} requests wait for this model already: try again, or raise its queue"
                    )
                waiting = self._waiting.get(job.priority)
                if waiting is None:
                    waiting = self._waiting[job.priority] = deque()
                waiting.append(job)
                self._length += 1
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
            waiting = self._waiting.get(job.priority)
            if waiting is not None:
                with contextlib.suppress(ValueError):
                    waiting.remove(job)
                    self._shortened(job.priority, waiting)
            return True

    def _next(self) -> Job | None:
        """Takes the most urgent job from the queue."""
        if not self._length:
            return None
        priority = min(self._waiting)
        waiting = self._waiting[priority]
        job = waiting.popleft()
        self._shortened(priority, waiting)
        return job

    def _shortened(self, priority: int, waiting: deque[Job]) -> None:
        self._length -= 1
        if not waiting:
            del self._waiting[priority]

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
                following = self._next()
                if following is None:
                    self._running -= 1
