"""What every scheduler must do, on real graphs: subclass :class:`SchedulerConformance` in a test module.

::

    class TestMine(SchedulerConformance):
        @pytest.fixture
        def open_scheduler(self) -> OpenScheduler:
            return my_open_function

The subclass's fixture may ask for others, of any scope. Schedulers are opened with a ``GraphSource`` that holds the
graph's bytes and a ``ModelConfig`` with one graph and its ``batching``, and closed when the test ends. Expected values
are NumPy's.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from kserve_wasm.artifact.config import Batching, ModelConfig, Padding
from kserve_wasm.backends import GraphSource
from kserve_wasm.batching import Caller, GraphScheduler, OpenScheduler
from kserve_wasm.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
    RequestCancelled,
    WasmServingError,
)
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.tensors import DTYPES, Tensor
from tests.backends import models
from tests.backends.contract import some_tensor
from tests.batching import graphs
from tests.batching.threads import Computation

Open = Callable[..., GraphScheduler]

CLIENTS = 16
REQUESTS = 12
"""Of each client."""

MERGING: dict[str, Any] = {
    "declared": True,
    "adaptive": False,
    "max_concurrent_batches": 1,
    "max_queue_delay": 0.002,
}
"""Options with which requests that take microseconds are merged."""

_NAMES = itertools.count()


class SchedulerConformance:
    """The suite."""

    @pytest.fixture
    def open_scheduler(self) -> OpenScheduler:
        """What opens the scheduler of a graph."""
        raise NotImplementedError

    @pytest.fixture
    def opened(self, open_scheduler: OpenScheduler) -> Iterator[Open]:
        """Opens schedulers of ONNX models, with options of ``batching:`` by name."""
        with ExitStack() as ends:

            def open_model(
                model: onnx.ModelProto, metrics: ModelMetrics | None = None, **options: Any
            ) -> GraphScheduler:
                batching = Batching(**{**MERGING, **options})
                source = GraphSource("default", "onnx", data=model.SerializeToString())
                name = f"conformance-{next(_NAMES)}"
                config = ModelConfig(
                    name, "1", Path("model.wasm"), 0, "", graphs=(source,), batching={"": batching}
                )
                metrics = metrics or ModelMetrics(name, "1")
                ends.callback(metrics.remove)
                scheduler = open_scheduler(source, config, metrics)
                ends.callback(scheduler.close)
                return scheduler

            yield open_model

    # --- Answers

    def test_it_tells_what_the_graph_takes_and_gives(self, opened: Open) -> None:
        graph = opened(models.mlp()).graph
        assert [(s.name, s.dtype.name, s.v2_shape) for s in graph.inputs] == [("x", "FP32", [-1, 4])]
        assert [(s.name, s.dtype.name, s.v2_shape) for s in graph.outputs] == [("y", "FP32", [-1, 3])]

    @pytest.mark.parametrize("options", [{}, {"declared": False}, {"adaptive": True}, {"max_batch_size": 1}])
    def test_many_clients_get_their_own_answers(self, opened: Open, options: dict[str, Any]) -> None:
        """1 to 6 entries in each request. Sums may be formed in another order, so the last bits may differ."""
        scheduler = opened(models.mlp(), **options)

        def ask(rng: np.random.Generator) -> None:
            x = rng.standard_normal((int(rng.integers(1, 7)), 4), dtype=np.float32)
            y = compute(scheduler, x=x)["y"]
            assert y.shape == (x.shape[0], 3)
            np.testing.assert_allclose(y, models.mlp_oracle(x), rtol=1e-4, atol=1e-5)

        many(ask)

    def test_clients_of_many_shapes_get_their_own_answers(self, opened: Open) -> None:
        scheduler = opened(graphs.twice_plus_one(), max_batch_size=8)

        def ask(rng: np.random.Generator) -> None:
            x = rng.standard_normal((int(rng.integers(1, 11)), int(rng.integers(0, 5))), dtype=np.float32)
            np.testing.assert_array_equal(compute(scheduler, x=x)["y"], 2 * x + 1, strict=True)

        many(ask)

    @pytest.mark.parametrize("declared", [True, False])
    def test_padding_does_not_show(self, opened: Open, declared: bool) -> None:
        padding = {"length": Padding((4, 8), {"x": 9.0})}
        scheduler = opened(graphs.twice_plus_one(), padding=padding, declared=declared)

        def ask(rng: np.random.Generator) -> None:
            x = rng.standard_normal((int(rng.integers(1, 5)), int(rng.integers(1, 11))), dtype=np.float32)
            np.testing.assert_array_equal(compute(scheduler, x=x)["y"], 2 * x + 1, strict=True)

        many(ask)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_type_comes_back_to_the_bit(self, opened: Open, dtype: str) -> None:
        scheduler = opened(models.identity(dtype, ["batch", 3]))

        def ask(rng: np.random.Generator) -> None:
            x = some_tensor(DTYPES[dtype], (int(rng.integers(1, 4)), 3), int(rng.integers(1 << 30)))
            raw = bytes(x.buffer())
            y = scheduler.compute({"x": x}, caller())["y"]
            assert (y.dtype, y.shape, bytes(y.buffer())) == (x.dtype, x.shape, raw)

        many(ask, clients=8, requests=6)

    def test_several_inputs_and_outputs_are_kept_apart(self, opened: Open) -> None:
        scheduler = opened(models.add_and_subtract())

        def ask(rng: np.random.Generator) -> None:
            a, b = rng.standard_normal((2, int(rng.integers(1, 5)), 3), dtype=np.float32)
            answer = compute(scheduler, a=a, b=b)
            np.testing.assert_array_equal(answer["sum"], a + b, strict=True)
            np.testing.assert_array_equal(answer["difference"], a - b, strict=True)

        many(ask)

    @pytest.mark.parametrize("rows", [0, 1, 33, 100])
    def test_any_number_of_entries_has_an_answer(self, opened: Open, rows: int) -> None:
        """None, and more than the largest batch."""
        x = np.random.default_rng(0).standard_normal((rows, 4), dtype=np.float32)
        y = compute(opened(models.mlp()), x=x)["y"]
        np.testing.assert_allclose(y, models.mlp_oracle(x), rtol=1e-4, atol=1e-5, strict=True)

    def test_memory_may_be_misaligned_and_read_only(self, opened: Open) -> None:
        scheduler = opened(graphs.twice_plus_one())

        def ask(rng: np.random.Generator) -> None:
            x = rng.standard_normal((2, 3), dtype=np.float32)
            body = memoryview(b"\n" + x.tobytes())[1:]
            y = scheduler.compute({"x": Tensor.from_buffer(DTYPES["FP32"], x.shape, body)}, caller())["y"]
            np.testing.assert_array_equal(y.numpy(), 2 * x + 1, strict=True)

        many(ask)

    def test_entries_that_are_not_independent_are_not_merged(self, opened: Open) -> None:
        """The signature says otherwise, but nobody declared it: right from the first request on."""
        scheduler = opened(graphs.minus_mean(), declared=False)

        def ask(rng: np.random.Generator) -> None:
            x = rng.standard_normal((int(rng.integers(1, 4)), 3), dtype=np.float32)
            y = compute(scheduler, x=x)["y"]
            np.testing.assert_allclose(y, x - x.mean(axis=0, keepdims=True), rtol=1e-4, atol=1e-5)

        many(ask)

    def test_requests_that_wait_run_together(self, opened: Open) -> None:
        metrics = ModelMetrics("together", "1")
        scheduler = opened(graphs.slow(), metrics)
        occupant = occupy(scheduler, 1)
        waiting = [Computation(scheduler, numbers(n), caller()).start() for n in range(8)]
        assert [one.result().tolist() for one in waiting] == [[n] for n in range(8)]
        assert_fails(occupant, DeadlineExceeded)
        statistics = metrics.statistics.snapshot()
        assert statistics["inference_count"] == 8
        assert statistics["execution_count"] < 8

    # --- Errors are their own request's

    def test_wrong_inputs_fail_alone(self, opened: Open) -> None:
        scheduler = opened(models.add_and_subtract())
        ones = np.ones((2, 3), np.float32)
        wrong: list[dict[str, npt.NDArray[Any]]] = [
            {"a": ones},
            {"a": ones, "b": ones, "c": ones},
            {"a": ones, "b": ones.astype(np.float64)},
            {"a": ones, "b": ones[0]},
            {"a": ones, "b": ones[:, :2]},
            {"a": np.ones((3, 3), np.float32), "b": ones},
            {"a": ones[:0], "b": ones},  # merged with another's entries it could be computed
            {"a": ones, "b": ones[:0]},
        ]

        def ask(rng: np.random.Generator) -> None:
            if rng.integers(2):
                with pytest.raises(InvalidRequest) as caught:
                    compute(scheduler, **wrong[rng.integers(len(wrong))])
                assert_safe(caught.value)
                return
            a, b = rng.standard_normal((2, int(rng.integers(1, 4)), 3), dtype=np.float32)
            np.testing.assert_array_equal(compute(scheduler, a=a, b=b)["sum"], a + b, strict=True)

        many(ask)

    @pytest.mark.parametrize("declared", [True, False])
    def test_values_that_the_graph_fails_for_fail_alone(self, opened: Open, declared: bool) -> None:
        scheduler = opened(graphs.lookup(), declared=declared)

        def ask(rng: np.random.Generator) -> None:
            i = rng.integers(0, 10, int(rng.integers(1, 4)))
            if rng.integers(12) == 0:
                i[-1] = 1000 + rng.integers(1000)
                with pytest.raises(WasmServingError, match=f"idx={i[-1]} ") as caught:
                    compute(scheduler, i=i)
                assert_safe(caught.value)
                return
            np.testing.assert_array_equal(compute(scheduler, i=i)["y"], graphs.TABLE[i], strict=True)

        many(ask)

    # --- Time

    def test_a_deadline_is_kept_in_the_queue(self, opened: Open) -> None:
        scheduler = opened(graphs.slow())
        occupant = occupy(scheduler, 3)
        hasty = [Computation(scheduler, numbers(n), caller(0.3)).start() for n in (1, 2)]
        patient = [Computation(scheduler, numbers(n), caller()).start() for n in (3, 4, 5)]
        for one in hasty:
            assert_fails(one, DeadlineExceeded)
        assert occupant.running
        assert [one.result().tolist() for one in patient] == [[3], [4], [5]]
        assert_fails(occupant, DeadlineExceeded)

    def test_a_deadline_is_kept_during_the_run(self, opened: Open) -> None:
        scheduler = opened(graphs.slow())
        endless = [Computation(scheduler, numbers(1 << 60), caller(1)).start() for _ in range(2)]
        for one in endless:
            assert_fails(one, DeadlineExceeded)
        assert compute(scheduler, n=np.array([7, 8]))["y"].tolist() == [7, 8]

    def test_a_deadline_that_has_passed_is_kept(self, opened: Open) -> None:
        scheduler = opened(models.mlp())
        with pytest.raises(DeadlineExceeded):
            scheduler.compute({"x": some_tensor(DTYPES["FP32"], (1, 4))}, caller(-1))

    def test_a_full_queue_refuses(self, opened: Open) -> None:
        scheduler = opened(graphs.slow(), max_queue_size=2)
        occupant = occupy(scheduler, 2)
        waiting = [Computation(scheduler, numbers(n), caller()).start() for n in (1, 2)]
        time.sleep(0.3)
        with pytest.raises(QueueFull) as caught:
            compute(scheduler, n=np.array([3]))
        assert_safe(caught.value)
        assert caught.value.retry_after > 0
        assert [one.result().tolist() for one in waiting] == [[1], [2]]
        assert_fails(occupant, DeadlineExceeded)

    # --- Ends

    def test_who_is_cancelled_while_it_waits_leaves_at_once(self, opened: Open) -> None:
        scheduler = opened(graphs.slow())
        occupant = occupy(scheduler, 2)
        waiting = [Computation(scheduler, numbers(n), caller()).start() for n in (1, 2, 3)]
        time.sleep(0.2)
        waiting[1].caller.cancel()
        assert_fails(waiting[1], RequestCancelled)
        assert occupant.running
        assert [waiting[i].result().tolist() for i in (0, 2)] == [[1], [3]]
        assert_fails(occupant, DeadlineExceeded)

    def test_who_was_cancelled_before_is_not_run(self, opened: Open) -> None:
        gone = caller()
        gone.cancel()
        with pytest.raises(RequestCancelled):
            opened(models.mlp()).compute({"x": some_tensor(DTYPES["FP32"], (1, 4))}, gone)

    def test_close_waits_for_what_runs_and_then_refuses(self, opened: Open) -> None:
        scheduler = opened(graphs.slow())
        running = [Computation(scheduler, numbers(n), caller()).start() for n in (300_000, 3, 4)]
        time.sleep(0.2)
        closing = [threading.Thread(target=scheduler.close) for _ in range(2)]
        for thread in closing:
            thread.start()
        assert [one.result().tolist() for one in running] == [[300_000], [3], [4]]
        for thread in closing:
            thread.join(60)
            assert not thread.is_alive()
        with pytest.raises(ModelNotReady) as caught:
            compute(scheduler, n=np.array([3]))
        assert_safe(caught.value)


def caller(seconds: float = 120.0) -> Caller:
    return Caller(time.monotonic() + seconds)


def compute(scheduler: GraphScheduler, **inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    tensors = {name: Tensor.from_numpy(array) for name, array in inputs.items()}
    return {name: tensor.numpy() for name, tensor in scheduler.compute(tensors, caller()).items()}


def numbers(n: int) -> Mapping[str, Tensor]:
    """An input of :func:`graphs.slow`."""
    return {"n": Tensor.from_numpy(np.array([n]))}


def occupy(scheduler: GraphScheduler, seconds: float) -> Computation:
    """A computation on :func:`graphs.slow` that runs until its deadline is over."""
    occupant = Computation(scheduler, numbers(1 << 60), caller(seconds)).start()
    time.sleep(0.3)  # until it runs
    assert occupant.running
    return occupant


def many(
    ask: Callable[[np.random.Generator], None], clients: int = CLIENTS, requests: int = REQUESTS
) -> None:
    """Has many clients ask all at once, again and again; raises the first's error."""
    errors: list[BaseException] = []
    all_at_once = threading.Barrier(clients)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(requests):
                all_at_once.wait(60)
                ask(rng)
        except BaseException as error:
            errors.append(error)
            all_at_once.abort()

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a client has no answer"
    if errors:
        raise errors[0]


def assert_fails(computation: Computation, kind: type[WasmServingError]) -> None:
    """That it ended with an error of this class that a client may see."""
    outcome = computation.outcome()
    assert isinstance(outcome, kind), repr(outcome)
    assert_safe(outcome)


def assert_safe(error: WasmServingError) -> None:
    """That the message has no traceback and no path."""
    message = str(error)
    assert message
    assert len(message) < 1000
    for revealing in ("Traceback", ".py", "/", "\n", "0x"):
        assert revealing not in message
