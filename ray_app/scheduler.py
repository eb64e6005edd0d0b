"""Computations that go to executors on a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)

from kserve_wasm.artifact.config import ModelConfig
from kserve_wasm.backends import Device, Graph, GraphSource
from kserve_wasm.batching import Caller
from kserve_wasm.batching.base import BlockingScheduler
from kserve_wasm.errors import (
    BackendError,
    DeadlineExceeded,
    ModelLoadError,
    ModelNotReady,
    QueueFull,
    WasmServingError,
)
from kserve_wasm.metrics import GraphMetrics, ModelMetrics
from kserve_wasm.tensors import Tensor, TensorSpec
from ray_app.pool import ExecutorPool
from ray_app.wire import Answer, Delivery, Description, Wanted, make_offer, read_content

logger = logging.getLogger(__name__)

MAX_LOST = 5
"""Executors that one computation may lose: one that ends every process it comes to must not go round for ever."""

_PAUSE = 0.02
"""Seconds, doubled with each executor that is lost, before the next is tried: the router has to hear of it."""

OPEN_SECONDS = 300.0
"""How long it may take until a graph is open on an executor: its weights travel there, and the executor may have to
start first."""

_LOST = (RayActorError, ObjectLostError, ReplicaUnavailableError)
"""What Ray raises when the executor died or cannot be reached, or its answer was lost with it."""


class RayScheduler(BlockingScheduler):
    """Computations on one graph, run by executors; implements :class:`~kserve_wasm.batching.base.GraphScheduler`.

    An executor that does not know the graph asks for it, and gets it: by path where the same files lie there too, else
    its bytes. They travel once to each, not with each computation.

    A computation whose executor dies is sent to another: it has no effect but its answer.

    Args:
        pool: the executors.
        source: the graph.
        config: its model's.
        metrics: what is counted.

    Raises:
        ModelLoadError, BackendError, DeviceUnavailable: the graph cannot be opened there.
        ModelNotReady: no executor answers.
    """

    def __init__(
        self, pool: ExecutorPool, source: GraphSource, config: ModelConfig, metrics: GraphMetrics
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._source = source
        self._closed = False
        self._running = 0
        self._changed = threading.Condition()  # held to count, never while a computation is under way
        self._content = _SharedContent(source)
        try:
            self._batching = config.batching_of(source.name)
            self._offer = make_offer(source, config.device, self._batching)
        except OSError as error:
            raise ModelLoadError(
                f"graph '{source.name}': its file cannot be read: {error.strerror}"
            ) from None
        description = self._ask("describe", Caller(time.monotonic() + OPEN_SECONDS))
        assert isinstance(description, Description)
        self._graph = RemoteGraph(self, source.name, description)

    @property
    def graph(self) -> Graph:
        """The graph, as the executors see it."""
        return self._graph

    @property
    def ready(self) -> bool:
        """Whether there is an executor."""
        return self._pool.ready

    @property
    def concurrency(self) -> int:
        """Enough for full batches on several executors."""
        return 4 * self._batching.max_batch_size

    def compute(self, inputs: Mapping[str, Tensor], caller: Caller) -> Mapping[str, Tensor]:
        """Has the graph run on ``inputs``; see :class:`~kserve_wasm.batching.base.GraphScheduler`."""
        caller.check()
        with self._changed:
            if self._closed:
                raise ModelNotReady(f"graph '{self._source.name}' is closed")
            self._running += 1
        try:
            # Ray reads arguments on a thread of its own, perhaps when the caller is gone already, and with it the
            # guest's memory.
            own = {name: _owned(tensor) for name, tensor in inputs.items()}
            answer = self._ask("compute", caller, own)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
        assert isinstance(answer, Answer)
        caller.queued_ns += answer.queued_ns
        if (report := answer.report) is not None:
            self._metrics.executed(
                report.rows, report.queued_ns, report.input_ns, report.infer_ns, report.output_ns
            )
        outcome = answer.outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @property
    def merging_pays(self) -> bool:
        """The executors decide it, for each graph."""
        return True

    def close(self) -> None:
        """Refuses further work and waits for what runs. The executors close the graph when they need the room."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._running)

    def _ask(self, method: str, caller: Caller, *arguments: Any) -> Any:
        """Calls a method of an executor, another one when that dies, with the graph when it wants it."""
        name = self._source.name
        delivery: Delivery | None = None
        lost = 0
        with contextlib.ExitStack() as holding:
            while True:
                try:
                    answer = self._call(method, caller, arguments, delivery)
                except _LOST as error:
                    lost += 1
                    self._metrics.lost()
                    self._pool.look()
                    logger.warning("graph '%s': an executor was lost: %s", name, type(error).__name__)
                    if lost >= MAX_LOST:
                        raise BackendError(
                            f"graph '{name}': {lost} executors in a row ended while they ran it"
                        ) from None
                    time.sleep(min(_PAUSE * 2**lost, max(0.0, caller.deadline - time.monotonic())))
                    continue
                if isinstance(answer, WasmServingError):
                    raise answer
                if not isinstance(answer, Wanted):
                    return answer
                content = holding.enter_context(self._content.shared()) if answer.content else None
                delivery = Delivery(self._offer, content)

    def _call(
        self, method: str, caller: Caller, arguments: tuple[Any, ...], delivery: Delivery | None
    ) -> Any:
        caller.check()
        timeout = caller.deadline - time.monotonic()
        if timeout <= 0:
            raise self._too_late()
        if method == "compute":
            arguments = (*arguments, timeout, caller.priority)
        try:
            response = getattr(self._pool, method).remote(self._offer.key, *arguments, delivery=delivery)
            caller.on_cancel(response.cancel)
            try:
                return response.result(timeout_s=None if timeout == math.inf else timeout)
            except TimeoutError:
                response.cancel()
                raise self._too_late() from None
            finally:
                caller.on_cancel(None)
        except BackPressureError as error:
            raise QueueFull(
                f"graph '{self._source.name}': too many computations wait for the executors: try again, or raise their "
                "max_queued_requests",
                error.retry_after_s or 1.0,
            ) from None
        except DeploymentUnavailableError:
            raise ModelNotReady(f"graph '{self._source.name}': the executors' deployment failed") from None
        except _LOST:
            raise
        except (RequestCancelledError, TaskCancelledError):
            caller.check()
            # Nobody here did: the executor is shutting down.
            raise ReplicaUnavailableError("") from None
        except RayError as error:
            logger.error("graph '%s': %s", self._source.name, error)
            raise BackendError(
                f"graph '{self._source.name}' failed on its executor; the server's log says more"
            ) from None

    def _too_late(self) -> WasmServingError:
        name = self._source.name
        if not self._pool.ready:
            return ModelNotReady(f"graph '{name}': there is no executor; try again later")
        return DeadlineExceeded(f"graph '{name}': the deadline passed before its executor answered")


