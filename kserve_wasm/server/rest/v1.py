"""V1's ``:predict`` and ``:explain``: the SDK's own endpoints, given a body that is within the limit and plain."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI, Request
from kserve.protocol.rest.v1_endpoints import V1Endpoints
from starlette.responses import Response
from starlette.types import Message

from kserve_wasm.metrics import UNKNOWN_MODEL
from kserve_wasm.protocol.codec_threads import in_codec_thread
from kserve_wasm.server.repository import WasmModelRepository
from kserve_wasm.server.rest.compression import decompress
from kserve_wasm.server.rest.errors import error_answer, to_response
from kserve_wasm.server.rest.routes import closing_if_too_large, disconnected, read_body

_CLIENT_GONE = 499
"""Of an answer that nobody gets (nginx's number for it)."""


def install(app: FastAPI, endpoints: V1Endpoints, repository: WasmModelRepository, limit: int) -> None:
    """Adds the routes; to be called before the SDK adds its own.

    Args:
        app: the application.
        endpoints: the SDK's V1 endpoints.
        repository: where the models are.
        limit: bytes of a body, as it comes and decompressed.
    """
    for verb, endpoint in (("predict", endpoints.predict), ("explain", endpoints.explain)):
        app.add_api_route(
            f"/v1/models/{{model_name}}:{verb}",
            _route(endpoint, repository, limit),
            methods=["POST"],
            response_model=None,
            tags=["V1"],
        )


def _route(endpoint: Any, repository: WasmModelRepository, limit: int) -> Any:
    @closing_if_too_large
    async def answer(model_name: str, request: Request) -> Response:
        started = time.monotonic()
        body = await read_body(request, limit)
        metrics = UNKNOWN_MODEL.v1
        try:
            metrics = repository.find(model_name).metrics.v1
            plain = await _plain(request, body, limit)
            response = await _unless_gone(request, endpoint(model_name, plain))
        except Exception as error:
            response = to_response(error_answer(error))
        metrics.finished(str(response.status_code), time.monotonic() - started, len(body), len(response.body))
        return response

    return answer


async def _plain(request: Request, body: bytes, limit: int) -> Request:
    """``request`` with ``body`` decompressed, and headers that say so; a model goes by the length."""
    coding = request.headers.get("content-encoding")
    if coding is not None:
        body = bytes(await in_codec_thread(decompress, body, coding.encode("latin-1"), limit))
    of_the_wire = (b"content-encoding", b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in request.scope["headers"] if name not in of_the_wire]
    headers.append((b"content-length", b"%d" % len(body)))

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({**request.scope, "headers": headers}, receive)


async def _unless_gone(request: Request, endpoint: Any) -> Response:
    """What ``endpoint`` answers; it is cancelled when the client goes away."""
    answering = asyncio.ensure_future(endpoint)
    gone = asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            return Response(status_code=_CLIENT_GONE)
        # Not raised: in its traceback this frame, which holds the task that holds it, would keep all of the request.
        error = answering.exception()
        if error is None:
            return answering.result()  # type: ignore[no-any-return]
        return to_response(error_answer(error))
    finally:
        answering.cancel()
        gone.cancel()
