"""Errors as gRPC statuses."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

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


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Choose the status code and the text that a client may see; what is not meant for one goes to the log."""
    if isinstance(error, WasmServingError):
        return grpc.StatusCode[error.grpc_code], _clip(str(error))
    for kind, code in _SDK_CODES.items():
        if isinstance(error, kind):
            return code, _clip(str(error))
    logger.error("unexpected error while answering a gRPC request", exc_info=error)
    return grpc.StatusCode.INTERNAL, "internal server error"


async def abort(context: Any, code: grpc.StatusCode, text: str, error: Exception) -> None:
    """End the call with a status; a full queue says when to try again (gRPC retry design, "pushback")."""
    trailing: tuple[tuple[str, str], ...] = ()
    if isinstance(error, QueueFull):
        trailing = (
            ("retry-after", str(math.ceil(error.retry_after))),
            ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after * 1000))),
        )
    await context.abort(code, text, trailing)


def _clip(text: str) -> str:
    data = text.encode(errors="replace")
    if len(data) <= _MESSAGE_BYTES:
        return data.decode()
    return data[:_MESSAGE_BYTES].decode(errors="ignore") + "…"
