"""``ModelInfer`` and ``ModelStreamInfer``: the way of a request over gRPC."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from typing import Any

from kserve_wasm.metrics import UNKNOWN_MODEL, ProtocolMetrics
from kserve_wasm.protocol.checks import timeout_of
from kserve_wasm.protocol.codec_threads import in_codec_thread
from kserve_wasm.server.grpc import codec
from kserve_wasm.server.grpc.messages import ModelStreamInferResponse
from kserve_wasm.server.grpc.status import Failure, abort, failure_of
from kserve_wasm.server.repository import WasmModelRepository

logger = logging.getLogger(__name__)


class Inference:
    """Answers inference requests; takes and gives serialized messages.

    Args:
        repository: where the models are.
        log_requests: write a log line for each request.
    """

    def __init__(self, repository: WasmModelRepository, log_requests: bool) -> None:
        self._repository = repository
        self._log_requests = log_requests

    async def infer(self, data: bytes, context: Any) -> bytes:
        """Answer one ``ModelInferRequest`` with a ``ModelInferResponse``."""
        answer, _ = await self._answer(data, context)
        if isinstance(answer, Failure):
            del data
            await abort(context, answer)
        return answer.SerializeToString()  # type: ignore[no-any-return]

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer each request of a stream with one answer, in their order.

        A request that fails is answered in the stream, with ``error_message`` and the request's id, and the stream
        goes on (Triton's behaviour).
        """
        async for data in requests:
            result, request_id = await self._answer(data, context)
            if isinstance(result, Failure):
                answer = ModelStreamInferResponse(error_message=result.text)
                answer.infer_response.id = request_id
            else:
                answer = ModelStreamInferResponse(infer_response=result)
            yield answer.SerializeToString()

    async def _answer(self, data: bytes, context: Any) -> tuple[Any | Failure, str]:
        """Answer a request, and count it; gives the ``ModelInferResponse`` or the failure, and the request's id."""
        started = time.monotonic()
        # The client's own deadline counts beside the model's timeout; None is a client that sets none.
        remaining = context.time_remaining()
        deadline = math.inf if remaining is None else started + remaining
        metrics = UNKNOWN_MODEL.v2_grpc
        request_id = ""
        model = None
        try:
            message = codec.parse(data)
            request_id = message.id
            model = self._repository.find(message.model_name, message.model_version)
            model.leases += 1
            metrics = model.metrics.v2_grpc
            if codec.is_slow_to_decode(message, len(data)):
                request = await in_codec_thread(codec.decode, message)
            else:
                request = codec.decode(message)
            del message
            deadline = min(deadline, started + timeout_of(request.parameters))
            response = await model.infer(request, deadline)
            if codec.is_slow_to_encode(response):
                answer = await in_codec_thread(codec.encode, response, model.name, model.version, request_id)
            else:
                answer = codec.encode(response, model.name, model.version, request_id)
        except asyncio.CancelledError:
            self._finished(metrics, "CANCELLED", started, len(data), 0)
            raise
        except Exception as error:
            failure = failure_of(error)
            self._finished(metrics, failure.code.name, started, len(data), 0)
            return failure, request_id
        finally:
            if model is not None:
                model.leases -= 1
        self._finished(metrics, "OK", started, len(data), answer.ByteSize())
        return answer, request_id

    def _finished(
        self, metrics: ProtocolMetrics, code: str, started: float, received: int, sent: int
    ) -> None:
        seconds = time.monotonic() - started
        metrics.finished(code, seconds, received, sent)
        if self._log_requests:
            logger.info("ModelInfer %s: %.3f ms, %d bytes in, %d out", code, seconds * 1e3, received, sent)
