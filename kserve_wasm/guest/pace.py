"""Which requests run where they arrive, on the event loop, and which go to a thread."""

from __future__ import annotations

import math
from typing import TypeAlias

from kserve_wasm.guest.ticker import TICK

INLINE_SECONDS = 200e-6
"""A model whose requests take less than this on average runs them on the event loop: handing a request to a thread and
its answer back costs about 55 µs, and more when both sides are awake and want the interpreter lock."""

INLINE_BUDGET = 2 * TICK
"""Seconds that a request may hold the event loop before it is stopped there and run again on a thread, whatever it has
come to. Running it again is sound: an instance leaves nothing behind but log lines. What cannot be stopped holds the
loop for longer: one operator of a graph, or one bulk instruction of a guest. Hence :class:`Pace`."""

INLINE_BYTES = 64 * 1024
"""A larger request always goes to a thread, whatever those before it took."""

_KNOWN_SHAPES = 256
Shapes: TypeAlias = tuple[tuple[int, ...], ...]


class Pace:
    """Decides from what past requests took whether the next one may run on the event loop.

    A request may only if one of exactly its shapes was quick on a thread, because shapes decide what a graph has to do.
    A thread's time says little under load, because it includes waiting for the interpreter lock: when the quickest
    recent one looks promising, a request is tried on the loop, and the times taken there decide. A model that turns
    out slow is tried again after 16 requests, then after 32, 64 … up to 65 536.
    """

    __slots__ = ("_average", "_pause", "_quick", "_quickest", "_wait")

    def __init__(self) -> None:
        self._quickest = math.inf  # on a thread, in seconds; forgotten by 1 % a request
        self._quick: set[Shapes] = set()
        self._average = 0.0  # on the loop
        self._pause = 16
        self._wait = 2

    def may_run_inline(self, shapes: Shapes) -> bool:
        """Whether the next request, with inputs of these shapes, may run on the event loop."""
        return self._wait == 0 and shapes in self._quick

    def ran_on_thread(self, seconds: float, shapes: Shapes) -> None:
        """Counts a request that a thread answered."""
        if seconds < 5 * INLINE_SECONDS:
            if len(self._quick) >= _KNOWN_SHAPES:
                self._quick.clear()
            self._quick.add(shapes)
        self._quickest = min(seconds, self._quickest * 1.01)
        if self._wait > 1 or self._quickest < 5 * INLINE_SECONDS:
            self._wait = max(0, self._wait - 1)

    def ran_inline(self, seconds: float) -> None:
        """Counts a request that the loop answered."""
        self._average += 0.1 * (seconds - self._average)
        if self._average > INLINE_SECONDS:
            self.surprised()
        elif seconds < INLINE_SECONDS:
            self._pause = max(16, self._pause - 1)

    def surprised(self) -> None:
        """Keeps the loop free of this model for a while."""
        self._average = 0.0
        self._quick.clear()
        self._wait = self._pause
        self._pause = min(2 * self._pause, 65_536)


class Company:
    """Learns whether quick requests reach the event loop several at a time, so that they should wait for each other.

    Over HTTP many are read in one turn of the loop; gRPC's loop hands them over one by one. After 32 turns with a
    single request each, 1024 requests do not wait.
    """

    __slots__ = ("_lone", "_skip")

    def __init__(self) -> None:
        self._lone = 0
        self._skip = 0

    def expected(self) -> bool:
        """Whether the next request is to wait for others."""
        if self._skip:
            self._skip -= 1
            return False
        return True

    def came(self, requests: int) -> None:
        """Counts a turn, and the requests that had waited for it."""
        self._lone = 0 if requests > 1 else self._lone + 1
        if self._lone >= 32:
            self._lone, self._skip = 0, 1024
