"""Small scenes with a switch to another thread at each of their steps in turn, and with several at random."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from kserve_wasm.artifact.config import Batching
from kserve_wasm.batching import BatchScheduler, Caller
from kserve_wasm.batching import requests as requests_module
from kserve_wasm.batching import scheduler as scheduler_module
from kserve_wasm.errors import BackendError, DeadlineExceeded, ModelNotReady, RequestCancelled
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.tensors import Tensor
from tests.batching.graphs import NumpyGraph, Values, doubled, failing_for, fp32
from tests.batching.interleave import Turns, Watchdog
from tests.support.counts import count

FAILS = 13.0
TAKES = 1.0
"""Seconds of a run, on the clock of the turns."""


@dataclass(frozen=True)
class Scene:
    """Requests that each come on a thread of their own, and what else happens.

    Attributes:
        asks: their numbers, and the seconds that they have.
        submits: which of them are submitted.
        cancel: which of them is cancelled, if any.
        close: whether the scheduler is closed.
        options: of ``batching:``.
        slots: runs at a time.
    """

    asks: tuple[tuple[float, float], ...]
    submits: tuple[int, ...] = ()
    cancel: int | None = None
    close: bool = False
    slots: int = 1
    options: tuple[tuple[str, Any], ...] = ()


SCENES = {
    "three come": Scene(((1, math.inf), (2, math.inf), (3, math.inf))),
    "two of three fail together": Scene(((1, math.inf), (FAILS, math.inf), (2, math.inf))),
    "one is cancelled": Scene(((1, math.inf), (2, math.inf), (3, math.inf)), cancel=2),
    "one has little time": Scene(((1, math.inf), (2, math.inf), (3, 1.5 * TAKES), (4, math.inf))),
    "none has time": Scene(((1, 0.5 * TAKES), (2, 1.5 * TAKES), (3, 1.5 * TAKES))),
    "it is closed": Scene(((1, math.inf), (2, math.inf), (3, math.inf)), close=True),
    "cancelled and closed": Scene(((1, math.inf), (2, math.inf), (3, math.inf)), cancel=1, close=True),
    "they wait for each other": Scene(
        ((1, math.inf), (2, math.inf), (3, math.inf)), options=(("max_queue_delay", 2.5 * TAKES),)
    ),
    "they wait for each other and one fails": Scene(
        ((1, math.inf), (FAILS, math.inf), (2, math.inf)), options=(("max_queue_delay", 2.5 * TAKES),)
    ),
    "they wait for each other and one goes": Scene(
        ((1, math.inf), (2, math.inf), (3, math.inf)), cancel=1, options=(("max_queue_delay", 2.5 * TAKES),)
    ),
    "they wait a while at most": Scene(
        ((1, math.inf), (2, math.inf), (3, math.inf)), options=(("queue_timeout", TAKES),)
    ),
    "two at a time": Scene(((1, math.inf), (FAILS, math.inf), (2, math.inf), (3, math.inf)), slots=2),
    "all are submitted": Scene(((1, math.inf), (FAILS, math.inf), (3, math.inf)), submits=(0, 1, 2)),
    "some are submitted": Scene(
        ((1, math.inf), (2, 1.5 * TAKES), (3, math.inf), (4, math.inf)), submits=(1, 2), cancel=2
    ),
    "submitted ones wait for each other": Scene(
        ((1, math.inf), (FAILS, math.inf), (3, math.inf)),
        submits=(1, 2),
        options=(("max_queue_delay", 2.5 * TAKES),),
    ),
    "submitted and closed": Scene(
        ((1, math.inf), (2, 2.5 * TAKES), (3, math.inf)), submits=(0, 1), close=True
    ),
    "none are merged": Scene(((1, math.inf), (2, math.inf), (3, math.inf)), options=(("max_batch_size", 1),)),
}


class Play:
    """A scene in one interleaving."""

    def __init__(
        self,
        scene: Scene,
        switches: Mapping[int, int],
        metrics: ModelMetrics,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.scene = scene
        self.turns = Turns(switches)
        self.watchdog = Watchdog(self.turns)
        for module in (scheduler_module, requests_module):
            monkeypatch.setattr(module, "threading", self.turns.threading())
            monkeypatch.setattr(module, "time", self.turns.time())
            monkeypatch.setattr(module, "WATCHDOG", self.watchdog)
        self.work: list[Callable[[], None]] = []
        self.graph = NumpyGraph(failing_for(FAILS))
        self.graph.run = self.run  # type: ignore[method-assign]
        options = {"max_batch_size": 8, "declared": True, "adaptive": False, **dict(scene.options)}
        options["declared"] = options["max_batch_size"] > 1
        self.scheduler = BatchScheduler(
            self.graph, Batching(**options), scene.slots, metrics.graph("g", first=True)
        )
        self.callers = [Caller(self.turns.now + seconds) for _, seconds in scene.asks]
        self.outcomes: list[list[Any]] = [[] for _ in scene.asks]
        others: list[Callable[[], None]] = []
        if scene.cancel is not None:
            others.append(self.callers[scene.cancel].cancel)
        if scene.close:
            others.append(self.scheduler.close)
        if scene.submits:
            others += [self._working, partial(self.watchdog.run, self._over)]
        self.turns.run(*(self._asking(i) for i in range(len(scene.asks))), *others)

    def _over(self) -> bool:
        return all(self.outcomes) and not self.work

    def _working(self) -> None:
        """A thread that runs what is spawned."""
        while not self._over():
            self.turns.wait(lambda: bool(self.work) or self._over())
            if self.work:
                self.work.pop(0)()

    def run(self, inputs: Values, deadline: float = math.inf) -> Mapping[str, Tensor]:
        """The graph's: takes its time, and heeds the deadline."""
        if self.graph._closed:
            raise ModelNotReady("graph 'numpy' is closed")
        before = inputs["x"].numpy().copy()
        self.turns.sleep(max(0.0, min(TAKES, deadline - self.turns.now)))
        np.testing.assert_array_equal(inputs["x"].numpy(), before)
        if self.turns.now >= deadline:
            raise DeadlineExceeded("graph 'numpy': the deadline passed")
        return failing_for(FAILS, doubled)(inputs)

    def _asking(self, i: int) -> Callable[[], None]:
        def done(outcome: Mapping[str, Tensor] | Exception) -> None:
            self.outcomes[i].append(
                outcome if isinstance(outcome, Exception) else outcome["y"].numpy().item()
            )

        def ask() -> None:
            inputs = fp32([self.scene.asks[i][0]])
            try:
                if i in self.scene.submits:
                    self.scheduler.submit(inputs, self.callers[i], done, self.work.append)
                    return
                self.outcomes[i].append(self.scheduler.compute(inputs, self.callers[i])["y"].numpy().item())
            except Exception as error:
                self.outcomes[i].append(error)
            inputs["x"].numpy().fill(-1)

        return ask

    def check(self) -> None:
        scene, options = self.scene, dict(self.scene.options)
        assert not self.turns.stuck, "a thread waits for ever"
        for i, ((number, seconds), outcomes) in enumerate(zip(scene.asks, self.outcomes, strict=True)):
            (outcome,) = outcomes
            if isinstance(outcome, BackendError):
                assert number == FAILS
            elif isinstance(outcome, DeadlineExceeded):
                assert seconds < math.inf or "queue_timeout" in options
            elif isinstance(outcome, RequestCancelled):
                assert i == scene.cancel
            elif isinstance(outcome, ModelNotReady):
                assert scene.close
            else:
                assert number != FAILS
                assert outcome == 2 * number + 1
        assert not self.scheduler._queue.waiting
        assert self.scheduler._running == 0


@pytest.mark.parametrize("name", SCENES)
def test_in_whatever_order_the_threads_take_turns(
    name: str, metrics: ModelMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = SCENES[name]

    def play(switches: Mapping[int, int]) -> int:
        played = Play(scene, switches, metrics, monkeypatch)
        try:
            played.check()
        except AssertionError as error:
            raise AssertionError(f"with the switches {dict(switches)}: {error}") from error
        count("interleavings of the scheduler's threads")
        return played.turns.steps

    steps = play({})
    for at in range(1, steps + 1):
        play({at: 1 + at % 2})
    chance = random.Random(0)
    for _ in range(steps // 4):
        play({chance.randint(1, steps): chance.randint(1, 4) for _ in range(chance.randint(2, 6))})
