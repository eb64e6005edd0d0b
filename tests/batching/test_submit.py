"""Computations that no thread waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kserve_wasm.batching import Caller
from kserve_wasm.errors import BackendError, DeadlineExceeded, ModelNotReady, QueueFull, RequestCancelled
from kserve_wasm.tensors import Tensor
from tests.batching.conftest import Schedule
from tests.batching.graphs import NumpyGraph, doubled, failing_for, fp32
from tests.batching.threads import Computation, until, waits


def test_a_lone_one_runs_at_once_where_it_is_told_to(schedule: Schedule) -> None:
    """Also where others would wait for each other."""
    graph = NumpyGraph()
    scheduler = schedule(graph, max_queue_delay=3600.0)
    outcomes: list[Any] = []
    work: list[Callable[[], None]] = []
    scheduler.submit(fp32([1]), Caller(), outcomes.append, work.append)
    assert graph.runs == []
    (run,) = work
    run()
    (outcome,) = outcomes
    assert outcome["y"].numpy().tolist() == [[3]]
    scheduler.close()


def test_those_that_wait_run_together_with_threads_that_do(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph)
    graph.gate.clear()
    first = Computation(scheduler, fp32([0]), submits=True).start()
    assert graph.began.acquire(timeout=60)
    waiting = [Computation(scheduler, fp32([n]), submits=n % 2 == 0).start() for n in range(1, 7)]
    until(lambda: waits(scheduler) == 6, "all in the queue")
    graph.gate.set()
    assert [one.result().item() for one in (first, *waiting)] == [2 * n + 1 for n in range(7)]
    assert graph.runs == [1, 6]
    scheduler.close()


def test_deadlines_are_kept_without_a_thread(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph)
    graph.gate.clear()
    blocker = Computation(scheduler, fp32([0])).start()
    assert graph.began.acquire(timeout=60)
    hasty = Computation(scheduler, fp32([1]), Caller(time.monotonic() + 0.1), submits=True).start()
    gone = Computation(scheduler, fp32([2]), submits=True).start()
    patient = Computation(scheduler, fp32([3]), submits=True).start()
    assert isinstance(hasty.outcome(), DeadlineExceeded)
    gone.caller.cancel()
    gone.caller.cancel()
    assert isinstance(gone.outcome(), RequestCancelled)
    assert blocker.running
    graph.gate.set()
    assert patient.result().item() == 7
    blocker.join()
    scheduler.close()


def test_a_delay_ends_without_a_thread(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph, max_queue_delay=0.1)
    graph.gate.clear()
    blocker = Computation(scheduler, fp32([0])).start()
    assert graph.began.acquire(timeout=60)
    waiting = [Computation(scheduler, fp32([n]), submits=True).start() for n in (1, 2)]
    graph.gate.set()
    assert [one.result().item() for one in (blocker, *waiting)] == [1, 3, 5]
    assert graph.runs == [1, 2]
    scheduler.close()


def test_only_the_culprit_fails_and_each_is_told_once(schedule: Schedule) -> None:
    graph = NumpyGraph(failing_for(13))
    scheduler = schedule(graph)
    graph.gate.clear()
    blocker = Computation(scheduler, fp32([0])).start()
    assert graph.began.acquire(timeout=60)
    waiting = [Computation(scheduler, fp32([n]), submits=True).start() for n in (1, 13, 2)]
    graph.gate.set()
    assert [waiting[i].result().item() for i in (0, 2)] == [3, 5]
    assert isinstance(waiting[1].outcome(), BackendError)
    blocker.join()
    scheduler.close()
    assert [len(one.answers) for one in waiting] == [1, 1, 1]


def test_a_deadline_that_passes_while_a_batch_is_run_for_others_is_kept_when_that_fails(
    schedule: Schedule,
) -> None:
    """The one with the latest deadline leads the run. It fails, and all wait again: one of them for too long."""
    go_on = threading.Event()

    def fails_late(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if inputs["x"].shape[0] > 1:
            assert go_on.wait(60)
            raise BackendError("together they fail")
        return doubled(inputs)

    graph = NumpyGraph(fails_late)
    scheduler = schedule(graph)
    graph.gate.clear()
    blocker = Computation(scheduler, fp32([0])).start()
    assert graph.began.acquire(timeout=60)
    leader = Computation(scheduler, fp32([1]), Caller(time.monotonic() + 0.4), submits=True).start()
    rider = Computation(scheduler, fp32([2]), Caller(time.monotonic() + 0.3), submits=True).start()
    graph.gate.set()
    blocker.join()
    assert isinstance(rider.outcome(), DeadlineExceeded)
    time.sleep(0.3)
    assert leader.running
    go_on.set()
    assert isinstance(leader.outcome(), DeadlineExceeded)
    scheduler.close()


def refuse(_work: Callable[[], None]) -> None:
    raise QueueFull("no thread for it")


def test_where_there_is_no_thread_for_a_batch_its_requests_are_refused(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph)
    outcomes: list[Any] = []
    scheduler.submit(fp32([1]), Caller(), outcomes.append, refuse)
    assert isinstance(outcomes.pop(), QueueFull)
    assert scheduler.compute(fp32([1]), Caller())["y"].numpy().item() == 3
    scheduler.close()


def test_close_ends_also_where_there_is_no_thread_for_those_that_wait(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph, slots=2, max_queue_delay=3600.0)
    graph.gate.clear()
    blockers = [Computation(scheduler, fp32([0])).start() for _ in range(2)]
    for _ in blockers:
        assert graph.began.acquire(timeout=60)
    outcomes: list[Any] = []
    scheduler.submit(fp32([1]), Caller(), outcomes.append, refuse)
    graph.gate.set()
    for blocker in blockers:
        blocker.join()
    assert outcomes == []
    closing = threading.Thread(target=scheduler.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert isinstance(outcomes.pop(), QueueFull)


def test_what_is_refused_at_once_is_raised_and_not_told(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph, max_queue_size=1)
    told: list[Any] = []
    gone = Caller()
    gone.cancel()
    with pytest.raises(RequestCancelled):
        scheduler.submit(fp32([1]), gone, told.append, refuse)
    graph.gate.clear()
    blocker = Computation(scheduler, fp32([0])).start()
    assert graph.began.acquire(timeout=60)
    waiting = Computation(scheduler, fp32([1]), submits=True).start()
    with pytest.raises(QueueFull):
        scheduler.submit(fp32([2]), Caller(), told.append, refuse)
    graph.gate.set()
    for one in (blocker, waiting):
        one.join()
    scheduler.close()
    with pytest.raises(ModelNotReady):
        scheduler.submit(fp32([2]), Caller(), told.append, refuse)
    assert told == []


def test_a_failed_batch_whose_time_is_over_is_not_run_again(schedule: Schedule) -> None:
    """Nobody would be left to take it out of the queue."""
    soon = time.monotonic() + 0.5

    def fails_late(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if inputs["x"].shape[0] == 1:
            return doubled(inputs)
        time.sleep(max(0.0, soon + 0.05 - time.monotonic()))
        raise BackendError("out of memory")

    graph = NumpyGraph(fails_late)
    scheduler = schedule(graph)
    graph.gate.clear()
    blocker = Computation(scheduler, fp32([0])).start()
    assert graph.began.acquire(timeout=60)
    late = [Computation(scheduler, fp32([n]), Caller(soon), submits=True).start() for n in (1, 2)]
    graph.gate.set()
    assert blocker.result().item() == 1
    for one in late:
        assert isinstance(one.outcome(), DeadlineExceeded)
    assert graph.runs == [1, 2]
    scheduler.close()


def test_one_whose_answer_cannot_be_taken_keeps_nobody_from_theirs(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph)
    graph.gate.clear()
    blocker = Computation(scheduler, fp32([0])).start()
    assert graph.began.acquire(timeout=60)

    def broken(_outcome: object) -> None:
        raise RuntimeError("the client's connection is gone")

    scheduler.submit(fp32([1]), Caller(), broken, lambda work: threading.Thread(target=work).start())
    other = Computation(scheduler, fp32([2]), submits=True).start()
    graph.gate.set()
    assert other.result().item() == 5
    blocker.join()
    scheduler.close()
