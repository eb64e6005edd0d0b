"""What the server says of itself and of its models, for every protocol: V2 metadata and Triton's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import kserve_wasm
from kserve_wasm.tensors import TensorSpec

if TYPE_CHECKING:
    from kserve_wasm.model import WasmModel
    from kserve_wasm.server.repository import WasmModelRepository

PLATFORM = "wasm"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics")


def server_metadata() -> dict[str, Any]:
    """Give name, version and extensions of the server (V2 "Server Metadata")."""
    return {
        "name": "kserve_wasm",
        "version": kserve_wasm.__version__,
        "extensions": list(EXTENSIONS),
    }


def model_metadata(repository: WasmModelRepository, model: WasmModel) -> dict[str, Any]:
    """Give versions, inputs and outputs of a model (V2 "Model Metadata"); an open dimension is -1."""
    return {
        "name": model.name,
        "versions": repository.versions(model.name),
        "platform": PLATFORM,
        "inputs": _tensors(model.inputs),
        "outputs": _tensors(model.outputs),
    }


def model_config(model: WasmModel) -> dict[str, Any]:
    """Describe a model in the shape of Triton's model configuration.

    ``max_batch_size`` is 0: shapes are whole, no batch dimension is implied. What has no place in Triton's shape
    stands under ``parameters``.
    """
    config = model.config
    parameters = {
        "version": model.version,
        "abi": config.abi,
        "code_digest": config.digest,
        "device": config.device,
        "graphs": ", ".join(f"{graph.name} ({graph.encoding})" for graph in config.graphs),
        "timeout_seconds": f"{config.limits.timeout:g}",
        "memory_bytes": str(config.limits.memory),
        "instance_reuse": str(config.instances.reuse).lower(),
    }
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "kserve_wasm",
        "max_batch_size": 0,
        "input": _config_tensors(model.inputs),
        "output": _config_tensors(model.outputs),
        "default_model_filename": config.module.name,
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }


def _tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": spec.name, "datatype": spec.dtype.name, "shape": spec.v2_shape} for spec in specs]


def _config_tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            # Triton names the element types as V2 does, behind TYPE_, but for strings.
            "data_type": "TYPE_STRING" if spec.dtype.name == "BYTES" else f"TYPE_{spec.dtype.name}",
            "dims": spec.v2_shape,
        }
        for spec in specs
    ]
