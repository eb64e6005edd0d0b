"""One version of one model as KServe serves it. The only place where the guest's world and KServe's meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from kserve import InferRequest, InferResponse, Model
from kserve.metrics import PREDICT_HIST_TIME

from kserve_wasm.artifact.config import ModelConfig
from kserve_wasm.batching import Caller, OpenScheduler, open_in_process
from kserve_wasm.errors import DeadlineExceeded, GuestError, ModelNotReady, WasmServingError
from kserve_wasm.guest import GuestModel, Timing
from kserve_wasm.guest.pace import INLINE_BUDGET, INLINE_BYTES, Pace, Shapes
from kserve_wasm.guest.pool import GuestPool, Job, Lane
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.protocol.checks import check_inputs, check_outputs, priority_of, timeout_of
from kserve_wasm.protocol.codec_threads import in_codec_thread
from kserve_wasm.protocol.kserve_types import from_infer_request, to_infer_response
from kserve_wasm.protocol.v1 import decode_v1, encode_v1
from kserve_wasm.request import InferenceRequest, InferenceResponse
from kserve_wasm.statistics import Statistics
from kserve_wasm.tensors import TensorSpec

logger = logging.getLogger(__name__)

_JSON_BYTES = 64 * 1024
_JSON_ELEMENTS = 4096
"""V1 payloads and answers up to these sizes are read and written on the event loop."""

Outcome: TypeAlias = InferenceResponse | Exception
"""What a request ends with."""


class WasmModel(Model):  # type: ignore[misc]
    """A ``kserve.Model`` over a :class:`~kserve_wasm.guest.GuestModel`.

    Args:
        config: what to serve.
        name: the name it is served under; the model's own when None.
        pool: the threads that run guests.
        cache: where compiled modules are kept.
        open_scheduler: opens its graphs.

    Attributes:
        version: the version it serves.
        metrics: what is counted of it.
        leases: requests that chose this model and have no answer yet, those included that are still being read; kept by
            the protocols, on the event loop. The repository stops a model only when there are none.
    """

    def __init__(
        self,
        config: ModelConfig,
        pool: GuestPool,
        name: str | None = None,
        cache: Path | None = None,
        open_scheduler: OpenScheduler = open_in_process,
    ) -> None:
        super().__init__(name or config.name)
        self.config = config
        self.version = config.version
        observe = PREDICT_HIST_TIME.labels(model_name=self.name).observe
        self.metrics = ModelMetrics(self.name, self.version, observe)
        self.guest = GuestModel(config, cache, self.metrics, open_scheduler=open_scheduler)
        self.leases = 0
        self._priorities = config.priorities
        self._pace = Pace()
        self._pool = pool
        self._lane = Lane(pool, 1, config.instances.queue)
        self.metrics.watch(lambda: self.in_flight, lambda: self._lane.waiting)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a client sends; empty where the model does not say."""
        return self.guest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a client gets; empty where the model does not say."""
        return self.guest.outputs

    @property
    def statistics(self) -> Statistics:
        """Counts and durations, for the statistics extension."""
        return self.metrics.statistics

    @property
    def in_flight(self) -> int:
        """Requests that run or wait for a thread."""
        return self._lane.running + self._lane.waiting

    def load(self) -> bool:
        """Opens graphs, compiles the module and tries an instance; raises WasmServingError when it cannot."""
        self.guest.load()
        try:
            self.guest.probe()
        except BaseException:
            self.guest.close()
            raise
        self._lane = Lane(self._pool, self.guest.workers, self.config.instances.queue)
        self.ready = True
        return self.ready

    def start(self) -> None:
        """Nothing: the SDK's own would make a model ready that is not loaded."""

    def stop(self) -> None:
        """Answers no more requests, waits for those that run, and frees everything."""
        self.ready = False
        self.guest.close()
        self.metrics.remove()

    def get_input_types(self) -> list[dict[str, Any]]:
        """The inputs for V2 metadata."""
        return [_metadata(spec) for spec in self.inputs]

    def get_output_types(self) -> list[dict[str, Any]]:
        """The outputs for V2 metadata."""
        return [_metadata(spec) for spec in self.outputs]

    def submit(
        self, request: InferenceRequest, deadline: float, done: Callable[[Outcome], None]
    ) -> Submission:
        """Starts one inference; to be called on the event loop.

        Args:
            request: the tensors.
            deadline: ``time.monotonic()`` seconds; the model's own timeout counts besides.
            done: called once on the event loop with the outcome, possibly before this returns; not after
                :meth:`Submission.cancel`.
        """
        submission = Submission(self, request, Caller(deadline), done)
        try:
            self._read_urgency(request, submission.caller)
            if not self.ready:
                raise ModelNotReady(f"model '{self.name}' version {self.version} is not ready")
            check_inputs(request.inputs, self.inputs)
            if request.outputs is not None:
                check_outputs(request.outputs, self.outputs)
        except WasmServingError as error:
            done(error)
            return submission
        if not self._may_run_inline(request) or not submission.run_inline():
            submission.run_on_thread()
        return submission

    def _read_urgency(self, request: InferenceRequest, caller: Caller) -> None:
        """Puts into ``caller`` what model and request say of its deadline and priority."""
        timeout = self.config.limits.timeout
        levels, default = self._priorities
        caller.priority = default
        if request.parameters:
            timeout = min(timeout, timeout_of(request.parameters))
            caller.priority = priority_of(request.parameters, levels, default)
        caller.deadline = min(caller.deadline, time.monotonic() + timeout)

    def _may_run_inline(self, request: InferenceRequest) -> bool:
        return (
            self.config.instances.inline
            and not self._lane.waiting
            and self._pace.may_run_inline(shapes_of(request))
            and sum(tensor.nbytes for tensor in request.inputs.values()) <= INLINE_BYTES
        )

    async def infer(self, request: InferenceRequest, deadline: float = math.inf) -> InferenceResponse:
        """Answers one request.

        Raises:
            WasmServingError: see :mod:`kserve_wasm.errors`.
        """
        answer: asyncio.Future[InferenceResponse] = asyncio.get_running_loop().create_future()
        submission = self.submit(request, deadline, partial(_settle, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            submission.cancel()
            raise
        finally:
            # An error's traceback holds this frame, the frame the future, and the future the error.
            del answer, request, submission

    async def predict(
        self, payload: dict[str, Any] | InferRequest, headers: dict[str, str] | None = None
    ) -> dict[str, Any] | InferResponse:
        """Answers a payload of the SDK: a V1 body, or its own V2 request (from a transformer in process)."""
        if isinstance(payload, InferRequest):
            response = await self.infer(from_infer_request(payload))
            return to_infer_response(response, payload, self.name, self.version)
        if int((headers or {}).get("content-length", 0)) > _JSON_BYTES:
            request, shape = await in_codec_thread(decode_v1, payload, self.inputs)
        else:
            request, shape = decode_v1(payload, self.inputs)
        response = await self.infer(request)
        if sum(tensor.size for tensor in response.outputs.values()) > _JSON_ELEMENTS:
            return await in_codec_thread(encode_v1, response, shape)
        return encode_v1(response, shape)


class Submission:
    """One inference on its way.

    Attributes:
        caller: for whom.
    """

    __slots__ = (
        "_cancelled",
        "_done",
        "_job",
        "_loop",
        "_model",
        "_request",
        "_timer",
        "_timing",
        "caller",
    )

    def __init__(
        self, model: WasmModel, request: InferenceRequest, caller: Caller, done: Callable[[Outcome], None]
    ) -> None:
        self._model = model
        self._request = request
        self.caller = caller
        self._done = done
        self._cancelled = False
        self._timing = Timing()
        self._job: Job | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def cancel(self) -> None:
        """The client is gone: a waiting request is not run, and the outcome of a running one is dropped."""
        self._cancelled = True
        self.caller.cancel()
        job = self._job
        if job is not None:
            self._model._lane.discard(job)
        if self._timer is not None:
            self._timer.cancel()

    def run_inline(self) -> bool:
        """Runs the request here and now; False when it took too long and must run on a thread."""
        pace = self._model._pace
        limit = time.monotonic() + INLINE_BUDGET
        outcome = self._infer(Caller(min(self.caller.deadline, limit), may_wait=False))
        if time.monotonic() >= limit:
            pace.surprised()
            if limit < self.caller.deadline:
                # Whatever it is: the guest may have met the limit and made something of it.
                return False
        else:
            pace.ran_inline(self._timing.total * 1e-9)
        self._done(outcome)
        self._count(outcome, 0)
        return True

    def run_on_thread(self) -> None:
        """Hands the request to a thread, or lets it wait for one."""
        self._loop = asyncio.get_running_loop()
        self._job = Job(self._run, self._answer, self.caller.deadline, self.caller.priority)
        try:
            self._model._lane.submit(self._job)
        except WasmServingError as error:
            self._done(error)
            self._count(error, 0)
            return
        self._timer = self._loop.call_later(self.caller.deadline - time.monotonic(), self._expire)

    def _expire(self) -> None:
        job = self._job
        if job is not None and self._model._lane.discard(job):
            error = DeadlineExceeded("the deadline passed while the request waited for a worker")
            self._deliver(error)
            self._count(error, time.monotonic_ns() - int(job.queued_at * 1e9))

    def _run(self) -> None:
        """On a pool thread."""
        assert self._job is not None
        waited = time.monotonic() - self._job.queued_at
        outcome = self._infer(self.caller)
        self._answer(outcome)
        self._count(outcome, int(waited * 1e9))
        self._model._pace.ran_on_thread(self._timing.total * 1e-9, shapes_of(self._request))
        # A job holds this method, and so its request: the tensors would wait for the cycle collector.
        self._job = None

    def _infer(self, caller: Caller) -> Outcome:
        start = time.monotonic_ns()
        try:
            return self._model.guest.infer(self._request, caller, self._timing)
        except WasmServingError as error:
            # What the traceback holds (tensors, the instance) would live as long as the error.
            return error.with_traceback(None)
        except Exception:
            logger.exception("Request to model %s failed", self._model.name)
            return GuestError("the request failed for a reason of the server's own; its log says more")
        finally:
            self._timing.total = time.monotonic_ns() - start

    def _count(self, outcome: Outcome, queued_ns: int) -> None:
        """Counts the request, when its answer is on its way."""
        model, timing = self._model, self._timing
        model.metrics.queued(queued_ns * 1e-9)
        total = timing.total + queued_ns
        if isinstance(outcome, InferenceResponse):
            batched_ns = self.caller.queued_ns
            queued_ns += batched_ns
            model.statistics.succeeded(
                total, queued_ns, timing.instantiate, timing.infer - batched_ns, timing.finish
            )
        else:
            model.statistics.failed(total)

    def _answer(self, outcome: Outcome) -> None:
        """From a pool thread to the event loop, unless that has ended."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, outcome)

    def _deliver(self, outcome: Outcome) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._cancelled:
            self._done(outcome)


def _settle(answer: asyncio.Future[InferenceResponse], outcome: Outcome) -> None:
    if answer.done():
        return
    if isinstance(outcome, InferenceResponse):
        answer.set_result(outcome)
    else:
        answer.set_exception(outcome)


def shapes_of(request: InferenceRequest) -> Shapes:
    """The shapes of the inputs, in the request's order."""
    return tuple([tensor.shape for tensor in request.inputs.values()])


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.dtype.name, "shape": spec.v2_shape}
