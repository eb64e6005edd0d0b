from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.batching import Caller, DirectScheduler
from kserve_wasm.errors import DeadlineExceeded, InvalidRequest, ModelNotReady
from kserve_wasm.tensors import Tensor
from tests.backends import models
from tests.backends.contract import Begun


def counting(observed: list[float] | None = None) -> DirectScheduler:
    graph = open_graph(GraphSource("g", "onnx", data=models.count().SerializeToString()), "cpu")
    return DirectScheduler(graph, None if observed is None else observed.append)


def to(n: int) -> dict[str, Tensor]:
    return {"n": Tensor.from_numpy(np.array(n))}


def test_it_answers_on_the_callers_thread_and_tells_how_long_it_took() -> None:
    observed: list[tuple[threading.Thread, float]] = []
    graph = open_graph(GraphSource("g", "onnx", data=models.count().SerializeToString()), "cpu")
    scheduler = DirectScheduler(graph, lambda seconds: observed.append((threading.current_thread(), seconds)))
    assert scheduler.graph is graph
    start = time.perf_counter()
    assert scheduler.compute(to(100), Caller())["y"].numpy() == [100]
    ((thread, seconds),) = observed
    assert thread is threading.current_thread()
    assert 0 < seconds <= time.perf_counter() - start
    scheduler.close()


def test_errors_pass_and_are_observed_too() -> None:
    observed: list[float] = []
    scheduler = counting(observed)
    with pytest.raises(InvalidRequest):
        scheduler.compute({}, Caller())
    with pytest.raises(DeadlineExceeded):
        scheduler.compute(to(1 << 60), Caller(time.monotonic() + 0.05))
    assert len(observed) == 2
    assert observed[1] >= 0.04
    scheduler.close()


def test_computations_run_side_by_side() -> None:
    """Two runs that each wait until both have begun would never end behind a lock."""
    scheduler = counting()
    both = threading.Barrier(2)

    class Meets(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            both.wait(60)
            return super().__getitem__(name)

    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(scheduler.compute, Meets(to(n)), Caller()) for n in (5, 6)]
        assert [int(a.result()["y"].numpy()[0]) for a in answers] == [5, 6]
    scheduler.close()


def test_close_waits_for_what_runs_and_then_refuses() -> None:
    observed: list[float] = []
    scheduler = counting(observed)
    inputs = Begun(to(100_000))
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(scheduler.compute, inputs, Caller())
        assert inputs.begun.wait(60)
        scheduler.close()
        assert len(observed) == 1
        assert answer.result()["y"].numpy() == [100_000]
    with pytest.raises(ModelNotReady, match="graph 'g' is closed"):
        scheduler.compute(to(1), Caller())
    with pytest.raises(ModelNotReady):
        scheduler.graph.run(to(1))
    scheduler.close()
