"""When requests run, and what each of them gets, step by step on a graph that is held."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
import weakref
from collections.abc import Mapping

import numpy as np
import pytest

from kserve_wasm.batching import BatchScheduler, Caller
from kserve_wasm.errors import (
    BackendError,
    DeadlineExceeded,
    ModelNotReady,
    QueueFull,
    RequestCancelled,
)
from kserve_wasm.metrics import BATCH_REJECTED, BATCH_RETRIES, ModelMetrics
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


# --- The order of runs


def test_more_urgent_requests_run_first_and_those_that_name_no_priority_have_the_default(
    schedule: Schedule,
) -> None:
    order = []

    def run(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        order.append(int(inputs["x"].numpy()[0, 0]))
        return doubled(inputs)

    graph = NumpyGraph(run)
    scheduler = schedule(graph, priority_levels=3, default_priority_level=2, max_batch_size=2)
    blocker = hold(scheduler, graph)
    waiting = []
    for number, priority in ((1, 3), (2, 0), (3, 1), (4, 2), (5, 1)):
        waiting += queue(scheduler, fp32([number], [number]), priority=priority)  # none has room beside it
    graph.gate.set()
    for one in (blocker, *waiting):
        one.join()
    assert order == [0, 3, 5, 2, 4, 1]
    scheduler.close()


def test_priorities_count_only_where_there_are_levels(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph)
    blocker = hold(scheduler, graph)
    waiting = [queue(scheduler, fp32([i]), priority=p)[0] for i, p in ((1, 9), (2, 1))]
    assert [request.inputs is w.inputs for request, w in zip(scheduler._queue.waiting, waiting, strict=True)]
    graph.gate.set()
    for one in (blocker, *waiting):
        one.join()
    scheduler.close()


def test_requests_of_other_shapes_run_by_themselves(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([1, 2]), fp32([3]), fp32([3, 4]))
    graph.gate.set()
    assert [w.result().tolist() for w in waiting] == [[[3]], [[3, 5]], [[7]], [[7, 9]]]
    blocker.join()
    assert graph.runs == [1, 2, 2]
    scheduler.close()


def test_a_full_batch_does_not_wait_for_its_delay(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph, max_queue_delay=3600.0, max_batch_size=3)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([2]))
    graph.gate.set()
    blocker.join()
    assert graph.runs == [1]
    (last,) = [Computation(scheduler, fp32([3])).start()]
    assert [w.result().item() for w in (*waiting, last)] == [3, 5, 7]
    assert graph.runs == [1, 3]
    scheduler.close()


def test_a_delay_ends(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph, max_queue_delay=0.05)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([2]))
    graph.gate.set()
    assert [w.result().item() for w in waiting] == [3, 5]
    blocker.join()
    assert graph.runs == [1, 2]
    scheduler.close()


# --- Who leaves


def counted(metric: object, metrics: ModelMetrics, *labels: str) -> float:
    return metric.labels(*metrics._labels, "g", *labels)._value.get()  # type: ignore[attr-defined]


class HeldWhenMerged(NumpyGraph):
    """Its merged runs wait until ``let_go`` is set, whatever their deadline."""

    def __init__(self) -> None:
        super().__init__(self._merged)
        self.merged = threading.Event()
        self.let_go = threading.Event()

    def _merged(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if inputs["x"].shape[0] > 1:
            self.merged.set()
            assert self.let_go.wait(60)
        return doubled(inputs)


def ride(scheduler: BatchScheduler, graph: HeldWhenMerged, seconds: list[float | None]) -> list[Computation]:
    """Computations with these deadlines, numbered from 1, in one run that is held."""
    blocker = hold(scheduler, graph)
    now = time.monotonic()
    waiting = []
    for number, limit in enumerate(seconds, 1):
        deadline = {} if limit is None else {"deadline": now + limit}
        waiting += queue(scheduler, fp32([number]), **deadline)
    graph.gate.set()
    assert graph.merged.wait(60)
    blocker.join()
    assert graph.runs == [1, len(seconds)]
    return waiting


def test_riders_leave_at_their_deadlines_and_the_others_do_not_notice(schedule: Schedule) -> None:
    """Nobody reads the memory of one that has left."""
    graph = HeldWhenMerged()
    scheduler = schedule(graph)
    waiting = ride(scheduler, graph, [0.5, 3600, 0.6, None])
    for i in (0, 2):
        assert isinstance(waiting[i].outcome(), DeadlineExceeded)
        waiting[i].inputs["x"].numpy().fill(1e9)
    assert waiting[1].running
    assert waiting[3].running
    graph.let_go.set()
    assert [waiting[i].result().item() for i in (1, 3)] == [5, 9]
    assert at_rest(scheduler)
    scheduler.close()


def test_a_rider_that_is_cancelled_leaves_at_once(schedule: Schedule) -> None:
    graph = HeldWhenMerged()
    scheduler = schedule(graph)
    waiting = ride(scheduler, graph, [60, 3600, 60])
    waiting[2].caller.cancel()
    assert isinstance(waiting[2].outcome(), RequestCancelled)
    waiting[2].inputs["x"].numpy().fill(1e9)
    assert waiting[0].running
    graph.let_go.set()
    assert [waiting[i].result().item() for i in (0, 1)] == [3, 5]
    scheduler.close()


def test_who_runs_the_batch_goes_on_for_the_others_when_it_is_cancelled(schedule: Schedule) -> None:
    graph = HeldWhenMerged()
    scheduler = schedule(graph)
    waiting = ride(scheduler, graph, [60, 3600, 60])
    waiting[1].caller.cancel()  # the latest deadline leads
    graph.let_go.set()
    assert [waiting[i].result().item() for i in (0, 2)] == [3, 7]
    waiting[1].join()
    assert at_rest(scheduler)
    scheduler.close()


def test_a_run_that_outlasts_all_deadlines_is_everybodys_own_error(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph)
    blocker = hold(scheduler, graph, Caller(time.monotonic() + 0.3))
    waiting = queue(scheduler, fp32([1]), fp32([2]), deadline=time.monotonic() + 0.6)
    errors = [w.outcome() for w in (blocker, *waiting)]
    assert all(isinstance(error, DeadlineExceeded) for error in errors)
    assert len(set(map(id, errors))) == 3
    assert at_rest(scheduler)
    graph.gate.set()
    assert scheduler.compute(fp32([1]), Caller())["y"].numpy().item() == 3
    scheduler.close()


def test_who_is_cancelled_while_it_waits_leaves_at_once(schedule: Schedule, metrics: ModelMetrics) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([2]), fp32([3]))
    waiting[1].caller.cancel()
    waiting[1].caller.cancel()
    assert isinstance(waiting[1].outcome(), RequestCancelled)
    assert blocker.running
    graph.gate.set()
    assert [waiting[i].result().item() for i in (0, 2)] == [3, 7]
    blocker.join()
    assert graph.runs == [1, 2]
    assert counted(BATCH_REJECTED, metrics, "cancelled") == 1
    scheduler.close()


def test_a_queue_timeout_ends_the_wait_but_not_a_run(schedule: Schedule, metrics: ModelMetrics) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph, queue_timeout=0.2)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([2]))
    assert all(isinstance(w.outcome(), DeadlineExceeded) for w in waiting)
    assert blocker.running
    assert counted(BATCH_REJECTED, metrics, "timeout") == 2
    graph.gate.set()
    assert blocker.result().item() == 1
    scheduler.close()


def test_a_full_queue_refuses_those_that_would_have_to_wait(
    schedule: Schedule, metrics: ModelMetrics
) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph, max_queue_size=2)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([2]))
    with pytest.raises(QueueFull, match="2 computations wait for graph 'numpy'") as caught:
        scheduler.compute(fp32([3]), Caller())
    assert caught.value.retry_after > 0
    assert counted(BATCH_REJECTED, metrics, "queue_full") == 1
    graph.gate.set()
    assert [w.result().item() for w in (blocker, *waiting)] == [1, 3, 5]
    assert scheduler.compute(fp32([3]), Caller())["y"].numpy().item() == 7
    scheduler.close()


def test_what_is_run_again_is_counted(schedule: Schedule, metrics: ModelMetrics) -> None:
    graph = NumpyGraph(failing_for(13))
    scheduler = schedule(graph)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([13]), fp32([2]))
    graph.gate.set()
    for one in (blocker, *waiting):
        one.join()
    assert counted(BATCH_RETRIES, metrics) == 3
    scheduler.close()


# --- The end


def test_close_waits_for_all_that_came_before_and_refuses_what_comes_after(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph, max_queue_delay=3600.0)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([2]), fp32([1, 2]))
    closing = [threading.Thread(target=scheduler.close, daemon=True) for _ in range(2)]
    for thread in closing:
        thread.start()
    until(lambda: scheduler._closed, "the closing")
    with pytest.raises(ModelNotReady, match="graph 'numpy' is closed"):
        scheduler.compute(fp32([3]), Caller())
    assert all(thread.is_alive() for thread in closing)
    graph.gate.set()
    for thread in closing:
        thread.join(60)
        assert not thread.is_alive()
    assert [w.result().tolist() for w in (blocker, *waiting)] == [[[1]], [[3]], [[5]], [[3, 5]]]
    scheduler.close()


def test_close_ends_delays(schedule: Schedule) -> None:
    graph = NumpyGraph()
    scheduler = schedule(graph, max_queue_delay=3600.0)
    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1]), fp32([1, 2]))
    graph.gate.set()
    blocker.join()
    assert waits(scheduler) == 2
    scheduler.close()
    assert [w.result().tolist() for w in waiting] == [[[3]], [[3, 5]]]


# --- Memory


def test_thousands_of_requests_leave_nothing_behind(schedule: Schedule) -> None:
    """Of 64 KiB each: leaving one in a hundred would show."""
    graph = NumpyGraph(failing_for(13))
    scheduler = schedule(graph, max_queue_delay=0.0005)
    width = 1 << 14

    def ask(client: int, requests: int) -> None:
        for i in range(requests):
            x = np.full((1 + i % 2, width), 13 if i % 50 == client else client + i, np.float32)
            caller = Caller(time.monotonic() + (0.0001 if i % 20 == client else 60))
            try:
                y = scheduler.compute({"x": Tensor.from_numpy(x)}, caller)["y"].numpy()
            except (BackendError, DeadlineExceeded):
                continue
            assert (y == 2 * (client + i) + 1).all()

    def clients(requests: int) -> None:
        threads = [threading.Thread(target=ask, args=(c, requests)) for c in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    blocker = hold(scheduler, graph)
    waiting = queue(scheduler, fp32([1] * width), fp32([2] * width))
    graph.gate.set()
    for one in (blocker, *waiting):
        one.join()  # now there is a buffer for batches
    del blocker, waiting, one
    clients(25)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        clients(250)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert max(graph.runs) > 2, "nothing was merged"
    assert after - before < 20 * 4 * width
    assert len(scheduler._merging._staging._kept) == 1
    scheduler.close()
