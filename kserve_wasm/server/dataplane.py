"""The SDK's data plane, with answers that follow the models."""

from __future__ import annotations

from typing import Any

from kserve.errors import InvalidInput
from kserve.protocol.dataplane import DataPlane

from kserve_wasm.errors import InvalidRequest, NotSupported
from kserve_wasm.protocol.checks import not_json
from kserve_wasm.server.metadata import model_metadata, server_metadata
from kserve_wasm.server.repository import WasmModelRepository


class WasmDataPlane(DataPlane):  # type: ignore[misc]  # the SDK has no types
    """What the SDK's own routes (V1, liveness) ask."""

    def __init__(self, repository: WasmModelRepository) -> None:
        super().__init__(repository)
        self._repository = repository

    def metadata(self) -> dict[str, Any]:
        """Give the server's V2 metadata."""
        return server_metadata()

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """Give a model's V2 metadata."""
        return model_metadata(self._repository, self._repository.find(model_name))

    def get_model_from_registry(self, name: str) -> Any:
        """Find a model; raises ModelNotFound or ModelNotReady."""
        return self._repository.find(name)

    async def get_model(self, name: str) -> Any:
        """Find a model. The SDK would load one that is not ready, on the event loop."""
        return self._repository.find(name)

    def decode(self, body: Any, headers: dict[str, str] | None = None) -> Any:
        """Decode a V1 body as the SDK does, whose own InvalidInput would put a traceback into the log."""
        try:
            return super().decode(body, headers)
        except InvalidInput as error:
            raise not_json(error, body) from None

    async def infer(self, model_name: str, request: Any, headers: dict[str, str] | None = None) -> Any:
        """Answer a V1 request as the SDK does."""
        # The SDK looks for the same model, before anything else can happen.
        model = self._repository.find(model_name)
        model.leases += 1
        try:
            return await super().infer(model_name, request, headers)
        except InvalidInput as error:
            raise InvalidRequest(str(error)) from None
        finally:
            model.leases -= 1

    async def explain(self, model_name: str, request: Any, headers: dict[str, str] | None = None) -> Any:  # noqa: ARG002
        """Refuse: no model here has an explainer."""
        self._repository.find(model_name)
        raise NotSupported(f"model '{model_name}' has no explainer")

    async def ready(self) -> bool:
        """Tell whether all models are ready and the server is not draining; the SDK always says yes."""
        return self._repository.ready

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:  # noqa: ARG002
        """Tell that a model is ready; raises ModelNotFound or ModelNotReady."""
        self._repository.find(model_name)
        return True
