"""One of several workers: it does what the supervisor says, and what reaches the others goes through it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import prometheus_client.values
from prometheus_client import CollectorRegistry, Metric, exposition
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.requests import Request
from starlette.responses import Response

from kserve_wasm.errors import ModelNotReady, WasmServingError
from kserve_wasm.server.link import Link
from kserve_wasm.server.peers import statistics_rows
from kserve_wasm.server.workers import WORKER

if TYPE_CHECKING:
    from kserve_wasm.model import WasmModel
    from kserve_wasm.server.repository import WasmModelRepository
    from kserve_wasm.server.server import WasmModelServer

logger = logging.getLogger(__name__)


class Worker:
    """The place of this process among the workers; also its :class:`~kserve_wasm.server.peers.Peers`.

    To be made before any metric is, because it decides on where their values are kept.
    """

    def __init__(self) -> None:
        index, descriptor = os.environ.pop(WORKER).split(":")
        self._socket = socket.socket(fileno=int(descriptor))
        self._socket.set_inheritable(False)
        self._socket.setblocking(False)
        self._link = Link(self._handle)
        self._calls: dict[str, Callable[..., Awaitable[Any]]] = {}
        # Files by the worker's index, not by its process id: who takes a dead worker's place counts on where it ended,
        # and there are never more files than workers.
        prometheus_client.values.ValueClass = prometheus_client.values.MultiProcessValue(  # type: ignore[no-untyped-call]
            lambda: index
        )

    async def work(
        self,
        server: WasmModelServer,
        repository: WasmModelRepository,
        host: str,
        http_port: int,
        grpc_port: int | None,
    ) -> None:
        """Do what the supervisor says until it is gone, which ends ``server``.

        Args:
            server: what listens when it is time to.
            repository: the models.
            host: the address that the flags name.
            http_port: the port that the flags name.
            grpc_port: the port that the flags name, or None.
        """

        async def start(models: Sequence[str] | None) -> Sequence[str]:
            try:
                return await repository.load_models(models)
            except WasmServingError:
                server.fail()  # the log says why
                raise

        async def listen(http_port: int, grpc_port: int | None) -> None:
            try:
                await server.listen(http_port, grpc_port)
            except (OSError, RuntimeError) as error:
                logger.error("cannot listen: %s", error)
                server.fail()

        async def unload(name: str) -> None:
            await repository.unload(name)

        async def refresh() -> None:
            _metrics().refresh()

        async def statistics() -> list[dict[str, Any]]:
            return statistics_rows(repository.served())

        self._calls = {
            "start": start,
            "listen": listen,
            "load": repository.load,
            "unload": unload,
            "refresh": refresh,
            "statistics": statistics,
        }
        await self._link.open(self._socket)
        running = asyncio.create_task(self._link.run())
        try:
            await self._link.call("hello", host=host, http_port=http_port, grpc_port=grpc_port)
            await running
        except ConnectionError:
            pass
        finally:
            running.cancel()
        logger.error("the supervisor is gone")
        server.fail()

    async def load(self, name: str) -> None:
        """Load a model in every worker; returns when all have, or raises what kept one from it."""
        await self._ask("change", change="load", name=name)

    async def unload(self, name: str) -> None:
        """Unload a model in every worker; returns when all have, or raises what kept one from it."""
        await self._ask("change", change="unload", name=name)

    async def statistics(self, models: Sequence[WasmModel]) -> list[dict[str, Any]]:
        """Give the statistics of ``models``, summed over the workers that answer in time."""
        from kserve_wasm.statistics import add_statistics

        rows = statistics_rows(models)
        others: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for answer in await self._ask("ask", what="statistics"):
            for row in answer:
                others.setdefault((row["name"], row["version"]), []).append(row)
        return [add_statistics([row, *others.get((row["name"], row["version"]), ())]) for row in rows]

    async def metrics(self, request: Request) -> Response:
        """Answer a scrape for all workers together."""
        await self._ask("ask", what="refresh")
        _metrics().refresh()
        registry = CollectorRegistry()
        registry.register(_Together())
        encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(await asyncio.to_thread(encode, registry), headers={"content-type": content_type})

    async def _handle(self, name: str, arguments: dict[str, Any]) -> Any:
        return await self._calls[name](**arguments)

    async def _ask(self, name: str, /, **arguments: Any) -> Any:
        try:
            return await self._link.call(name, **arguments)
        except ConnectionError:
            raise ModelNotReady("the server is about to stop") from None


class _Together:
    """What all workers count, but for versions that this one has unloaded: files do not forget."""

    def collect(self) -> Iterable[Metric]:
        holds = _metrics().holds
        for metric in MultiProcessCollector(None).collect():  # type: ignore[no-untyped-call]
            metric.samples = [
                sample
                for sample in metric.samples
                if "version" not in sample.labels or holds(sample.labels["model"], sample.labels["version"])
            ]
            if metric.samples:
                yield metric


def _metrics() -> Any:
    # Imported late: a metric that exists before the worker does would be kept in memory.
    from kserve_wasm.metrics import ModelMetrics

    return ModelMetrics
