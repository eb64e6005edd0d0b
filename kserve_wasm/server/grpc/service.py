"""The other methods of ``GRPCInferenceService``: health, metadata, repository, configuration, statistics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.server.grpc.messages import INFERENCE, message
from kserve_wasm.server.grpc.status import abort, failure_of
from kserve_wasm.server.metadata import model_config, model_metadata, server_metadata
from kserve_wasm.server.peers import Peers
from kserve_wasm.server.repository import WasmModelRepository


class Service:
    """Answers every unary method but inference.

    Args:
        repository: where the models are.
        peers: all processes that answer on this port.
    """

    def __init__(self, repository: WasmModelRepository, peers: Peers) -> None:
        self._repository = repository
        self._peers = peers

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Make the handler of each method, by its name."""
        methods: dict[str, Callable[[Any], Awaitable[dict[str, Any]]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        return {name: _unary(name, method) for name, method in methods.items()}

    async def _server_live(self, _: Any) -> dict[str, Any]:
        return {"live": True}

    async def _server_ready(self, _: Any) -> dict[str, Any]:
        return {"ready": self._repository.ready}

    async def _server_metadata(self, _: Any) -> dict[str, Any]:
        return server_metadata()

    async def _model_ready(self, request: Any) -> dict[str, Any]:
        return {"ready": self._repository.is_ready(request.name, request.version)}

    async def _model_metadata(self, request: Any) -> dict[str, Any]:
        return model_metadata(self._repository, self._repository.find(request.name, request.version))

    async def _model_config(self, request: Any) -> dict[str, Any]:
        return {"config": model_config(self._repository.find(request.name, request.version))}

    async def _model_statistics(self, request: Any) -> dict[str, Any]:
        if not request.name:
            models = self._repository.served()
        elif request.version:
            models = [self._repository.find(request.name, request.version)]
        else:
            self._repository.find(request.name)
            models = [model for model in self._repository.served() if model.name == request.name]
        return {"model_stats": await self._peers.statistics(models)}

    async def _repository_index(self, request: Any) -> dict[str, Any]:
        return {"models": self._repository.index(request.ready)}

    async def _load(self, request: Any) -> dict[str, Any]:
        name = _model_name(request)
        await self._peers.load(name)
        return {"model_name": name, "is_loaded": True}

    async def _unload(self, request: Any) -> dict[str, Any]:
        name = _model_name(request)
        await self._peers.unload(name)
        return {"model_name": name, "is_unloaded": True}


def _model_name(request: Any) -> str:
    # KServe's clients put the name where Triton's have the repository's.
    name: str = request.model_name or request.repository_name
    if not name:
        raise InvalidRequest("model_name is empty")
    return name


def _unary(name: str, method: Callable[[Any], Awaitable[dict[str, Any]]]) -> grpc.RpcMethodHandler[Any, Any]:
    request_class = message(f"inference.{name}Request")
    answer_class = message(f"inference.{name}Response")

    async def handle(data: bytes, context: Any) -> bytes:
        try:
            try:
                request = request_class.FromString(data)
            except DecodeError:
                raise InvalidRequest(f"the message is not a {name}Request of {INFERENCE}") from None
            return ParseDict(await method(request), answer_class()).SerializeToString()  # type: ignore[no-any-return]
        except Exception as error:
            failure = failure_of(error)
        del data
        return await abort(context, failure)

    return grpc.unary_unary_rpc_method_handler(handle)
