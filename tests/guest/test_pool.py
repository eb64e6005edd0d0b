"""Threads and lanes: each job runs once or is given up once, and no lane takes more than its share."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_wasm.errors import DeadlineExceeded, QueueFull
from kserve_wasm.guest.pool import KEPT_IDLE, GuestPool, Job, Lane
from tests.support.counts import count

SOON = 60.0


def wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def job(run: object, given_up: list[Exception] | None = None, within: float = SOON) -> Job:
    return Job(run, (given_up if given_up is not None else []).append, time.monotonic() + within)  # type: ignore[arg-type]


def test_a_lane_runs_no_more_than_its_share_and_the_rest_waits() -> None:
    pool, gate, ran = GuestPool(8), threading.Event(), []
    lane = Lane(pool, workers=2, queue=3)
    for _ in range(5):
        lane.submit(job(lambda: (gate.wait(), ran.append(1))))
    assert (lane.running, lane.waiting) == (2, 3)
    with pytest.raises(QueueFull, match="3 requests wait") as full:
        lane.submit(job(lambda: ran.append(1)))
    assert full.value.retry_after > 0
    gate.set()
    wait_for(lambda: len(ran) == 5 and lane.running == 0, "all five run")


def test_a_lane_never_takes_more_than_half_of_the_threads() -> None:
    pool, gate, done = GuestPool(4), threading.Event(), threading.Event()
    greedy = Lane(pool, workers=1000, queue=1000)
    for _ in range(100):
        greedy.submit(job(gate.wait))
    assert greedy.running == 2
    Lane(pool, workers=1, queue=0).submit(job(done.set))
    assert done.wait(30)
    gate.set()


def test_a_job_that_no_thread_has_come_to_can_still_be_taken_back() -> None:
    """It has a place among its lane's workers, but other lanes have all the threads."""
    pool, gate = GuestPool(2), threading.Event()
    for _ in range(2):
        Lane(pool, 1, 0).submit(job(gate.wait))
    late = job(lambda: pytest.fail("ran although it was taken back"))
    lane = Lane(pool, 1, 0)
    lane.submit(late)
    assert lane.discard(late)
    assert not lane.discard(late)
    gate.set()
    wait_for(lambda: lane.running == 0, "the place is free again")


