"""The seam between WASI-NN's ``compute`` and the graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from kserve_wasm.backends.base import Graph
from kserve_wasm.errors import RequestCancelled
from kserve_wasm.tensors import Tensor


class Caller:
    """Whoever waits for computations: one request, until it is answered.

    Attributes:
        deadline: ``time.monotonic()`` seconds after which the answer is of no use.
        priority: lower is more urgent, from 1; 0 takes the model's default. As Triton's request parameter.
        may_wait: whether its thread may wait for others. One that must not, such as an event loop's, has its
            computations run at once and alone.
        defers: whether a graph may run when the guest has ended, if the guest looks at nothing that comes of it.
        passed_on_ns: nanoseconds that the guest spent on passing its request on to graphs whole.
        queued_ns: nanoseconds that its computations have waited to be run.
    """

    __slots__ = (
        "_cancelled",
        "_wake",
        "deadline",
        "defers",
        "may_wait",
        "passed_on_ns",
        "priority",
        "queued_ns",
    )

    def __init__(self, deadline: float = math.inf, priority: int = 0, *, may_wait: bool = True) -> None:
        self.deadline = deadline
        self.priority = priority
        self.may_wait = may_wait
        self.defers = False
        self.passed_on_ns = 0
        self.queued_ns = 0
        self._cancelled = False
        self._wake: Callable[[], None] | None = None

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._cancelled

    def cancel(self) -> None:
        """Says, on any thread, that nobody waits for the answer any more: what is queued for it is not run."""
        self._cancelled = True
        wake = self._wake
        if wake is not None:
            wake()

    def check(self) -> None:
        """Raises RequestCancelled after :meth:`cancel`."""
        if self._cancelled:
            raise RequestCancelled("the client went away")

    def on_cancel(self, wake: Callable[[], None] | None) -> None:
        """Has ``wake`` called when the caller is cancelled, or is already; None ends that.

        It may be called twice, on several threads, and shortly after it was ended.
        """
        # Set before it is read whether it is too late, as cancel() does it the other way round: one sees the other.
        self._wake = wake
        if self._cancelled and wake is not None:
            wake()


Outcome: TypeAlias = Mapping[str, Tensor] | Exception
"""What a request gets: its outputs by name, or its error."""
Spawn: TypeAlias = Callable[[Callable[[], None]], object]
"""Has work run, elsewhere or later. Raises QueueFull."""


class GraphScheduler(Protocol):
    """Decides when, and together with whom, a computation on one graph runs."""

    @property
    def graph(self) -> Graph:
        """The graph it schedules."""

    @property
    def ready(self) -> bool:
        """Whether there is something that runs the graph; it may come back by itself where there is not."""

    @property
    def concurrency(self) -> int:
        """Computations that it takes at once to make the best of the device; 0 where one for each CPU does."""

    @property
    def merging_pays(self) -> bool:
        """Whether computations that come together are run together, and are better for it."""

    def compute(self, inputs: Mapping[str, Tensor], caller: Caller) -> Mapping[str, Tensor]:
        """Runs the graph on ``inputs``; blocks the calling thread until the answer is there.

        The input tensors' memory is the caller's and stays unchanged until this returns.

        Args:
            inputs: the tensors by name.
            caller: for whom.

        Raises:
            InvalidRequest, QueueFull, DeadlineExceeded, RequestCancelled, BackendError, ModelNotReady: see
                :mod:`kserve_wasm.errors`.
        """

    def submit(
        self, inputs: Mapping[str, Tensor], caller: Caller, done: Callable[[Outcome], None], spawn: Spawn
    ) -> None:
        """As :meth:`compute`, without blocking.

        The input tensors' memory must stay unchanged for as long as the tensors live.

        Args:
            inputs: the tensors by name.
            caller: for whom.
            done: called once with the outcome, on any thread, possibly before this returns.
            spawn: where the graph may run.

        Raises:
            QueueFull, RequestCancelled, ModelNotReady: nothing is run, and ``done`` not called.
        """

    def close(self) -> None:
        """Stops taking work, waits for what runs, and closes the graph."""


class BlockingScheduler:
    """``submit`` for schedulers that know only how to block: they compute on a thread of whoever asks."""

    def compute(self, inputs: Mapping[str, Tensor], caller: Caller) -> Mapping[str, Tensor]:
        """See :meth:`GraphScheduler.compute`."""
        raise NotImplementedError

    def submit(
        self, inputs: Mapping[str, Tensor], caller: Caller, done: Callable[[Outcome], None], spawn: Spawn
    ) -> None:
        """See :meth:`GraphScheduler.submit`."""

        def work() -> None:
            outcome: Outcome
            try:
                outcome = self.compute(inputs, caller)
            except Exception as error:
                outcome = error.with_traceback(None)
            done(outcome)

        spawn(work)
