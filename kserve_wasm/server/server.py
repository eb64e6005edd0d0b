"""The server's life: listen, load, answer, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import kserve
from fastapi import FastAPI

from kserve_wasm.errors import WasmServingError
from kserve_wasm.server.dataplane import WasmDataPlane
from kserve_wasm.server.grpc.server import make_server
from kserve_wasm.server.peers import Alone
from kserve_wasm.server.ports import naming_flag
from kserve_wasm.server.repository import WasmModelRepository
from kserve_wasm.server.rest.context import RestContext
from kserve_wasm.server.rest_server import WasmRESTServer
from kserve_wasm.server.settings import Settings
from kserve_wasm.server.worker import Worker

logger = logging.getLogger(__name__)


class WasmModelServer(kserve.ModelServer):  # type: ignore[misc]  # the SDK has no types
    """KServe's model server, with models that come and go, a gRPC server of its own, and an orderly end.

    Args:
        repository: where the models are.
        settings: how to serve them.
        worker: this process's place among several workers; None when it is alone.
    """

    def __init__(
        self, repository: WasmModelRepository, settings: Settings, worker: Worker | None = None
    ) -> None:
        sdk = settings.sdk
        super().__init__(
            http_port=settings.http_port,
            grpc_port=settings.grpc_port or 0,
            workers=1,
            max_asyncio_workers=sdk.max_asyncio_workers,
            registered_models=repository,
            enable_grpc=settings.grpc_port is not None,
            enable_docs_url=sdk.enable_docs_url,
            # A request has one line in the log, the access log's.
            enable_latency_logging=False,
            access_log_format=sdk.access_log_format,
            event_loop=sdk.event_loop,
            timeout_keep_alive=sdk.timeout_keep_alive,
            grace_period=settings.grace_period,
            ssl_certfile=sdk.ssl_certfile,
            ssl_keyfile=sdk.ssl_keyfile,
        )
        self._repository = repository
        self._settings = settings
        self.dataplane = WasmDataPlane(repository)
        self._worker = worker
        self._peers = worker or Alone(repository)
        if worker is not None:
            # The SDK's own, which is added later, knows this process's numbers alone.
            kserve.model_server.app.add_api_route("/metrics", worker.metrics)
        self._rest = WasmRESTServer(
            RestContext(repository, self._peers, settings.max_request_bytes),
            self.dataplane,
            self.model_repository_extension,
            # The SDK's constructor moves the default port to 8443 when it serves HTTPS.
            replace(settings, http_port=self.http_port),
        )
        self._end: asyncio.Future[tuple[int, float]] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._rpc: grpc.aio.Server | None = None

    def start(self, models: Sequence[Any] = ()) -> int:
        """Serve until a signal ends it; ``models`` are served beside the repository's.

        Returns:
            The process's exit status: 0 after an orderly stop, 1 when the one model did not load or a port could not
            be had.
        """
        for model in models:
            self.register_model(model)
        loop = _new_loop(self.event_loop)
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(self._run(loop))
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def application(self) -> FastAPI:
        """The REST half, for whoever listens in this server's stead; to be called once."""
        self._rest.create_application()
        application: FastAPI = kserve.model_server.app
        return application

    def stop(self, sig: int) -> None:
        """Begin to stop, as the signal ``sig`` says; to be called on the event loop. A second call stops at once."""
        if self._end is None or self._end.done():
            logger.warning("stopping at once, on a second signal")
            _leave(128 + sig)
        else:
            # Who presses Ctrl+C has no load balancer that must hear of it first.
            self._end.set_result((0, 0.0 if sig == signal.SIGINT else self._settings.drain_seconds))

    def fail(self) -> None:
        """Begin to stop because the server cannot do its work; the exit status will be 1."""
        if self._end is not None and not self._end.done():
            self._end.set_result((1, 0.0))

    async def listen(self, http_port: int, grpc_port: int | None) -> tuple[int, int | None]:
        """Listen for both protocols.

        Returns:
            The ports: those given, or free ones in place of 0.

        Raises:
            OSError, RuntimeError: a port cannot be had.
        """
        host = self._settings.host
        with naming_flag("http_port", host, http_port):
            http_port = self._rest.bind(http_port, shared=self._worker is not None)
        if grpc_port is not None:
            if self._worker is None:
                with naming_flag("grpc_port", host, grpc_port):
                    _try_port(host, grpc_port)
            self._rpc, grpc_port = self._bind_grpc(grpc_port)
        self._serving = asyncio.create_task(self._rest.serve())
        self._serving.add_done_callback(lambda _: self.fail())
        if self._rpc is not None:
            await self._rpc.start()
        return http_port, grpc_port

    async def _run(self, loop: asyncio.AbstractEventLoop) -> int:
        self.setup_event_loop()
        self._end = loop.create_future()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self.stop, sig)
        # The constructor's port is another than the settings' when it serves HTTPS.
        ports = (self.http_port, self._settings.grpc_port)
        if self._worker is None:
            try:
                http_port, grpc_port = await self.listen(*ports)
            except (OSError, RuntimeError) as error:
                logger.error("cannot listen: %s", error)
                return 1
            logger.info(
                "listening: HTTP port %d, gRPC port %s", http_port, "none" if grpc_port is None else grpc_port
            )
            work = asyncio.create_task(self._load())
        else:
            work = asyncio.create_task(self._worker.work(self, self._repository, self._settings.host, *ports))
        status, drain = await self._end

        self._repository.draining = True
        end = time.monotonic() + self._settings.grace_period
        if self._serving is not None:
            if status == 0:
                logger.info("draining: not ready any more, accepting for another %g s", drain)
            await asyncio.sleep(drain)
            end = time.monotonic() + self._settings.grace_period
            self._rest.stop()
            if self._rpc is not None:
                await self._rpc.stop(self._settings.grace_period)
            await self._serving
        close = asyncio.create_task(self._repository.close())
        work.cancel()
        # A second more, because closing itself takes a moment where the requests took all of the grace period.
        await asyncio.wait({close}, timeout=max(1.0, end - time.monotonic()))
        if not close.done() or self._repository.loading:
            logger.warning("stopping while models still run or load: the grace period is over")
            _leave(status)
        # The last line of a start that failed is the reason.
        if status == 0:
            logger.info("stopped")
        return status

    def _bind_grpc(self, port: int) -> tuple[grpc.aio.Server, int]:
        host = self._settings.host
        sdk = self._settings.sdk
        return make_server(
            self._repository,
            self._peers,
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            max_receive=sdk.grpc_max_receive_message_length,
            max_send=sdk.grpc_max_send_message_length,
            log_requests=self._settings.log_requests,
            # The SDK would leave gRPC open beside an HTTPS port.
            tls=_read_tls(self.ssl_keyfile, self.ssl_certfile),
            shared=self._worker is not None,
        )

    async def _load(self) -> None:
        try:
            await self._repository.load_models()
            # What start-up made (the SDK brings half a million objects) stays for good: no collection shall walk it.
            gc.collect()
            gc.freeze()
        except WasmServingError:
            # Said in the log already. Kubernetes shows the crash loop, and the log's last line why.
            self.fail()


def _try_port(host: str, port: int) -> None:
    """Raise OSError when a port cannot be had: gRPC would not say why, and its C core would write to stderr."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.create_server((host, port), family=family).close()


def _read_tls(key: str | None, certificate: str | None) -> tuple[bytes, bytes] | None:
    if not key or not certificate:
        return None
    return Path(key).read_bytes(), Path(certificate).read_bytes()


def _new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """Make the event loop that ``--event-loop`` asks for: ``auto`` takes uvloop where it is installed."""
    if kind != "asyncio":
        try:
            import uvloop
        except ImportError:
            if kind == "uvloop":
                raise
        else:
            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
            return loop
    return asyncio.new_event_loop()


def _leave(status: int) -> None:
    """End the process without waiting for threads: one may be inside a guest or a framework for long."""
    logging.shutdown()
    os._exit(status)