def test_a_system_without_threads_is_an_error_of_that_request(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, done = GuestPool(4), threading.Event()
    lane = Lane(pool, 2, 5)

    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(QueueFull, match="can't start new thread"):
                lane.submit(job(lambda: pytest.fail("ran although it was refused")))
    assert lane.running == 0
    lane.submit(job(done.set))
    assert done.wait(30)
    # With one thread there, a second that is refused only means waiting.
    gate, more = threading.Event(), threading.Event()
    lane.submit(job(gate.wait))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        lane.submit(job(more.set))
    gate.set()
    assert more.wait(30)


def test_a_blocked_lane_does_not_hold_up_another() -> None:
    pool, gate, done = GuestPool(4), threading.Event(), threading.Event()
    blocked, free = Lane(pool, 2, 100), Lane(pool, 2, 100)
    for _ in range(50):
        blocked.submit(job(gate.wait))
    free.submit(job(done.set))
    assert done.wait(30)
    gate.set()


def test_what_waited_past_its_deadline_is_given_up_and_not_run() -> None:
    lane, gate = Lane(GuestPool(1), 1, 10), threading.Event()
    given_up: list[Exception] = []
    lane.submit(job(gate.wait))
    lane.submit(job(lambda: pytest.fail("ran after its deadline"), given_up, within=0.0))
    gate.set()
    wait_for(lambda: given_up, "the job is given up")
    assert isinstance(given_up[0], DeadlineExceeded)


def test_a_job_that_is_taken_back_does_not_run() -> None:
    lane, gate, ran = Lane(GuestPool(1), 1, 10), threading.Event(), []
    first, second = job(gate.wait), job(lambda: ran.append(2))
    lane.submit(first)
    lane.submit(second)
    lane.submit(job(lambda: ran.append(3)))
    assert lane.discard(second)
    assert not lane.discard(second)
    wait_for(lambda: first.taken, "the first runs")
    assert not lane.discard(first)
    gate.set()
    wait_for(lambda: ran == [3] and lane.running == 0, "the third runs")


def test_idle_threads_are_used_before_new_ones_are_started() -> None:
    pool = GuestPool(1000)
    lane = Lane(pool, 1000, 10)
    for _ in range(100):
        done = threading.Event()
        lane.submit(job(done.set))
        assert done.wait(30)
        wait_for(lambda: pool.idle == pool.threads, "the thread is idle again")
    assert pool.threads == 1


def test_the_most_urgent_of_those_that_wait_runs_first_and_of_equals_the_first_to_come() -> None:
    lane, gate, ran = Lane(GuestPool(1), 1, 10), threading.Event(), []
    lane.submit(job(gate.wait))
    made = []
    for name, priority in [("b1", 2), ("c1", 3), ("a1", 1), ("b2", 2), ("a2", 1), ("c2", 3), ("b3", 2)]:
        made.append(Job(lambda n=name: ran.append(n), pytest.fail, time.monotonic() + SOON, priority))
        lane.submit(made[-1])
    assert lane.discard(made[3])
    assert lane.waiting == 6
    gate.set()
    wait_for(lambda: lane.running == 0, "all run")
    assert ran == ["a1", "a2", "b1", "b3", "c1", "c2"]
    assert lane.waiting == 0


def test_idle_threads_end_but_for_a_few_and_the_rest_still_work() -> None:
    pool, gate = GuestPool(100, idle_seconds=0.05), threading.Event()
    for _ in range(40):
        pool.run(gate.wait)
    assert pool.threads == 40
    gate.set()
    wait_for(lambda: pool.threads == KEPT_IDLE, "the others end")
    done = threading.Semaphore(0)
    for _ in range(200):
        pool.run(done.release)
    for _ in range(200):
        assert done.acquire(timeout=30)


def test_work_that_comes_as_threads_end_is_done() -> None:
    pool, done = GuestPool(32, idle_seconds=0.0005), threading.Semaphore(0)
    for round_ in range(300):
        for _ in range(8):
            pool.run(done.release)
        for _ in range(8):
            assert done.acquire(timeout=30)
        time.sleep(0.0001 * (round_ % 10))
    assert pool.threads <= 32


def test_a_thread_keeps_nothing_of_the_work_that_it_did() -> None:
    class Request:
        def __call__(self) -> None: ...

    pool, request = GuestPool(1), Request()
    alive = weakref.ref(request)
    pool.run(request)
    del request
    wait_for(lambda: alive() is None, "the work is freed")


@settings(max_examples=60)
@given(
    workers=st.integers(1, 4),
    queue=st.integers(0, 8),
    threads=st.integers(1, 4),
    plan=st.lists(
        st.tuples(st.sampled_from(["run", "late", "discard"]), st.integers(0, 2), st.integers(0, 3)),
        max_size=30,
    ),
)
def test_every_job_ends_exactly_once(
    workers: int, queue: int, threads: int, plan: list[tuple[str, int, int]]
) -> None:
    lane = Lane(GuestPool(threads), workers, queue)
    ends: Counter[tuple[int, str]] = Counter()
    expected = 0
    most = 0
    inside = 0
    lock = threading.Lock()

    def work(number: int, pause: int) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(pause * 0.0005)
        with lock:
            inside -= 1
            ends[number, "ran"] += 1

    def give_up(number: int) -> None:
        with lock:
            ends[number, "given up"] += 1

    for number, (kind, pause, priority) in enumerate(plan):
        within = -1.0 if kind == "late" else SOON
        made = Job(
            lambda n=number, p=pause: work(n, p),
            lambda _e, n=number: give_up(n),
            time.monotonic() + within,
            priority,
        )
        try:
            lane.submit(made)
        except QueueFull:
            continue
        expected += 1
        if kind == "discard" and lane.discard(made):
            with lock:
                ends[number, "discarded"] += 1
    wait_for(lambda: sum(ends.values()) == expected and lane.running == 0, f"{expected} ends, got {ends}")
    assert most <= min(workers, max(1, threads // 2))
    assert set(ends.values()) <= {1}
    assert len({number for number, _ in ends}) == expected
    assert not any(plan[n][0] == "late" and how == "ran" for n, how in ends)
    count("schedules of jobs on threads")
