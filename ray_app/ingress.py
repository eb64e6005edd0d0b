"""The deployment that runs guests, and speaks V2 over HTTP and gRPC: the KServe server behind Ray Serve's proxies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from ray import serve
from starlette.types import ASGIApp

from ray_app import grpc_service
from ray_app.pool import ExecutorPool
from ray_app.scheduler import open_on


class Ingress:
    """A server without sockets of its own.

    Args:
        flags: of ``kserve-wasm serve``.
        executors: Ray's handle for the executors.
    """

    async def __init__(self, flags: Sequence[str], executors: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        # The SDK takes two seconds to import: not for those who only name this class.
        from kserve_wasm.server.grpc.health import Health
        from kserve_wasm.server.grpc.server import inference_handlers
        from kserve_wasm.server.main import make_repository, read_settings
        from kserve_wasm.server.peers import Alone
        from kserve_wasm.server.server import WasmModelServer

        settings = read_settings(flags)
        pool = ExecutorPool(executors, serve.get_replica_context().app_name)
        self._repository = make_repository(settings, partial(open_on, pool))
        self._application = WasmModelServer(self._repository, settings).application()
        self._handlers = (
            inference_handlers(self._repository, Alone(self._repository), settings.log_requests)
            | Health(self._repository).handlers()
        )
        # A replica that begins to answer has its models.
        await self._repository.load_models()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray calls after the constructor."""
        return self._application

    async def ModelStreamInfer(self, requests: Any, grpc_context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Answers the requests of a stream."""
        async for answer in grpc_service.stream(self._handlers[grpc_service.STREAM], requests, grpc_context):
            yield answer

    async def __del__(self) -> None:
        """What Ray awaits before the replica ends."""
        await self._repository.close()


def _unary(name: str) -> Any:
    async def method(self: Ingress, request: bytes, grpc_context: Any) -> grpc_service.Reply:
        return await grpc_service.call(self._handlers[name], request, grpc_context)

    method.__name__ = name  # Ray finds methods by it
    return method


for _name in (*grpc_service.UNARY, grpc_service.CHECK):
    setattr(Ingress, _name, _unary(_name))

WasmIngress = serve.ingress()(Ingress)
