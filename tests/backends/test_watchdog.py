from __future__ import annotations

import logging
import threading
import time

import pytest

from kserve_wasm.backends.watchdog import Watchdog

LATER = 3600.0


def test_what_passes_its_deadline_is_stopped_and_not_before() -> None:
    dog, stopped = Watchdog(), threading.Event()
    deadline = time.monotonic() + 0.05
    when: list[float] = []
    kept = dog.watch(deadline, lambda: (when.append(time.monotonic()), stopped.set())[0])
    assert stopped.wait(60)
    assert when[0] >= deadline
    dog.forget(kept)


def test_an_earlier_deadline_is_seen_while_the_thread_sleeps_for_a_later_one() -> None:
    dog, stopped = Watchdog(), threading.Event()
    late = dog.watch(time.monotonic() + LATER, lambda: pytest.fail("far too early"))
    time.sleep(0.05)  # the thread sleeps now
    early = dog.watch(time.monotonic() + 0.01, stopped.set)
    assert stopped.wait(60)
    dog.forget(early)
    dog.forget(late)


def test_what_ended_is_left_alone() -> None:
    dog, stopped, after = Watchdog(), threading.Event(), threading.Event()
    dog.forget(dog.watch(time.monotonic() + 0.02, stopped.set))
    kept = dog.watch(time.monotonic() + 0.05, after.set)
    assert after.wait(60)
    assert not stopped.is_set()
    dog.forget(kept)


def test_forgetting_what_was_stopped_already_keeps_the_others() -> None:
    dog, first, second = Watchdog(), threading.Event(), threading.Event()
    watch = dog.watch(time.monotonic(), first.set)
    assert first.wait(60)
    others = [dog.watch(time.monotonic() + 0.1, second.set) for _ in range(50)]
    dog.forget(watch)
    assert second.wait(60)
    for other in others:
        dog.forget(other)


def test_what_is_called_may_watch_something_itself() -> None:
    dog, stopped = Watchdog(), threading.Event()
    kept = []

    def again() -> None:
        kept.append(dog.watch(time.monotonic() + 0.02, stopped.set))

    kept.append(dog.watch(time.monotonic() + 0.02, again))
    assert stopped.wait(60)
    for watch in kept:
        dog.forget(watch)


def test_a_stop_that_fails_is_logged_and_the_next_still_comes(caplog: pytest.LogCaptureFixture) -> None:
    dog, stopped = Watchdog(), threading.Event()

    def fails() -> None:
        raise OSError("no")

    with caplog.at_level(logging.ERROR):
        first = dog.watch(time.monotonic(), fails)
        second = dog.watch(time.monotonic() + 0.05, stopped.set)
        assert stopped.wait(60)
    assert "stopping a run past its deadline failed" in caplog.text
    dog.forget(first)
    dog.forget(second)


def test_every_deadline_of_many_threads_is_kept() -> None:
    dog = Watchdog()
    missed: list[int] = []

    def work(thread: int) -> None:
        for i in range(200):
            if i % 20:
                dog.forget(dog.watch(time.monotonic() + LATER, lambda: missed.append(-1)))
                continue
            stopped = threading.Event()
            watch = dog.watch(time.monotonic() + 0.001 * (thread + 1), stopped.set)
            if not stopped.wait(60):
                missed.append(thread)
            dog.forget(watch)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missed == []


def test_one_thread_serves_all_and_runs_with_a_later_deadline_do_not_wake_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dog = Watchdog()
    wakes: list[None] = []
    wake = dog._wake
    monkeypatch.setattr(dog, "_wake", lambda: (wakes.append(None), wake())[1])
    first = dog.watch(time.monotonic() + LATER, lambda: None)
    time.sleep(0.05)  # the thread sleeps to this deadline from now on
    before = threading.active_count()
    for _ in range(1000):
        dog.forget(dog.watch(time.monotonic() + LATER + 1, lambda: None))
    assert len(wakes) == 1
    assert threading.active_count() == before
    dog.forget(first)
