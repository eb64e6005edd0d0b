"""Thousands of random schedules: every request gets its own answer or its own error, once, and nothing hangs.

A schedule is a list of steps: requests come, on a thread each, are cancelled, the graph is held and let go, the
scheduler is closed. Every request's numbers are its own, so that an answer tells whose it is. As soon as a request is
answered its memory is overwritten: whoever still reads it computes with the poison.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from kserve_wasm.artifact.config import Batching
from kserve_wasm.backends import Graph, GraphSource, open_graph
from kserve_wasm.batching import BatchScheduler, Caller
from kserve_wasm.batching.gain import Gain
from kserve_wasm.errors import (
    BackendError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
    RequestCancelled,
    WasmServingError,
)
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.tensors import Tensor
from tests.backends import models
from tests.batching.graphs import NumpyGraph, Values, doubled
from tests.batching.threads import PATIENCE, Computation, stacks, until, waits
from tests.support.counts import count

POISON = -1e9
SOON = 0.004
"""Seconds of the deadlines that pass in a schedule."""


@dataclass(frozen=True)
class Ask:
    """A request comes."""

    rows: int
    width: int
    fails: bool
    priority: int
    may_wait: bool
    seconds: float | None
    cancelled: bool
    submits: bool


@dataclass(frozen=True)
class Cancel:
    """A request that came before, counted from the last one, is cancelled."""

    back: int


@dataclass(frozen=True)
class Do:
    """One of World's methods: ``hold`` or ``release`` the graph, ``settle``, ``expire``, ``pause``, ``close``."""

    what: str


Step = Ask | Cancel | Do


@dataclass(frozen=True)
class Schedule:
    """Options of the scheduler, and what happens."""

    slots: int
    through: bool
    fickle: bool
    batching: Batching
    steps: list[Step] = field(default_factory=list)


asks = st.builds(
    Ask,
    rows=st.sampled_from((1, 1, 1, 2, 2, 3, 5)),
    width=st.sampled_from((1, 1, 1, 1, 2)),
    fails=st.sampled_from((False,) * 9 + (True,)),
    priority=st.integers(0, 3),
    may_wait=st.sampled_from((True,) * 9 + (False,)),
    seconds=st.sampled_from((None,) * 9 + (SOON, SOON, -1.0)),
    cancelled=st.sampled_from((False,) * 15 + (True,)),
    submits=st.sampled_from((False, False, True)),
)
bursts = st.lists(asks, min_size=2, max_size=5)
do = st.sampled_from(
    [["hold"]] * 2 + [["settle"]] * 2 + [["settle", "release"]] * 2 + [["release"], ["expire"], ["pause"]]
).map(lambda words: [Do(word) for word in words])
cancel = st.builds(Cancel, st.integers(1, 4)).map(lambda c: [c])
steps = st.lists(st.one_of(bursts, bursts, do, do, cancel), min_size=3, max_size=10).map(
    lambda groups: [step for group in groups for step in group]
)
PLAIN = Ask(1, 1, False, 0, True, None, False, False)
endings = st.sampled_from(([], [Do("close")], [Do("close"), PLAIN]))


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    largest = draw(st.sampled_from((8, 8, 8, 3, 3, 1)))
    batching = Batching(
        max_batch_size=largest,
        preferred_batch_size=draw(st.sampled_from(((), (), (2,), (2, 3)))) if largest > 2 else (),
        max_queue_delay=draw(st.sampled_from((0.0, 0.0, 0.001, 0.003))),
        max_queue_size=draw(st.sampled_from((0,) * 5 + (3,))),
        queue_timeout=draw(st.sampled_from((0.0,) * 6 + (0.002,))),
        priority_levels=draw(st.sampled_from((0, 3))),
        adaptive=draw(st.sampled_from((False,) * 7 + (True,))),
        declared=largest > 1 and draw(st.sampled_from((True, True, True, False))),
    )
    start = [Do("hold")] if draw(st.sampled_from((True, True, False))) else []
    return Schedule(
        slots=draw(st.sampled_from((1, 1, 2, 3))),
        through=draw(st.booleans()),
        fickle=draw(st.sampled_from((False,) * 5 + (True,))),
        batching=batching,
        steps=[*start, *draw(steps), *draw(endings)],
    )


