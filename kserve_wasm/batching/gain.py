"""Whether merging pays.

A batch gains nothing where the graph is bound by arithmetic, and everything where it is bound by memory or by the cost
of a run.
"""

from __future__ import annotations

HANDOVER = 25e-6
"""Seconds that it costs a computation to wait, be woken, and have its tensors moved: what merging has to win back."""

_FORGET = 1.05
"""The quickest run of a size counts this much slower with every later one: machines and their neighbours change."""
_WORTH = 0.95
_SAMPLES = 3
"""Runs of a size before it is believed to be slow: the first ones grow the framework's memory."""
_FIRST_PAUSE, _LAST_PAUSE = 64, 8192


class Gain:
    """Learns from the time of each run how many entries along the first dimension are best run together.

    Sizes are classed by powers of two. For each class the quickest run per entry counts, because a run's time includes
    waiting for the interpreter lock and for other processes. Where merging is found not to pay, or large batches not,
    they are tried again after 64 runs, then after 128, 256 … up to 8192. Not thread-safe by itself; lost updates do no
    harm.

    Attributes:
        limit: entries to run together at most; 1: each request alone.

    Args:
        max_batch_size: entries in the largest batch.
        adaptive: whether the limit follows what is learnt.
    """

    __slots__ = ("_adaptive", "_best", "_max", "_pause", "_samples", "_until_trial", "limit")

    def __init__(self, max_batch_size: int, *, adaptive: bool = True) -> None:
        self._adaptive = adaptive
        self.limit = self._max = max_batch_size
        classes = max_batch_size.bit_length() + 1
        self._best = [0.0] * classes  # seconds per entry by class; 0: not known
        self._samples = [0] * classes
        self._pause = _FIRST_PAUSE
        self._until_trial = 0

    @property
    def alone(self) -> float:
        """Seconds that one entry takes alone, at its quickest; 0 before it is known."""
        return self._best[1]

    def ran(self, rows: int, seconds: float) -> None:
        """Counts a run of ``rows`` entries that took ``seconds``."""
        if not 0 < rows <= self._max:
            return
        size = rows.bit_length()
        each = seconds / rows
        best = self._best[size]
        self._best[size] = min(each, best * _FORGET) if best else each
        self._samples[size] += 1
        if self._until_trial:
            self._until_trial -= 1
            if self._until_trial == 0:
                self._samples = [0] * len(self._samples)
                self._pause = min(2 * self._pause, _LAST_PAUSE)
                self.limit = self._max
        elif self._adaptive:
            self._judge()

    def _judge(self) -> None:
        """Sets the limit to the best size, as far as sizes are known."""
        alone = self._best[1]
        if not alone:
            return
        if alone * _WORTH <= HANDOVER:
            self._set_limit(1)
            return
        tried = [
            size for size in range(2, len(self._best)) if self._samples[size] >= _SAMPLES and self._best[size]
        ]
        if not tried:
            return
        best = min(tried, key=self._best.__getitem__)
        largest = tried[-1]
        if self._best[best] + HANDOVER > _WORTH * alone:
            self._set_limit(1)
        elif self._best[best] < _WORTH * self._best[largest]:
            self._set_limit((1 << best) - 1)
        else:
            self._pause = _FIRST_PAUSE

    def _set_limit(self, limit: int) -> None:
        self.limit = limit
        self._until_trial = self._pause
