"""V1's ``:predict`` and ``:explain``: the SDK's own endpoints, given a body that is within the limit and plain."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from kserve.protocol.rest.v1_endpoints import V1Endpoints
from starlette.types import Message

from kserve_wasm.server.rest.compression import decompress
from kserve_wasm.server.rest.routes import closing_if_too_large, read_body


def install(app: FastAPI, endpoints: V1Endpoints, limit: int) -> None:
    """Adds the routes; to be called before the SDK adds its own.

    Args:
        app: the application.
        endpoints: the SDK's V1 endpoints.
        limit: bytes of a body, as it comes and decompressed.
    """
    for verb, endpoint in (("predict", endpoints.predict), ("explain", endpoints.explain)):
        app.add_api_route(
            f"/v1/models/{{model_name}}:{verb}",
            _with_plain_body(endpoint, limit),
            methods=["POST"],
            response_model=None,
            tags=["V1"],
        )


def _with_plain_body(endpoint: Any, limit: int) -> Any:
    @closing_if_too_large
    async def answer(model_name: str, request: Request) -> Any:
        body = await read_body(request, limit)
        coding = request.headers.get("content-encoding")
        if coding is not None:
            plain = asyncio.to_thread(decompress, body, coding.encode("latin-1"), limit)
            body = bytes(await plain)

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        return await endpoint(model_name, Request(request.scope, receive))

    return answer
