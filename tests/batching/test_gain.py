"""What is learnt of run times that are made up: the seconds that a run of so many entries takes."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from kserve_wasm.batching import gain as gain_module
from kserve_wasm.batching.gain import HANDOVER, Gain

Cost = Callable[[int], float]
MS = 1e-3


def memory_bound(rows: int) -> float:
    """Weights are read once for all: 32 entries in five times the time of one."""
    return MS * (3 + 0.4 * rows)


def run_bound(rows: int) -> float:
    """A hundred small operators: nearly all of it is the cost of a run."""
    return 0.5 * MS + 0.01 * MS * rows


def compute_bound(rows: int) -> float:
    return 7 * MS * rows


def tiny(rows: int) -> float:
    return 5e-6 + 0.5e-6 * rows


def best_at_eight(rows: int) -> float:
    """What more entries need does not fit into the cache."""
    return MS * (2 + 0.2 * rows + 1.0 * max(0, rows - 8))


def worse_together(rows: int) -> float:
    return MS * rows * (1.0 if rows == 1 else 1.3)


def noisy(cost: Cost, seed: int = 0) -> Cost:
    """As on a machine with neighbours: half as long again at times, and ten times as long now and then."""
    chance = random.Random(seed)

    def take(rows: int) -> float:
        return cost(rows) * chance.uniform(1.0, 1.5) * (10 if chance.random() < 0.02 else 1)

    return take


class Clock:
    """The seconds that made-up runs have taken."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which it learns."""
    made_up = Clock()
    monkeypatch.setattr(gain_module, "time", SimpleNamespace(monotonic=lambda: made_up.now))
    return made_up


def run(gain: Gain, rows: int, cost: Cost, clock: Clock) -> float:
    """One run; the seconds that it takes those who wait for it."""
    took = cost(rows)
    clock.now += took
    gain.ran(rows, took)
    return took + (HANDOVER * rows if rows > 1 else 0)


def seconds_per_entry(
    gain: Gain, cost: Cost, clock: Clock, runs: int, clients: int = 32, each: int = 1
) -> float:
    """What an entry takes on average, with a number of clients that ask again as soon as they are answered.

    Each asks for ``each`` entries. Not all of them wait every time.
    """
    chance = random.Random(0)
    entries, seconds = 0, 0.0
    for _ in range(runs):
        waiting = clients if chance.random() < 0.8 else chance.randint(1, clients)
        rows = max(1, min(gain.limit // each, waiting)) * each
        entries += rows
        seconds += run(gain, rows, cost, clock)
    return seconds / entries


def alone_or_merged(cost: Cost) -> float:
    """What an entry takes at best: all alone, or 32 together."""
    return min(cost(1), cost(32) / 32)


def test_it_tells_what_one_entry_takes_alone() -> None:
    gain = Gain(8)
    for seconds in (0.005, 0.003, 0.004):
        gain.ran(1, seconds)
    gain.ran(4, 0.001)
    assert 0.003 <= gain.alone <= 0.004


@pytest.mark.parametrize("each", [1, 4])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("cost", [memory_bound, run_bound])
def test_a_graph_that_gains_is_merged(clock: Clock, cost: Cost, noise: bool, each: int) -> None:
    gain, take = Gain(32), noisy(cost) if noise else cost
    gain.ran(each, 20 * cost(each))  # the very first run makes room
    seconds_per_entry(gain, take, clock, 500, each=each)
    always = seconds_per_entry(Gain(32, adaptive=False), take, clock, 2000, each=each)
    assert seconds_per_entry(gain, take, clock, 2000, each=each) <= 1.25 * always


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("cost", [compute_bound, tiny, worse_together])
def test_a_graph_that_does_not_gain_is_run_one_by_one(clock: Clock, cost: Cost, noise: bool) -> None:
    gain, take = Gain(32), noisy(cost) if noise else cost
    gain.ran(1, 20 * cost(1))
    seconds_per_entry(gain, take, clock, 1000)
    limits = []
    for _ in range(3000):
        limits.append(gain.limit)
        run(gain, gain.limit, take, clock)
    assert limits.count(1) >= 0.9 * len(limits)


def test_a_smaller_batch_is_made_where_that_is_best(clock: Clock) -> None:
    gain = Gain(32)
    seconds_per_entry(gain, best_at_eight, clock, 2000)
    found = seconds_per_entry(gain, best_at_eight, clock, 4000)
    assert found <= 1.5 * best_at_eight(8) / 8
    assert found < 0.8 * seconds_per_entry(Gain(32, adaptive=False), best_at_eight, clock, 1000)


@pytest.mark.parametrize(
    ("before", "after"),
    [(compute_bound, memory_bound), (memory_bound, compute_bound), (memory_bound, worse_together)],
)
def test_it_learns_anew_when_the_machine_changes(clock: Clock, before: Cost, after: Cost) -> None:
    gain = Gain(32)
    seconds_per_entry(gain, before, clock, 3000)
    changed = clock.now
    while clock.now < changed + 900:  # it may pause for five minutes
        seconds_per_entry(gain, after, clock, 100)
    assert seconds_per_entry(gain, after, clock, 2000) <= 1.1 * alone_or_merged(after)


def test_without_adapting_the_limit_stays() -> None:
    gain = Gain(32, adaptive=False)
    for _ in range(1000):
        gain.ran(1, tiny(1))
        gain.ran(32, 100.0)
    assert gain.limit == 32


@pytest.mark.parametrize("largest", [1, 2, 3, 31, 32, 33, 65_536])
def test_the_limit_is_within_the_largest_batch(clock: Clock, largest: int) -> None:
    gain, chance = Gain(largest), random.Random(0)
    for _ in range(2000):
        clock.now += chance.choice((0.001, 1.0, 400.0))
        gain.ran(chance.choice((0, 1, largest, largest + 1, chance.randint(1, largest))), chance.random())
        assert 1 <= gain.limit <= largest
