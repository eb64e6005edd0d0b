"""The gRPC health checking protocol (``grpc.health.v1``), which Kubernetes' gRPC probes speak."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from kserve_wasm.server.grpc.messages import HEALTH, INFERENCE, message
from kserve_wasm.server.repository import WasmModelRepository

_Request = message(f"{HEALTH}CheckRequest")
_Response = message(f"{HEALTH}CheckResponse")

WATCH_SECONDS = 0.5
"""How often a watched status is looked at."""


class Health:
    """Says whether the server, or one model by its name, is ready.

    Args:
        repository: where the models are.
    """

    def __init__(self, repository: WasmModelRepository) -> None:
        self._repository = repository

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Make the handler of each method, by its name."""
        return {
            "Check": grpc.unary_unary_rpc_method_handler(self._check),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }

    async def _check(self, data: bytes, context: Any) -> bytes:
        status = self._status(await _service(data, context))
        if status == "SERVICE_UNKNOWN":
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _Response(status=status).SerializeToString()  # type: ignore[no-any-return]

    async def _watch(self, data: bytes, context: Any) -> AsyncIterator[bytes]:
        service = await _service(data, context)
        last = None
        while True:
            status = self._status(service)
            if status != last:
                last = status
                yield _Response(status=status).SerializeToString()
            if self._repository.draining:
                # A watch that stayed open would hold the shutdown up for the whole grace period.
                return
            await asyncio.sleep(WATCH_SECONDS)

    def _status(self, service: str) -> str:
        if service in ("", INFERENCE):
            ready = self._repository.ready
        elif self._repository.is_known(service):
            ready = self._repository.is_ready(service)
        else:
            return "SERVICE_UNKNOWN"
        return "SERVING" if ready else "NOT_SERVING"


async def _service(data: bytes, context: Any) -> str:
    try:
        name: str = _Request.FromString(data).service
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is not a HealthCheckRequest")
        raise AssertionError("abort raises") from None
    return name
