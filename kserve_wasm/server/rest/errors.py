"""Errors as answers: one function for the fast path, the routes and the SDK's own routes."""

from __future__ import annotations

import logging
import math

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from kserve_wasm.errors import QueueFull, WasmServingError
from kserve_wasm.server.rest.answer import JSON_TYPE, Answer

logger = logging.getLogger(__name__)


def error_answer(error: BaseException) -> Answer:
    """Make the answer ``{"error": "…"}`` of an exception.

    What is not an error of this project is a defect of the server: it is logged with its traceback, and the client
    is told nothing of it.
    """
    headers = [JSON_TYPE]
    if isinstance(error, WasmServingError):
        status, message = error.http_status, str(error)
        if isinstance(error, QueueFull):
            headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after))).encode()))
    else:
        status, message = 500, "internal server error; the server's log says more"
        logger.error("unexpected error while answering a request", exc_info=error)
    return Answer(status, headers, [orjson.dumps({"error": message})])


def to_response(answer: Answer) -> Response:
    """Make Starlette's response of an answer."""
    response = Response(b"".join(answer.body), answer.status)
    response.raw_headers.extend(answer.headers)
    return response


async def handle_error(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Answer an exception that left a route; has the form of Starlette's exception handlers."""
    return to_response(error_answer(error))


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """Answer Starlette's own 404 and 405 in the same form: clients look for ``error``, not for ``detail``."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path[:200]}"
    return Response(
        orjson.dumps({"error": message}), error.status_code, error.headers, media_type="application/json"
    )


async def handle_disconnect(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """End a request whose client left; nobody gets this answer, and it is no defect to log."""
    return Response(status_code=499)


def install_error_handlers(app: FastAPI) -> None:
    """Answer errors by :func:`error_answer` in every route of ``app``, and where there is none.

    To be called after the SDK has added its handlers: its one for ``Exception`` tells the client the exception's
    type and text, and the last one added stays.
    """
    app.add_exception_handler(WasmServingError, handle_error)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(ClientDisconnect, handle_disconnect)
    app.add_exception_handler(Exception, handle_error)