class Asked:
    """A request of a schedule, and what must come of it."""

    def __init__(self, spec: Ask, scheduler: BatchScheduler, inputs: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self.x = inputs["x"].numpy()
        self.own = self.x.copy()
        now = time.monotonic()
        self.asked = now
        caller = Caller(priority=spec.priority, may_wait=spec.may_wait)
        if spec.seconds is not None:
            caller.deadline = now + spec.seconds
        self.cancelled = spec.cancelled
        if spec.cancelled:
            caller.cancel()
        self.answered_at = 0.0
        self.may_wait = spec.may_wait or spec.submits
        self.computation = Computation(scheduler, inputs, caller, then=self._poison, submits=spec.submits)
        self.computation.start()

    def _poison(self) -> None:
        self.answered_at = time.monotonic()
        (answer,) = self.computation.answers
        if self.spec.submits:
            return  # its memory stays
        if isinstance(answer, BaseException) or not np.may_share_memory(answer["y"].numpy(), self.x):
            self.x.fill(POISON)

    def cancel(self) -> None:
        self.cancelled = True
        self.computation.caller.cancel()

    def check(self, world: World) -> None:
        """That it has what it may have, once."""
        spec, batching = self.spec, world.schedule.batching
        outcome = self.computation.outcome()
        if not isinstance(outcome, BaseException):
            assert not spec.fails, "an answer, but its values are wrong"
            np.testing.assert_array_equal(outcome["y"].numpy(), world.expected(self.own))
            assert list(outcome) == ["y"]
            return
        assert isinstance(outcome, WasmServingError), repr(outcome)
        assert "Traceback" not in str(outcome)
        if isinstance(outcome, DeadlineExceeded):
            passed = self.computation.caller.deadline
            if batching.queue_timeout and self.may_wait:
                passed = min(passed, self.asked + batching.queue_timeout)
            assert self.answered_at >= passed, "before its deadline"
        elif isinstance(outcome, RequestCancelled):
            assert self.cancelled
        elif isinstance(outcome, QueueFull):
            assert batching.max_queue_size
            assert self.may_wait
        elif isinstance(outcome, ModelNotReady):
            assert world.closing is not None
        else:
            assert isinstance(outcome, BackendError | InvalidRequest), repr(outcome)
            assert spec.fails, f"another's error: {outcome}"
            assert re.search(world.failure.format(self.own.min()), str(outcome))


class Fickle(Gain):
    """Changes its mind after every run."""

    __slots__ = ()

    def ran(self, rows: int, seconds: float) -> None:
        super().ran(rows, seconds)
        self.limit = {1: 2, 2: self._max}.get(self.limit, 1)


class World:
    """A schedule while it is carried out."""

    def __init__(self, schedule: Schedule, metrics: ModelMetrics, onnx: Graph | None = None) -> None:
        self.schedule = schedule
        self.metrics = metrics
        self.onnx = onnx
        self.failure = "Gather" if onnx else "graph 'numpy' failed at {:g}$"
        self.wrong: list[str] = []
        self.succeeded: list[int] = []
        self.merged = 0
        self.graph = NumpyGraph(self.run)
        self.scheduler = BatchScheduler(
            self.graph, schedule.batching, schedule.slots, metrics.graph("g", first=True)
        )
        if schedule.fickle:
            self.scheduler._gain = Fickle(schedule.batching.max_batch_size)
        self.asked: list[Asked] = []
        self.closing: threading.Thread | None = None

    # --- What the graph does

    def run(self, inputs: Values) -> Mapping[str, Tensor]:
        x = inputs["x"].numpy()
        before = x.copy()
        if (x == POISON).any():
            self.wrong.append("the memory of a request was read after its answer")
        self.merged += np.unique(abs(x) // 100).size > 1
        time.sleep(0)  # others' turn
        outputs = self.onnx.run(inputs) if self.onnx else self.in_numpy(inputs)
        if not np.array_equal(before, x):
            self.wrong.append("two runs wrote into one buffer")
        self.succeeded.append(x.shape[0])
        return outputs

    def in_numpy(self, inputs: Values) -> Mapping[str, Tensor]:
        x = inputs["x"].numpy()
        failing = x[x < 0]
        if failing.size:
            raise BackendError(f"graph 'numpy' failed at {failing[0]:g}")
        return {"y": inputs["x"]} if self.schedule.through else doubled(inputs)

    def expected(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return x if self.schedule.through and not self.onnx else 2 * x + 1

    def inputs(self, number: int, spec: Ask) -> dict[str, Tensor]:
        numbers = 100 * (number + 1) + np.arange(spec.rows * spec.width, dtype=np.float32)
        if spec.fails:
            numbers[-1] *= -1
        return {"x": Tensor.from_numpy(numbers.reshape(spec.rows, spec.width))}

    # --- What happens

    def carry_out(self) -> None:
        for step in self.schedule.steps:
            if isinstance(step, Ask):
                number = len(self.asked)
                self.asked.append(Asked(step, self.scheduler, self.inputs(number, step)))
            elif isinstance(step, Cancel):
                if step.back <= len(self.asked):
                    self.asked[-step.back].cancel()
            else:
                getattr(self, step.what)()
        self.graph.gate.set()

    def hold(self) -> None:
        self.graph.gate.clear()

    def release(self) -> None:
        self.graph.gate.set()

    def settle(self) -> None:
        """Until every request waits, runs or is answered, as far as that comes soon."""
        end = time.monotonic() + 5 * SOON
        while time.monotonic() < end:
            in_runs = sum(np.unique(abs(x["x"].numpy()) // 100).size for x in list(self.graph.active))
            if waits(self.scheduler) + in_runs >= sum(a.computation.running for a in self.asked):
                return
            time.sleep(SOON / 40)

    def expire(self) -> None:
        """Even while the graph is held, deadlines are kept; but a trial reads its requests' memory to its end."""
        if self.schedule.batching.declared or self.graph.gate.is_set():
            finite = [a for a in self.asked if a.spec.seconds is not None]
            until(lambda: not any(a.computation.running for a in finite), "deadlines are kept")

    def pause(self) -> None:
        time.sleep(SOON / 4)

    def close(self) -> None:
        self.closing = threading.Thread(target=self.scheduler.close, daemon=True)
        self.closing.start()

    # --- What must have come of it

    def check(self) -> None:
        for asked in self.asked:
            asked.computation.join()
        for asked in self.asked:
            asked.check(self)
        until(lambda: not self.scheduler._running, "an end of all runs")
        assert not self.wrong, self.wrong
        assert waits(self.scheduler) == 0
        self._check_runs()
        if self.closing is None:
            self.close()
        assert self.closing is not None
        self.closing.join(PATIENCE)
        if self.closing.is_alive():
            pytest.fail(f"close() does not end\n{stacks()}")
        with pytest.raises(ModelNotReady):
            self.scheduler.compute(self.inputs(0, PLAIN), Caller())

    def _check_runs(self) -> None:
        batching = self.schedule.batching
        largest = max([batching.max_batch_size, *(a.spec.rows for a in self.asked)])
        assert max(self.graph.runs, default=0) <= largest
        if batching.max_batch_size > 1 and not (batching.adaptive or self.schedule.fickle):
            impatient = sum(not a.may_wait for a in self.asked)
            assert self.graph.most <= self.schedule.slots + impatient
        statistics = self.metrics.statistics.snapshot()
        counts = statistics["execution_count"], statistics["inference_count"]
        if batching.declared:
            assert counts == (len(self.succeeded), sum(self.succeeded))
        elif batching.max_batch_size == 1:  # then nobody knows a first dimension
            assert counts == (len(self.succeeded), len(self.succeeded))


def carry_out(schedule: Schedule, onnx: Graph | None = None) -> None:
    metrics = ModelMetrics("schedules", "1")
    try:
        world = World(schedule, metrics, onnx)
        world.carry_out()
        world.check()
    finally:
        metrics.remove()
    count("schedules of batching")
    count("requests in schedules of batching", len(world.asked))
    count("merged runs in schedules of batching", world.merged)


def schedules_of(number: int) -> settings:
    """Without shrinking: threads take turns anew each time."""
    return settings(max_examples=number, phases=(Phase.explicit, Phase.generate), database=None)


@schedules_of(2200)
@given(schedule=schedules())
def test_every_request_gets_its_own_answer_or_its_own_error_once(schedule: Schedule) -> None:
    carry_out(schedule)


@schedules_of(300)
@given(schedule=schedules())
def test_and_so_it_does_of_onnx_runtime(onnx: Graph, schedule: Schedule) -> None:
    carry_out(schedule, onnx)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@schedules_of(40_000)
@given(schedule=schedules())
def test_and_so_it_does_in_many_more(schedule: Schedule) -> None:
    carry_out(schedule)


@pytest.fixture(scope="module")
def onnx() -> Graph:
    """``y = 2 x + 1``, which fails for negative numbers: they are an index beyond the table's end."""
    nodes = [
        helper.make_node("Less", ["x", "zero"], ["below"]),
        helper.make_node("Cast", ["below"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["one"]),
        helper.make_node("Mul", ["x", "two"], ["twice"]),
        helper.make_node("Add", ["twice", "one"], ["y"]),
    ]
    spec: tuple[str, list[int | str | None]] = ("FP32", ["batch", "length"])
    constants = {"zero": np.zeros((), "f4"), "two": np.full((), 2, "f4"), "table": np.ones(1, "f4")}
    model = models.model(nodes, {"x": spec}, {"y": spec}, constants)
    return open_graph(GraphSource("g", "onnx", data=model.SerializeToString()), "cpu")
