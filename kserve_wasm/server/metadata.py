"""What the server says of itself and of its models, for every protocol: V2 metadata and Triton's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

import kserve_wasm
from kserve_wasm.artifact.config import Batching
from kserve_wasm.backends.base import device_of
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

    ``dynamic_batching`` is that of the model's first graph. Where Triton's ``max_batch_size`` is not 0, its ``dims``
    leave the batch dimension out: so it is here, if the tensors that clients send and get are that graph's own.
    Otherwise it is 0, and shapes are whole. What has no place in Triton's shape stands under ``parameters``.
    """
    config = model.config
    batching = config.batching_of(config.graphs[0].name) if config.graphs else Batching(max_batch_size=1)
    batched = batching.max_batch_size > 1 and _clients_see_batches(model)
    parameters = {
        "version": model.version,
        "abi": config.abi,
        "code_digest": config.digest,
        "device": config.device,
        "graph_devices": ", ".join(
            f"{name} ({device_of(scheduler.graph)})" for name, scheduler in model.guest.schedulers.items()
        ),
        "graphs": ", ".join(f"{graph.name} ({graph.encoding})" for graph in config.graphs),
        "timeout_seconds": f"{config.limits.timeout:g}",
        "memory_bytes": str(config.limits.memory),
        "instance_reuse": str(config.instances.reuse).lower(),
        "batching": orjson.dumps(config.raw.get("batching", {})).decode(),
    }
    description = {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "kserve_wasm",
        "max_batch_size": batching.max_batch_size if batched else 0,
        "input": _config_tensors(model.inputs, skip=int(batched)),
        "output": _config_tensors(model.outputs, skip=int(batched)),
        "default_model_filename": config.module.name,
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }
    if batching.max_batch_size > 1:
        description["dynamic_batching"] = _dynamic_batching(batching)
    return description


def _clients_see_batches(model: WasmModel) -> bool:
    """Whether inputs and outputs are those of the first graph, and all begin with an open dimension."""
    scheduler = model.guest.schedulers.get(model.config.graphs[0].name)
    if scheduler is None:
        return False
    inputs, outputs = tuple(scheduler.graph.inputs), tuple(scheduler.graph.outputs)
    whole = all(spec.v2_shape[:1] == [-1] for spec in (*inputs, *outputs))
    return whole and (tuple(model.inputs), tuple(model.outputs)) == (inputs, outputs)


def _dynamic_batching(batching: Batching) -> dict[str, Any]:
    return {
        "preferred_batch_size": list(batching.preferred_batch_size),
        "max_queue_delay_microseconds": round(batching.max_queue_delay * 1e6),
        "preserve_ordering": False,
        "priority_levels": batching.priority_levels,
        "default_priority_level": batching.default_priority_level,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": round(batching.queue_timeout * 1e6),
            "allow_timeout_override": True,
            "max_queue_size": batching.max_queue_size,
        },
    }


def _tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": spec.name, "datatype": spec.dtype.name, "shape": spec.v2_shape} for spec in specs]


def _config_tensors(specs: Sequence[TensorSpec], skip: int) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            # Triton names the element types as V2 does, behind TYPE_, but for strings.
            "data_type": "TYPE_STRING" if spec.dtype.name == "BYTES" else f"TYPE_{spec.dtype.name}",
            "dims": spec.v2_shape[skip:],
        }
        for spec in specs
    ]
