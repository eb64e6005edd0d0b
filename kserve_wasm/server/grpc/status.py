"""Errors as gRPC statuses."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import kserve.errors

from kserve_wasm.errors import QueueFull, WasmServingError

logger = logging.getLogger(__name__)

_SDK_CODES: dict[type[Exception], grpc.StatusCode] = {
    kserve.errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    kserve.errors.UnsupportedProtocol: grpc.StatusCode.INVALID_ARGUMENT,
    kserve.errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    kserve.errors.ModelNotReady: grpc.StatusCode.UNAVAILABLE,
    kserve.errors.ServerNotReady: grpc.StatusCode.UNAVAILABLE,
    kserve.errors.ServerNotLive: grpc.StatusCode.UNAVAILABLE,
    NotImplementedError: grpc.StatusCode.UNIMPLEMENTED,
    asyncio.TimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_MESSAGE_BYTES = 2048
"""Status messages travel percent-encoded, up to three times as long, in headers of 8 KiB in all."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a request ends that failed: all that its client sees of the exception.

    Attributes:
        code: the status code.
        text: the status message.
        retry_after: seconds after which to try again, or None.
    """

    code: grpc.StatusCode
    text: str
    retry_after: float | None = None


def failure_of(error: Exception) -> Failure:
    """Choose what a client may see of ``error``; what is not meant for one goes to the log.

    The error loses its traceback: its frames hold the request, which would stay in memory for as long as the error.
    """
    try:
        if isinstance(error, WasmServingError):
            retry_after = error.retry_after if isinstance(error, QueueFull) else None
            return Failure(grpc.StatusCode[error.grpc_code], _clip(str(error)), retry_after)
        for kind, code in _SDK_CODES.items():
            if isinstance(error, kind):
                return Failure(code, _clip(str(error)))
        logger.error("unexpected error while answering a gRPC request", exc_info=error)
        return Failure(grpc.StatusCode.INTERNAL, "internal server error")
    finally:
        error.__traceback__ = error.__context__ = None


async def abort(context: Any, failure: Failure) -> NoReturn:
    """End the call with a status; a full queue says when to try again (gRPC retry design, "pushback").

    To be called outside of any ``except`` block, and by frames that hold nothing of size: gRPC keeps the exception
    that this raises, with all of its traceback and context.
    """
    trailing: tuple[tuple[str, str], ...] = ()
    if failure.retry_after is not None:
        trailing = (
            ("retry-after", str(math.ceil(failure.retry_after))),
            ("grpc-retry-pushback-ms", str(math.ceil(failure.retry_after * 1000))),
        )
    await context.abort(failure.code, failure.text, trailing)
    raise AssertionError("abort raises")


def _clip(text: str) -> str:
    data = text.encode(errors="replace")
    if len(data) <= _MESSAGE_BYTES:
        return data.decode()
    return data[:_MESSAGE_BYTES].decode(errors="ignore") + "…"
