"""When requests run, and what each of them gets, step by step on a graph that is held."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Mapping

import numpy as np
import pytest

from kserve_wasm.batching import BatchScheduler, Caller
from kserve_wasm.errors import (
    BackendError,
)
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.tensors import Tensor
from tests.batching.conftest import Schedule
from tests.batching.graphs import NumpyGraph, doubled, failing_for, fp32
from tests.batching.threads import Computation, until, waits


def hold(scheduler: BatchScheduler, graph: NumpyGraph, caller: Caller | None = None) -> Computation:
    """A computation that runs until ``graph.gate`` is set."""
    graph.gate.clear()
    blocker = Computation(scheduler, fp32([0]), caller).start()
    assert graph.began.acquire(timeout=60)
    return blocker


def queue(scheduler: BatchScheduler, *inputs: Mapping[str, Tensor], **caller: float) -> list[Computation]:
    """Computations that wait, in this order."""
    waiting = []
    for one in inputs:
        before = waits(scheduler)
        waiting.append(Computation(scheduler, one, Caller(**caller)).start())
        until(lambda before=before: waits(scheduler) > before, "a computation in the queue")
    return waiting


def at_rest(scheduler: BatchScheduler) -> bool:
    return not scheduler._running and not waits(scheduler)


def test_a_lone_request_runs_at_once_on_its_own_thread(schedule: Schedule) -> None:
    threads = []

    def run(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        threads.append(threading.current_thread())
        return doubled(inputs)

    scheduler = schedule(NumpyGraph(run), max_queue_delay=3600.0)
    assert scheduler.compute(fp32([1, 2]), Caller())["y"].numpy().tolist() == [[3, 5]]
    assert threads == [threading.current_thread()]
    scheduler.close()


def test_requests_that_come_during_a_run_form_the_next_batch(
    schedule: Schedule, metrics: ModelMetrics
) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([2], [3]), fp32([4]))
    assert graph.runs == [1]
    graph.gate.set()
    assert [w.result().tolist() for w in waiting] == [[[3]], [[5], [7]], [[9]]]
    assert blocker.result().tolist() == [[1]]
    assert graph.runs == [1, 4]
    assert at_rest(scheduler)
    statistics = metrics.statistics.snapshot()
    assert (statistics["execution_count"], statistics["inference_count"]) == (2, 5)
    assert all(w.caller.queued_ns > 0 for w in waiting)
    assert blocker.caller.queued_ns == 0
    scheduler.close()


def test_no_more_runs_at_a_time_than_slots(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph, slots=2, max_batch_size=2)
    graph.gate.clear()
    computations = [Computation(scheduler, fp32([i])).start() for i in range(8)]
    until(lambda: waits(scheduler) == 6, "all others in the queue")
    graph.gate.set()
    assert [c.result().item() for c in computations] == [2 * i + 1 for i in range(8)]
    assert graph.most == 2
    assert sum(graph.runs) == 8
    scheduler.close()


def test_a_thread_that_must_not_wait_runs_at_once_and_alone(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph)
    blocker = hold(scheduler, graph)
    (waiting,) = queue(scheduler, fp32([1]))
    urgent = Computation(scheduler, fp32([2]), Caller(may_wait=False)).start()
    assert graph.began.acquire(timeout=60)
    assert graph.runs == [1, 1]
    graph.gate.set()
    assert [c.result().item() for c in (blocker, waiting, urgent)] == [1, 3, 5]
    assert at_rest(scheduler)
    scheduler.close()


def test_a_failed_batch_is_run_again_one_by_one_and_only_the_culprit_fails(
    schedule: Schedule, metrics: ModelMetrics
) -> None:
    graph = NumpyGraph(failing_for(13))
    scheduler = schedule(graph)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([13]), fp32([2]))
    graph.gate.set()
    assert [waiting[i].result().item() for i in (0, 2)] == [3, 5]
    with pytest.raises(BackendError, match="13 is not for it"):
        waiting[1].result()
    blocker.join()
    assert graph.runs == [1, 3, 1, 1, 1]
    assert at_rest(scheduler)
    assert metrics.statistics.snapshot()["inference_count"] == 3
    scheduler.close()


def test_a_batch_that_fails_after_its_delay_is_run_again_one_by_one(schedule: Schedule) -> None:
    """Its leader woke by itself, when the delay was over: nothing of that is left when it is to lead again."""
    graph = NumpyGraph(failing_for(13))
    scheduler = schedule(graph, max_queue_delay=0.2)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([13]), fp32([2]))
    graph.gate.set()
    assert blocker.result().item() == 1
    assert [waiting[i].result().item() for i in (0, 2)] == [3, 5]
    with pytest.raises(BackendError, match="13 is not for it"):
        waiting[1].result()
    assert graph.runs == [1, 3, 1, 1, 1]
    assert at_rest(scheduler)
    scheduler.close()


def test_what_was_run_again_waited_only_until_then(schedule: Schedule) -> None:
    graph = NumpyGraph(failing_for(13))
    scheduler = schedule(graph)
    blocker = hold(scheduler, graph)
    began = time.monotonic()
    waiting = queue(scheduler, fp32([1]), fp32([13]))
    time.sleep(0.05)
    graph.gate.set()
    waiting[0].join()
    waited = waiting[0].caller.queued_ns * 1e-9
    assert 0.05 <= waited <= time.monotonic() - began
    blocker.join()
    waiting[1].join()
    scheduler.close()


def test_when_its_delay_is_over_a_request_runs_whoever_else_came_and_went(schedule: Schedule) -> None:
    """A more urgent one that came later and left does not make it wait for ever."""
    graph = NumpyGraph()
    scheduler = schedule(graph, max_queue_delay=0.3, priority_levels=2)
    blocker = hold(scheduler, graph)
    (patient,) = queue(scheduler, fp32([1]), priority=2)
    time.sleep(0.2)
    (urgent,) = queue(scheduler, fp32([2]), priority=1)
    graph.gate.set()
    blocker.join()
    time.sleep(0.15)  # the patient one's time has come, not the urgent one's
    urgent.caller.cancel()
    assert patient.result().item() == 3
    urgent.join()
    scheduler.close()


def test_nothing_of_a_failed_request_is_kept(schedule: Schedule) -> None:
    """Not even until the garbage collector runs."""
    graph = NumpyGraph(failing_for(13))
    scheduler = schedule(graph)
    gc.collect()
    gc.disable()
    try:
        kept = []

        def ask(value: float) -> None:
            array = np.full((1, 1), value, np.float32)
            kept.append(weakref.ref(array))
            inputs = {"x": Tensor.from_numpy(array)}
            del array
            with pytest.raises(BackendError):
                scheduler.compute(inputs, Caller())

        ask(13)
        blocker = hold(scheduler, graph)
        threads = [threading.Thread(target=ask, args=(13,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: waits(scheduler) == 3, "all in the queue")
        graph.gate.set()
        for thread in threads:
            thread.join()
        blocker.join()
        assert [ref() for ref in kept] == [None] * 4
    finally:
        gc.enable()
    scheduler.close()
