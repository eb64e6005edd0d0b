"""Who runs next, and with whom."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count as numbered
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kserve_wasm.artifact.config import Batching
from kserve_wasm.batching.queue import BatchQueue
from tests.support.counts import count

_ARRIVALS = numbered()


@dataclass(eq=False)
class Item:
    """A computation in the queue."""

    name: str
    rows: int = 1
    key: Hashable = "k"
    priority: int = 0
    since: float = 0.0
    until: float = math.inf

    def __post_init__(self) -> None:
        self.rank = (self.priority, next(_ARRIVALS))


def queue(*items: Item, **options: Any) -> BatchQueue[Item]:
    made: BatchQueue[Item] = BatchQueue(Batching(**{"max_batch_size": 8, **options}))
    for item in items:
        made.add(item)
    return made


def taken(waiting: BatchQueue[Item], now: float = 0.0, limit: int | None = None, **how: bool) -> str:
    return "".join(item.name for item in waiting.take(now, limit, **how))


def test_all_that_fit_together_are_taken_in_the_order_of_their_arrival() -> None:
    waiting = queue(Item("a"), Item("b", 3), Item("c", 4), Item("d"))
    assert taken(waiting) == "abc"
    assert taken(waiting) == "d"
    assert taken(waiting) == ""
    assert waiting.waiting == []


def test_more_urgent_ones_are_before_others() -> None:
    waiting = queue(
        Item("a", priority=2), Item("b", priority=1), Item("c", priority=2), Item("d", priority=1)
    )
    assert [item.name for item in waiting.waiting] == ["b", "d", "a", "c"]
    assert taken(waiting, limit=3) == "bda"


def test_only_equal_keys_go_together_and_none_of_those_without() -> None:
    waiting = queue(Item("a"), Item("b", key="l"), Item("c", key=None), Item("d", key=None), Item("e"))
    assert [taken(waiting) for _ in range(5)] == ["ae", "b", "c", "d", ""]


def test_a_limit_of_one_merges_nothing() -> None:
    waiting = queue(Item("a"), Item("b"), max_queue_delay=9.0)
    assert [taken(waiting, limit=1) for _ in range(3)] == ["a", "b", ""]


def test_a_limit_is_never_above_the_largest_batch() -> None:
    waiting = queue(*(Item(name) for name in "abcd"), max_batch_size=3)
    assert taken(waiting, limit=100) == "abc"


def test_smaller_ones_behind_one_that_does_not_fit_fill_the_batch() -> None:
    waiting = queue(Item("a", 5), Item("b", 5), Item("c", 3))
    assert taken(waiting) == "ac"
    assert taken(waiting) == "b"


def test_a_large_one_does_not_starve() -> None:
    """However many small ones come, it is the first sooner or later."""
    waiting = queue(Item("a", 5), Item("L", 8), Item("b"), Item("c"))
    assert taken(waiting) == "abc"
    waiting.add(Item("d"))
    waiting.add(Item("e"))
    assert taken(waiting) == "L"
    assert taken(waiting) == "de"
    assert taken(queue(Item("L", 8), Item("a")), limit=3) == "L"


def test_it_waits_for_others_until_its_delay_is_over() -> None:
    waiting = queue(Item("a", since=10.0), Item("b", since=10.5), max_queue_delay=1.0)
    assert taken(waiting, 10.9) == ""
    assert taken(waiting, 11.0) == "ab"
    assert taken(queue(Item("a", since=10.0), max_queue_delay=1.0), 10.0, ripe=True) == "a"


def test_a_full_batch_does_not_wait() -> None:
    waiting = queue(Item("a", 5, since=10.0), Item("b", 2, since=10.0), max_queue_delay=1.0)
    assert taken(waiting, 10.0) == ""
    waiting.add(Item("c", since=10.0))
    assert taken(waiting, 10.0) == "abc"


def test_who_waited_longest_ends_the_wait_of_all_that_go_with_it() -> None:
    waiting = queue(
        Item("late", priority=1, since=10.9), Item("early", priority=2, since=10.0), max_queue_delay=1.0
    )
    assert taken(waiting, 10.99) == ""
    assert taken(waiting, 11.0) == "lateearly"


def test_others_do_not_wait_for_the_first_ones_delay() -> None:
    waiting = queue(Item("a", since=10.9), Item("b", key="l", since=10.0), max_queue_delay=1.0)
    waiting.waiting[0].rank = (0, -1)
    assert taken(waiting, 11.0) == "b"
    assert taken(waiting, 11.0) == ""
    assert taken(waiting, 11.9) == "a"


def test_a_preferred_size_is_made_as_soon_as_there_are_enough() -> None:
    sizes = {"max_queue_delay": 1.0, "preferred_batch_size": (2, 4)}
    names = "abcdefg"
    assert taken(queue(*(Item(n) for n in names[:1]), **sizes)) == ""
    for waiting, expected in ((2, "ab"), (3, "ab"), (4, "abcd"), (7, "abcd")):
        assert taken(queue(*(Item(n) for n in names[:waiting]), **sizes)) == expected
    assert taken(queue(*(Item(n) for n in names), **sizes), limit=3) == "ab"
    assert taken(queue(Item("a"), **sizes), 1.0) == "a"
    assert taken(queue(Item("L", 7), Item("a"), **sizes)) == "L", "the first is never left behind"


def test_who_waited_too_long_is_not_taken() -> None:
    waiting = queue(Item("a", until=5.0), Item("b", until=6.0), Item("c", key=None, until=5.0))
    assert taken(waiting, 5.0) == "b"
    assert taken(waiting, 5.0) == ""
    assert [item.name for item in waiting.waiting] == ["a", "c"]
    for item in list(waiting.waiting):
        waiting.remove(item)
    assert waiting.waiting == []


items = st.builds(
    Item,
    name=st.just("x"),
    rows=st.integers(1, 8),
    key=st.sampled_from(("k", "k", "l", None)),
    priority=st.integers(0, 2),
    since=st.floats(0, 10),
    until=st.sampled_from((math.inf, math.inf, 5.0)),
)


@given(
    arrivals=st.lists(items, max_size=12),
    limit=st.sampled_from((None, 1, 3, 8)),
    delay=st.sampled_from((0.0, 4.0)),
    preferred=st.sampled_from(((), (2,), (2, 5))),
    step=st.sampled_from((0.5, 3.0)),
)
def test_everybody_is_taken_once_in_time_and_order(
    arrivals: list[Item], limit: int | None, delay: float, preferred: tuple[int, ...], step: float
) -> None:
    waiting = queue(*arrivals, max_queue_delay=delay, preferred_batch_size=preferred)
    now, gone = 0.0, []
    while now < 20:
        before = list(waiting.waiting)
        batch = waiting.take(now, limit)
        alive = [item for item in before if item.until > now]
        if batch:
            assert all(item in alive for item in batch)
            assert [item for item in before if item not in batch] == waiting.waiting
            assert batch == sorted(batch, key=lambda item: item.rank)
            assert len({item.key for item in batch}) == 1
            assert len(batch) == 1 or (batch[0].key is not None and limit != 1)
            assert len(batch) == 1 or sum(item.rows for item in batch) <= min(limit or 8, 8)
            same = [item for item in alive if item.key == batch[0].key]
            assert batch[0] is same[0], "the first of its kind is left behind"
            gone += batch
            continue
        assert not any(now >= item.since + delay for item in alive), "somebody waits for nothing"
        assert not any(item.key is None for item in alive)
        now += step
    left = [item for item in arrivals if item not in gone]
    assert all(item.until == 5.0 for item in left)
    assert len(gone) == len(set(map(id, gone)))
    count("queues that were emptied")
