"""gRPC through Ray Serve's proxies: which methods there are, and requests as bytes.

Ray sends a request from its proxy to a replica by pickling it, which messages with maps in them refuse. Here the proxy
never parses it: the service is registered without message classes, so that a request is the bytes that came.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from kserve_wasm.server.grpc.messages import HEALTH, INFERENCE

UNARY = (
    "ModelConfig",
    "ModelInfer",
    "ModelMetadata",
    "ModelReady",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "ServerLive",
    "ServerMetadata",
    "ServerReady",
)
"""The methods of ``GRPCInferenceService`` with one request and one answer."""
STREAM = "ModelStreamInfer"
CHECK = "Check"
"""Of the health service."""


def add_inference_services(servicer: Any, server: Any) -> None:
    """Registers the services, for ``grpc_servicer_functions``. Ray puts its own handlers in place of these."""
    methods: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in UNARY
    }
    methods[STREAM] = grpc.stream_stream_rpc_method_handler(getattr(servicer, STREAM))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(INFERENCE, methods),))
    check: dict[str, Any] = {CHECK: grpc.unary_unary_rpc_method_handler(getattr(servicer, CHECK))}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH, check),))


@dataclass(frozen=True, slots=True)
class Reply:
    """A serialized message, with the one method that Ray calls of a message."""

    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802
        """The message."""
        return self.data


class _Aborted(Exception):
    pass


class _Context:
    """What our handlers use of grpcio's context, upon the one that Ray sends along.

    A client's deadline does not reach the replica. Ray's proxy cancels the request when it passes.
    """

    def __init__(self, context: Any) -> None:
        self._context = context

    def time_remaining(self) -> None:
        """Nobody knows."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> NoReturn:
        """Ends the call."""
        self._context.set_code(code)
        self._context.set_details(details)
        if trailing:
            self._context.set_trailing_metadata([*self._context.trailing_metadata(), *trailing])
        raise _Aborted


async def call(handler: Any, data: bytes, context: Any) -> Reply:
    """Has a unary ``handler`` answer. An error goes into Ray's ``context``: raised, it would be logged by the proxy."""
    try:
        return Reply(await handler.unary_unary(data, _Context(context)))
    except _Aborted:
        return Reply(b"")


async def stream(handler: Any, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Reply]:
    """Has a streaming ``handler`` answer."""
    try:
        async for answer in handler.stream_stream(requests, _Context(context)):
            yield Reply(answer)
    except _Aborted:
        pass