class RemoteGraph:
    """A graph on executors; implements :class:`~kserve_wasm.backends.base.Graph`.

    Args:
        scheduler: the way there.
        name: the graph's name.
        description: what it is.
    """

    def __init__(self, scheduler: RayScheduler, name: str, description: Description) -> None:
        self._scheduler = scheduler
        self.name = name
        self.device: Device = description.device
        self.inputs: tuple[TensorSpec, ...] = description.inputs
        self.outputs: tuple[TensorSpec, ...] = description.outputs

    def run(self, inputs: Mapping[str, Tensor], deadline: float = math.inf) -> Mapping[str, Tensor]:
        """Has the graph run."""
        return self._scheduler.compute(inputs, Caller(deadline))

    def close(self) -> None:
        """Closes its scheduler."""
        self._scheduler.close()


class _SharedContent:
    """A graph's bytes in Ray's object store, only while somebody needs them there.

    Args:
        source: the graph.
    """

    def __init__(self, source: GraphSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._users = 0
        self._reference: Any = None

    @contextlib.contextmanager
    def shared(self) -> Iterator[Any]:
        """Ray's reference to the bytes, valid inside of the block."""
        with self._lock:
            if self._reference is None:
                try:
                    self._reference = ray.put(read_content(self._source))
                except (RayError, OSError) as error:
                    logger.error("graph '%s' cannot be sent: %s", self._source.name, error)
                    raise BackendError(
                        f"graph '{self._source.name}' cannot be sent to an executor; the server's log says more"
                    ) from None
            self._users += 1
            reference = self._reference
        try:
            yield reference
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._reference = None


def open_on(
    pool: ExecutorPool, source: GraphSource, config: ModelConfig, metrics: ModelMetrics
) -> RayScheduler:
    """Opens a graph on the executors of ``pool``: the first argument bound, an ``OpenScheduler``."""
    first = bool(config.graphs) and config.graphs[0].name == source.name
    return RayScheduler(pool, source, config, metrics.graph(source.name, first=first))


def _owned(tensor: Tensor) -> Tensor:
    return Tensor.from_numpy(tensor.numpy().copy())
