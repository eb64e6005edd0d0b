"""The order in which computations that wait are run, and which of them together. No threads, no clock of its own."""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

from kserve_wasm.artifact.config import Batching


class Waiting(Protocol):
    """A computation in the queue.

    Attributes:
        rank: its priority, then the number of its arrival: the lowest is next.
        rows: its entries along the batch dimension.
        key: those with equal keys may run together; None: alone.
        since: ``time.monotonic()`` seconds at its arrival.
        until: ``time.monotonic()`` seconds from which it is not to be started any more.
    """

    rank: tuple[int, int]
    rows: int
    key: Hashable
    since: float
    until: float


_LOOKED_AT = 16
"""Keys of requests that may all wait, after which only those that have waited long enough are looked at: clients can
make any number of keys."""

T = TypeVar("T", bound=Waiting)


class BatchQueue(Generic[T]):
    """Computations that wait for a run.

    Args:
        batching: sizes and delay.

    Attributes:
        waiting: they, in their order.
    """

    def __init__(self, batching: Batching) -> None:
        self._max = batching.max_batch_size
        self._preferred = batching.preferred_batch_size
        self._delay = batching.max_queue_delay
        self.waiting: list[T] = []

    def add(self, item: T) -> None:
        """Puts ``item`` behind those of its rank and before those of higher ones."""
        waiting = self.waiting
        if not waiting or waiting[-1].rank < item.rank:
            waiting.append(item)
        else:
            insort(waiting, item, key=_rank)

    def remove(self, item: T) -> None:
        """Takes ``item`` out, which must be there."""
        self.waiting.remove(item)

    def take(self, now: float, limit: int | None = None, *, ripe: bool = False) -> list[T]:
        """Takes out those that are to run next, together; none while all may still wait for others.

        Args:
            now: ``time.monotonic()`` seconds.
            limit: entries to run together at most, where that is fewer than is configured; 1: none are merged.
            ripe: nobody is to wait any longer.
        """
        passed: set[Hashable] = set()
        for head in self.waiting:
            if head.until <= now:
                continue  # it is about to take itself out
            if head.key is None or limit == 1:
                self.waiting.remove(head)
                return [head]
            if head.key in passed:
                continue
            if len(passed) >= _LOOKED_AT and not ripe and now < head.since + self._delay:
                continue
            batch = self._together(head.key, now, min(limit or self._max, self._max), ripe=ripe)
            if batch:
                chosen = set(map(id, batch))
                self.waiting = [item for item in self.waiting if id(item) not in chosen]
                return batch
            passed.add(head.key)
        return []

    def _together(self, key: Hashable, now: float, limit: int, *, ripe: bool) -> list[T]:
        """Those with ``key`` that make the best size; none when it is better to wait."""
        fitting = [item for item in self.waiting if item.key == key and item.until > now]
        rows = sum(item.rows for item in fitting)
        target = max((size for size in self._preferred if size <= min(rows, limit)), default=0)
        if not target:
            # A more urgent one may have come later: who waited longest counts.
            if not ripe and rows < limit and now < min(item.since for item in fitting) + self._delay:
                return []
            target = limit
        batch: list[T] = []
        room = target
        for item in fitting:
            # The first is always taken, lest a large one starve; it fits into the largest batch.
            if item.rows <= room or not batch:
                batch.append(item)
                room -= item.rows
                if room <= 0:
                    break
        return batch


def _rank(item: Waiting) -> tuple[int, int]:
    return item.rank
