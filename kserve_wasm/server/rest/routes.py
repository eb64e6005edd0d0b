"""The V2 routes that the SDK lacks or gets wrong. They are registered before the SDK's, and so win over them.

Sources: Open Inference Protocol; Triton's extensions for the model repository, model configuration and statistics.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson
from fastapi import APIRouter, FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from kserve_wasm.errors import InvalidRequest, PayloadTooLarge
from kserve_wasm.protocol.checks import brief
from kserve_wasm.server.metadata import model_config, model_metadata, server_metadata
from kserve_wasm.server.rest.answer import Answer
from kserve_wasm.server.rest.context import RestContext
from kserve_wasm.server.rest.errors import error_answer, to_response
from kserve_wasm.server.rest.infer import Inference

if TYPE_CHECKING:
    from kserve_wasm.model import WasmModel

_SMALL_BODY = 64 * 1024
_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Awaitable[Any]])


def install(app: FastAPI, context: RestContext) -> None:
    """Add the routes to ``app``; to be called before the SDK adds its own."""
    routes = _Routes(context)
    router = APIRouter(prefix="/v2", tags=["V2"])
    model, version = "/models/{model_name}", "/models/{model_name}/versions/{model_version}"
    for method, paths, endpoint in (
        ("GET", ("",), routes.server_metadata),
        ("GET", ("/health/ready",), routes.server_ready),
        # Before /models/{model_name}, which would take it for a model.
        ("GET", ("/models/stats",), routes.all_statistics),
        ("GET", (model, version), routes.model_metadata),
        ("GET", (f"{model}/ready", f"{version}/ready"), routes.model_ready),
        ("GET", (f"{model}/config", f"{version}/config"), routes.model_config),
        ("GET", (f"{model}/stats", f"{version}/stats"), routes.model_statistics),
        ("POST", (f"{model}/infer", f"{version}/infer"), routes.infer),
        ("POST", ("/repository/index",), routes.index),
        ("POST", ("/repository/models/{model_name}/load",), routes.load),
        ("POST", ("/repository/models/{model_name}/unload",), routes.unload),
    ):
        for path in paths:
            router.add_api_route(path, endpoint, methods=[method], response_model=None)
    app.include_router(router)


def closing_if_too_large(endpoint: _Endpoint) -> _Endpoint:
    """Makes ``endpoint`` end the connection with its 413: the rest of the body was not read."""

    @functools.wraps(endpoint)
    async def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            return await endpoint(*arguments, **options)
        except PayloadTooLarge as error:
            answer = error_answer(error)
            answer.headers.append((b"connection", b"close"))
            return to_response(answer)

    return cast("_Endpoint", guarded)


class _Routes:
    def __init__(self, context: RestContext) -> None:
        self._context = context
        self._repository = context.repository

    async def server_metadata(self) -> Response:
        return _json(server_metadata())

    async def server_ready(self) -> Response:
        if self._repository.ready:
            return _json({"ready": True})
        return _json({"ready": False, "reason": self._repository.not_ready_reason}, 503)

    async def model_metadata(self, model_name: str, model_version: str | None = None) -> Response:
        return _json(model_metadata(self._repository, self._repository.find(model_name, model_version)))

    async def model_ready(self, model_name: str, model_version: str | None = None) -> Response:
        self._repository.find(model_name, model_version)
        return _json({"name": model_name, "ready": True})

    async def model_config(self, model_name: str, model_version: str | None = None) -> Response:
        return _json(model_config(self._repository.find(model_name, model_version)))

    async def model_statistics(self, model_name: str, model_version: str | None = None) -> Response:
        found = self._repository.find(model_name, model_version)
        if model_version is not None:
            return await self._statistics([found])
        return await self._statistics([m for m in self._repository.served() if m.name == found.name])

    async def all_statistics(self) -> Response:
        return await self._statistics(self._repository.served())

    async def _statistics(self, models: Sequence[WasmModel]) -> Response:
        return _json({"model_stats": await self._context.peers.statistics(models)})

    async def index(self, request: Request) -> Response:
        body = _object(await read_body(request, _SMALL_BODY))
        ready = body.get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidRequest(f"'ready' must be true or false, got {brief(ready)}")
        return _json(self._repository.index(ready))

    async def load(self, model_name: str, request: Request) -> Response:
        parameters = _object(await read_body(request, _SMALL_BODY)).get("parameters")
        if parameters:
            raise InvalidRequest(
                "a load takes no parameters here: the model's configuration is in its directory, not in the request"
            )
        await self._context.peers.load(model_name)
        return _json({"name": model_name, "load": True})

    async def unload(self, model_name: str) -> Response:
        await self._context.peers.unload(model_name)
        return _json({"name": model_name, "unload": True})

    @closing_if_too_large
    async def infer(self, request: Request, model_name: str, model_version: str | None = None) -> Response:
        body = await read_body(request, self._context.max_request_bytes)
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answer] = loop.create_future()

        def reply(answer: Answer) -> None:
            if not answered.done():
                answered.set_result(answer)

        inference = Inference(self._context, loop, dict(request.scope["headers"]), body, reply)
        inference.start(model_name, model_version)
        gone = asyncio.ensure_future(disconnected(request))
        gone.add_done_callback(lambda _: answered.cancel())
        try:
            return to_response(await answered)
        except asyncio.CancelledError:
            inference.cancel()
            if gone.done():
                raise ClientDisconnect from None
            raise
        finally:
            gone.cancel()


async def disconnected(request: Request) -> None:
    """Wait until the client of ``request``, whose body is read, goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body whole; raises PayloadTooLarge above ``limit`` bytes."""
    announced = request.headers.get("content-length", "")
    parts: list[bytes] = []
    received = int(announced) if announced.isdecimal() else 0
    if received <= limit:
        received = 0
        async for part in request.stream():
            received += len(part)
            if received > limit:
                break
            parts.append(part)
    if received > limit:
        raise PayloadTooLarge(f"the request is larger than the limit of {limit} bytes")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _object(body: bytes) -> dict[str, Any]:
    """Read a body that may be empty and is otherwise a JSON object."""
    try:
        message = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the request is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise InvalidRequest(f"the request must be a JSON object, got {brief(message)}")
    return message


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
