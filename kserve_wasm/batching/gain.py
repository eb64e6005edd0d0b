"""Whether merging pays.

A batch gains nothing where the graph is bound by arithmetic, and everything where it is bound by memory or by the cost
of a run.
"""

from __future__ import annotations

import time

HANDOVER = 25e-6
"""Seconds that it costs a computation to wait, be woken, and have its tensors moved: what merging has to win back."""

_BETTER = 0.9
"""What an entry's time must come down to, for another size to be better."""
_SAMPLES = 3
"""Runs of a size before it is found to be better: the first ones grow the framework's memory."""
_DOUBTS = 12
"""Runs of a size before it is found not to be: the quickest of many has waited for nothing else."""
_FORGET = 1.05
"""The quickest run of a size counts this much slower with every later one: machines and their neighbours change."""
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 300.0
"""Seconds until sizes that were no better are tried again: doubled each time. The last for the largest size at once."""


class Gain:
    """Learns from the times of runs how many entries along the first dimension are best run together.

    Sizes are classed by powers of two. First each request runs alone; then the limit is two or three entries, and it is
    doubled as long as larger runs take less time for an entry than smaller ones. So a graph that gains nothing shows it
    at little cost. Of each class the quickest run counts, because a run's time includes waiting for the interpreter
    lock and for other processes. Lost updates, when several threads count at once, do no harm.

    Args:
        max_batch_size: entries in the largest batch.
        adaptive: whether the limit follows what is learnt.

    Attributes:
        limit: entries to run together at most; 1: each request alone.
        alone: seconds of the smallest runs, at their quickest; 0 before it is known.
    """

    __slots__ = (
        "_adaptive",
        "_best",
        "_growing",
        "_max",
        "_pause",
        "_resume",
        "_samples",
        "_smallest",
        "alone",
        "limit",
    )

    def __init__(self, max_batch_size: int, *, adaptive: bool = True) -> None:
        self._max = max_batch_size
        self._adaptive = adaptive and max_batch_size > 1
        self._best = [0.0] * (max_batch_size.bit_length() + 1)  # seconds for an entry by class; 0: not known
        self._samples = [0] * len(self._best)
        self._smallest = len(self._best)  # the class of the requests themselves
        self._pause = _FIRST_PAUSE
        self._resume = 0.0
        self._growing = True
        self.limit = 1 if adaptive else max_batch_size
        self.alone = 0.0

    def ran(self, rows: int, seconds: float) -> None:
        """Counts a run of ``rows`` entries that took ``seconds``."""
        size = rows.bit_length()
        if not 0 < size < len(self._best):
            return
        each, best = seconds / rows, self._best[size]
        best = self._best[size] = min(each, best * _FORGET) if best else each
        self._samples[size] += 1
        if size <= self._smallest:
            self._smallest = size
            self.alone = best * (1 << size - 1)
        if not self._adaptive:
            return
        if self._growing:
            self._grow(size)
        elif time.monotonic() >= self._resume:
            self._try_again()

    def _grow(self, size: int) -> None:
        """Raises the limit by a class when its largest proves better than the next smaller, or ends the growth."""
        if self._samples[size] < _SAMPLES:
            return
        largest = self.limit.bit_length()
        if size == self._smallest and self.alone * _BETTER <= HANDOVER:
            self._settle()  # there is nothing to win
        elif size >= largest:  # a request may have more entries by itself
            smaller = max((c for c in range(1, size) if self._best[c]), default=0)
            better = not smaller or self._best[size] <= _BETTER * self._best[smaller]
            if better and self.limit < self._max:
                self.limit = self._up_to(size + 1)
            elif better or self._samples[size] >= _DOUBTS:
                self._settle()

    def _settle(self) -> None:
        """Takes the best size that is known, until sizes are tried again."""
        smallest = self._smallest = next(size for size, each in enumerate(self._best) if each)
        alone = self._best[smallest]
        handover = HANDOVER / (1 << smallest - 1)  # for an entry
        best, size = min((each, size) for size, each in enumerate(self._best) if each)
        self.limit = self._up_to(size) if size > smallest and best + handover <= _BETTER * alone else 1
        self._growing = False
        if self.limit == self._max:
            self._resume = time.monotonic() + _LAST_PAUSE
            return
        self._resume = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LAST_PAUSE)

    def _try_again(self) -> None:
        # From the largest size on, everything is measured anew: it may have become the wrong one.
        larger = 1 if self.limit == self._max else max(2, self.limit.bit_length() + 1)
        for size in range(larger, len(self._best)):
            self._best[size] = 0.0
            self._samples[size] = 0
        self.limit = self._up_to(larger)
        self._growing = True

    def _up_to(self, size: int) -> int:
        """The largest number of entries in the class ``size``."""
        return min((1 << size) - 1, self._max)
