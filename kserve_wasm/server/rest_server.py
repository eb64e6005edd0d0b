"""The SDK's REST server with this project's routes and protocol class in front of the SDK's."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI
from kserve.model_server import app
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer, TimingMiddleware, _RefreshingServer
from kserve.protocol.rest.v1_endpoints import V1Endpoints

from kserve_wasm.server.rest import routes, v1
from kserve_wasm.server.rest.codec import MAX_JSON_BYTES
from kserve_wasm.server.rest.context import RestContext
from kserve_wasm.server.rest.errors import install_error_handlers
from kserve_wasm.server.rest.fast_http import fast_protocol
from kserve_wasm.server.settings import Settings


class WasmRESTServer(RESTServer):  # type: ignore[misc]  # the SDK has no types
    """REST on the running event loop.

    Args:
        context: what the routes work with.
        dataplane: for the SDK's own routes.
        extension: for the SDK's own routes.
        settings: where to listen, and what to log.
    """

    def __init__(
        self,
        context: RestContext,
        dataplane: DataPlane,
        extension: ModelRepositoryExtension,
        settings: Settings,
    ) -> None:
        sdk = settings.sdk
        super().__init__(
            app, dataplane, extension, settings.http_port, access_log_format=sdk.access_log_format
        )
        self._context = context
        self.config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.http_port,
            # The SDK's log with a format of its own is made by a middleware, which sees what the application answers.
            http="httptools" if sdk.access_log_format else fast_protocol(context),
            log_config=None,
            access_log=settings.log_requests,
            server_header=False,
            timeout_graceful_shutdown=settings.grace_period,  # type: ignore[arg-type]  # passed on to wait_for
            timeout_keep_alive=sdk.timeout_keep_alive,
            loop=sdk.event_loop,
            ssl_certfile=sdk.ssl_certfile,
            ssl_keyfile=sdk.ssl_keyfile,
        )
        self._server = _Server(self.config)

    def bind(self, port: int, shared: bool = False) -> int:
        """Listen, before anything else starts; raises OSError when the port cannot be had.

        Args:
            port: where; 0 takes a free port.
            shared: other workers listen on the same port.

        Returns:
            The port.
        """
        host = self.config.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server(
            (host, port), family=family, backlog=self.config.backlog, reuse_port=shared
        )
        return int(self._socket.getsockname()[1])

    async def serve(self) -> None:
        """Answer until :meth:`stop`, and then until the running requests end; to be called once."""
        self.create_application()
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Close the listening socket; :meth:`serve` returns when the running requests have ended."""
        self._server.should_exit = True

    def _register_endpoints(self, app: FastAPI) -> None:
        # Starlette takes the first route that fits: ours stand before the SDK's.
        routes.install(app, self._context)
        endpoints = V1Endpoints(self.dataplane, self.model_repository_extension)
        limit = min(self._context.max_request_bytes, MAX_JSON_BYTES)  # V1 is all JSON
        v1.install(app, endpoints, self._context.repository, limit)
        super()._register_endpoints(app)

    def _add_exception_handlers(self, app: FastAPI) -> None:
        super()._add_exception_handlers(app)
        install_error_handlers(app)

    def _add_middlewares(self, app: FastAPI) -> None:
        # The SDK's other middleware writes two more lines for each request.
        if self.access_log_format:
            super()._add_middlewares(app)
            app.user_middleware = [m for m in app.user_middleware if m.cls is not TimingMiddleware]


class _Server(_RefreshingServer):  # type: ignore[misc]
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: uvicorn would stop accepting at once, without a drain."""
        yield
