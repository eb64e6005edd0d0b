"""One version of one model as KServe serves it. The only place where the guest's world and KServe's meet."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kserve import InferRequest, InferResponse, Model
from kserve.metrics import PREDICT_HIST_TIME

from kserve_wasm.artifact.config import ModelConfig
from kserve_wasm.batching import Caller, OpenScheduler, open_in_process
from kserve_wasm.errors import ModelNotReady, WasmServingError
from kserve_wasm.guest import GuestModel
from kserve_wasm.guest.pace import INLINE_BYTES, Company, Pace, Shapes
from kserve_wasm.guest.pool import GuestPool, Lane
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.protocol.checks import check_inputs, check_outputs, priority_of, timeout_of
from kserve_wasm.protocol.codec_threads import in_codec_thread
from kserve_wasm.protocol.kserve_types import from_infer_request, to_infer_response
from kserve_wasm.protocol.v1 import decode_v1, encode_v1
from kserve_wasm.request import InferenceRequest, InferenceResponse
from kserve_wasm.statistics import Statistics
from kserve_wasm.submission import Outcome, Submission, shapes_of
from kserve_wasm.tensors import TensorSpec

logger = logging.getLogger(__name__)

_JSON_BYTES = 64 * 1024
_JSON_ELEMENTS = 4096
"""V1 payloads and answers up to these sizes are read and written on the event loop."""


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
        pool: the threads that run guests.
        lane: its way to the threads that run guests.
        pace: how long requests take.
        guest_pace: how long they take without the graphs that may run when the guest has ended.
        company: whether quick requests come several at a time.
        put_off: requests whose guest has ended, and that wait for a graph.
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
        self._loaded = False
        super().__init__(name or config.name)
        self.config = config
        self.version = config.version
        observe = PREDICT_HIST_TIME.labels(model_name=self.name).observe
        self.metrics = ModelMetrics(self.name, self.version, observe)
        self.guest = GuestModel(config, cache, self.metrics, open_scheduler=open_scheduler)
        self.leases = 0
        self._priorities = config.priorities
        self.pace = Pace()
        self.guest_pace = Pace()
        self.company = Company()
        self.put_off = 0
        self.pool = pool
        self.lane = Lane(pool, 1, config.instances.queue)
        self.metrics.watch(lambda: self.in_flight, lambda: self.lane.waiting)

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
    def ready(self) -> bool:
        """Whether it is loaded, and there is something that runs its graphs."""
        return self._loaded and self.guest.ready

    @ready.setter
    def ready(self, loaded: bool) -> None:
        self._loaded = loaded

    @property
    def in_flight(self) -> int:
        """Requests that run or wait."""
        return self.lane.running + self.lane.waiting + self.put_off

    def load(self) -> bool:
        """Opens graphs, compiles the module and tries an instance; raises WasmServingError when it cannot."""
        self.guest.load()
        try:
            self.guest.probe()
        except BaseException:
            self.guest.close()
            raise
        self.lane = Lane(self.pool, self.guest.workers, self.config.instances.queue)
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
        if not self._may_run_inline(request) or not self._run_inline(submission, shapes_of(request)):
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
            and not self.lane.waiting
            and sum([tensor.nbytes for tensor in request.inputs.values()]) <= INLINE_BYTES
        )

    def _run_inline(self, submission: Submission, shapes: Shapes) -> bool:
        """Runs the request, or at least its guest, here and now; False when it is not quick enough for that."""
        if self.pace.may_run_inline(shapes):
            defers = self.guest.merging_pays and self.company.expected()
            return submission.run_inline(self.pace, defers=defers)
        return self.guest_pace.may_run_inline(shapes) and submission.run_inline(self.guest_pace, defers=True)

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


def _settle(answer: asyncio.Future[InferenceResponse], outcome: Outcome) -> None:
    if answer.done():
        return
    if isinstance(outcome, InferenceResponse):
        answer.set_result(outcome)
    else:
        answer.set_exception(outcome)


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.dtype.name, "shape": spec.v2_shape}
