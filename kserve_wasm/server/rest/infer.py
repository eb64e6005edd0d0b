"""One inference, from the bytes of a request to the bytes of its answer.

Built on callbacks, because a Task and a Future cost more than all the rest of a small request. What may take long
happens in a thread: compression, which lets go of the interpreter's lock, and JSON of some size, which does so between
its steps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from kserve_wasm.metrics import UNKNOWN_MODEL
from kserve_wasm.protocol.codec_threads import CODEC_THREADS
from kserve_wasm.request import InferenceRequest, InferenceResponse
from kserve_wasm.server.rest.answer import Answer
from kserve_wasm.server.rest.codec import Headers, Wanted, decode_request, encode_response, json_length
from kserve_wasm.server.rest.compression import MIN_BYTES, compress, decompress, wanted_coding
from kserve_wasm.server.rest.context import RestContext
from kserve_wasm.server.rest.errors import error_answer
from kserve_wasm.tensors.tensor import BytesLike

if TYPE_CHECKING:
    from kserve_wasm.model import WasmModel
    from kserve_wasm.submission import Submission

INLINE_BYTES = 64 * 1024
"""JSON up to this size is read on the event loop (well under a millisecond)."""
_INLINE_ELEMENTS = 4096
_T = TypeVar("_T")


class Inference:
    """An inference under way; calls ``reply`` exactly once, on the event loop, unless it is cancelled."""

    __slots__ = (
        "_body",
        "_closed",
        "_context",
        "_headers",
        "_id",
        "_job",
        "_loop",
        "_model",
        "_received",
        "_reply",
        "_running",
        "_started",
        "_wanted",
    )

    def __init__(
        self,
        context: RestContext,
        loop: asyncio.AbstractEventLoop,
        headers: Headers,
        body: BytesLike,
        reply: Callable[[Answer], None],
    ) -> None:
        """Prepare an inference.

        Args:
            context: where the models are.
            loop: the event loop that runs this.
            headers: the request's, with names in lower case.
            body: the request's, whole.
            reply: takes the answer, errors included; possibly called before :meth:`start` returns.
        """
        self._context = context
        self._loop = loop
        self._headers = headers
        self._body = body
        self._received = len(body)
        self._reply = reply
        self._started = time.monotonic()
        self._closed = False
        self._model: WasmModel | None = None
        self._id = ""
        self._running = False
        self._wanted = Wanted()
        self._job: Submission | None = None

    def start(self, name: str, version: str | None) -> None:
        """Start inference on a model; ``version`` None takes its default."""
        try:
            self._model = self._context.repository.find(name, version)
            self._model.leases += 1
            if self._is_slow_to_decode():
                self._in_thread(self._decode, self._submit)
            else:
                self._submit(self._decode())
        except Exception as error:
            self._fail(error)

    def cancel(self) -> None:
        """Give the inference up: the client went away."""
        if self._closed:
            return
        self._close()
        if self._job is not None:
            self._job.cancel()

    def _is_slow_to_decode(self) -> bool:
        """Tell whether to decode the body in a thread; FP32 and its like in binary cost nothing at any size."""
        if b"content-encoding" in self._headers:
            # A few compressed bytes may hold megabytes.
            return True
        if self._received <= INLINE_BYTES:
            return False
        split = json_length(self._headers, self._received)
        if split > INLINE_BYTES:
            return True
        text = bytes(memoryview(self._body)[:split])
        # A backslash may spell BYTES in another way ("B\\u0059TES").
        return b'"BYTES"' in text or b"\\" in text

    def _decode(self) -> tuple[InferenceRequest, Wanted]:
        coding = self._headers.get(b"content-encoding")
        if coding is not None:
            self._body = decompress(self._body, coding, self._context.max_request_bytes)
        return decode_request(self._body, self._headers)

    def _submit(self, decoded: tuple[InferenceRequest, Wanted]) -> None:
        model = self._model
        assert model is not None
        request, self._wanted = decoded
        # The tensors hold what they need of it, which is nothing where the data were JSON.
        self._body = b""
        self._id = request.id
        self._running = True
        job = model.submit(request, self._started + self._wanted.timeout, self._done)
        if self._running:
            self._job = job

    def _done(self, result: InferenceResponse | Exception) -> None:
        self._job = None
        self._running = False
        if self._closed:
            return
        if isinstance(result, Exception):
            self._fail(result)
            return
        try:
            coding = wanted_coding(self._headers.get(b"accept-encoding"))
            if self._is_small(result, coding):
                self._finish(self._encode(result, coding))
            else:
                self._in_thread(lambda: self._encode(result, coding), self._finish)
        except Exception as error:
            self._fail(error)

    def _is_small(self, response: InferenceResponse, coding: bytes | None) -> bool:
        """Tell whether to encode ``response`` on the event loop."""
        wanted, small = self._wanted, True
        for name, tensor in response.outputs.items():
            binary = wanted.binary if wanted.outputs is None else wanted.outputs.get(name, True)
            if coding is not None or not binary or tensor.dtype.itemsize == 0:
                small = small and tensor.size <= _INLINE_ELEMENTS
        return small

    def _encode(self, response: InferenceResponse, coding: bytes | None) -> Answer:
        model = self._model
        assert model is not None
        answer = encode_response(response, self._wanted, model.name, model.version, self._id)
        if coding is not None and answer.nbytes > MIN_BYTES:
            compress(answer, coding)
        return answer

    def _in_thread(self, work: Callable[[], _T], then: Callable[[_T], None]) -> None:
        """Run ``work`` in a thread and ``then`` with its result on the event loop."""

        def finished(future: asyncio.Future[_T]) -> None:
            if future.cancelled():
                return
            # Not by result(), which raises it: the traceback would hold this frame, which holds the exception.
            error = future.exception()
            if self._closed:
                return
            try:
                if error is not None:
                    self._fail(error)
                else:
                    then(future.result())
            except Exception as failure:
                self._fail(failure)

        self._loop.run_in_executor(CODEC_THREADS, work).add_done_callback(finished)

    def _fail(self, error: BaseException) -> None:
        answer = error_answer(error)
        # What was logged is logged. The frames of the traceback hold the body and all that was made of it, and one
        # cycle among them would keep that until the next full garbage collection.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self._finish(answer)

    def _close(self) -> None:
        self._closed = True
        if self._model is not None:
            self._model.leases -= 1

    def _finish(self, answer: Answer) -> None:
        if self._closed:
            return
        # Once: whatever happens in reply must not come back here as a second answer.
        self._close()
        self._body = b""
        self._reply(answer)
        metrics = UNKNOWN_MODEL if self._model is None else self._model.metrics
        seconds = time.monotonic() - self._started
        metrics.v2_rest.finished(str(answer.status), seconds, self._received, answer.nbytes)
