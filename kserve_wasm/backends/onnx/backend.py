"""Opens ONNX graphs: bytes, weights, session options and execution providers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnxruntime as ort

from kserve_wasm.backends.base import Device, GraphSource
from kserve_wasm.backends.cpus import available_cpus
from kserve_wasm.backends.onnx.errors import plain
from kserve_wasm.backends.onnx.external_data import relocate
from kserve_wasm.backends.onnx.graph import OnnxGraph
from kserve_wasm.backends.onnx.options import (
    CPU,
    CUDA,
    MAPPED_FROM,
    OPTIMIZATIONS,
    TENSORRT,
    OnnxOptions,
    parse,
)
from kserve_wasm.backends.onnx.providers import provider_options
from kserve_wasm.backends.onnx.shapes import unranked_inputs
from kserve_wasm.errors import BackendError, DeviceUnavailable, ModelLoadError
from kserve_wasm.tensors.devices import cuda

_GPU_PROVIDERS = frozenset(
    {
        CUDA,
        TENSORRT,
        "NvTensorRTRTXExecutionProvider",
        "ROCMExecutionProvider",
        "MIGraphXExecutionProvider",
        "DmlExecutionProvider",
        "WebGpuExecutionProvider",
    }
)
_CUDA_MEMORY = frozenset({CUDA, TENSORRT})
_ERROR, _FATAL = 3, 4  # ONNX Runtime's log severities

ort.set_default_logger_severity(_ERROR)


class OnnxBackend:
    """ONNX Runtime. Options of a graph: :class:`~kserve_wasm.backends.onnx.options.OnnxOptions`."""

    def open(self, source: GraphSource, device: Device) -> OnnxGraph:
        """Opens a graph; its weights stay in their file, mapped, unless they are prepacked.

        Raises:
            ModelLoadError: an option is unknown or wrong.
            DeviceUnavailable: the device, or a provider that the options name, is not there.
            BackendError: ONNX Runtime refuses the graph, or an input or output is no tensor with a V2 datatype.
        """
        options = parse(source.options)
        providers = wanted_providers(options, device)
        weights: Path | None = None
        try:
            # Resolved, because ONNX Runtime refuses a link that leads out of the folder, as in a mounted ConfigMap.
            weights = None if source.weights is None else source.weights.resolve()
            graph_bytes = _read(source)
            model = relocate(graph_bytes, None if weights is None else os.fsencode(weights.name))
            session = ort.InferenceSession(
                model,
                _session_options(options, None if model is graph_bytes else weights),
                providers=providers,
                provider_options=[provider_options(options, name, model, weights) for name in providers],
                enable_fallback=0,  # it prints, and retries on the CPU unasked
            )
            running = session.get_providers()
            actual: Device = "gpu" if _GPU_PROVIDERS.intersection(running) else "cpu"
            unranked = unranked_inputs(model) if any(not i.shape for i in session.get_inputs()) else set()
            accelerator = cuda(options.device_id) if _CUDA_MEMORY.intersection(running) else None
            graph = OnnxGraph(
                source.name, actual, session, unranked, accelerator, cuda_graphs=options.cuda_graphs
            )
        except BackendError as error:
            raise BackendError(f"graph '{source.name}': {error}") from error
        except Exception as error:
            folder = () if weights is None else (weights.parent,)
            raise BackendError(f"graph '{source.name}' cannot be opened: {plain(error, *folder)}") from error
        session._model_bytes = None  # kept by the wrapper for a fall-back that is off: a copy of the graph
        if not options.fallback:
            _require(graph, device, providers, running)
        return graph


def _read(source: GraphSource) -> bytes:
    if source.data is not None:
        return source.data
    if source.path is None:
        raise BackendError("neither a file nor bytes are given")
    with source.path.open("rb") as file:
        file.seek(source.offset)
        data = file.read(-1 if source.length is None else source.length)
    if source.length is not None and len(data) != source.length:
        raise BackendError(f"its file ends after {len(data)} of {source.length} bytes")
    return data


def _session_options(options: OnnxOptions, weights: Path | None) -> Any:
    """ONNX Runtime's options; ``weights`` is None for a graph that keeps its weights in itself."""
    result = ort.SessionOptions()
    result.log_severity_level = _FATAL  # errors come as exceptions; no client shall fill the log with them
    result.intra_op_num_threads = options.intra_op_threads or available_cpus()
    if options.inter_op_threads > 1:
        result.inter_op_num_threads = options.inter_op_threads
        result.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    result.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, OPTIMIZATIONS[options.graph_optimization]
    )
    prepack = options.prepacking
    if prepack is None:
        prepack = weights is None or weights.stat().st_size < MAPPED_FROM
    entries = {
        "session.intra_op.allow_spinning": "0",
        "session.inter_op.allow_spinning": "0",
        **options.session,
        "session.load_model_format": "ONNX",  # else the bytes may also choose ORT's own, unverified format
        "session.disable_prepacking": "0" if prepack else "1",
    }
    if weights is not None:
        entries["session.model_external_initializers_file_folder_path"] = str(weights.parent)
    for key, value in entries.items():
        result.add_session_config_entry(key, value)
    return result


def wanted_providers(options: OnnxOptions, device: Device) -> list[str]:
    """The execution providers to start, best first.

    Raises:
        DeviceUnavailable: one is not part of this build, and ``options.fallback`` does not allow for that.
        ModelLoadError: they do not go together.
    """
    wanted = list(options.providers) or ([CUDA, CPU] if device == "gpu" else [CPU])
    if options.tensorrt and device == "gpu" and TENSORRT not in wanted:
        wanted.insert(0, TENSORRT)
    if (
        options.cuda_graphs and TENSORRT in wanted
    ):  # which replays one captured graph, whatever the inputs' shapes
        raise ModelLoadError(
            "options 'tensorrt' and 'cuda_graphs' of an ONNX graph exclude each other: leave one out"
        )
    available = ort.get_available_providers()
    missing = [name for name in wanted if name not in available]
    if missing and not options.fallback:
        raise DeviceUnavailable(
            f"ONNX Runtime here has no {', '.join(missing)}, only {', '.join(available)}; install the build that has "
            "it (for CUDA: the 'cuda' extra), or allow the CPU with the graph's option 'fallback: true'"
        )
    if _CUDA_MEMORY.intersection(wanted, available):
        ort.preload_dlls()  # CUDA and cuDNN from their wheels, which are not on the loader's path
    return [name for name in wanted if name in available] or [CPU]


def _require(graph: OnnxGraph, device: Device, wanted: list[str], running: list[str]) -> None:
    """ONNX Runtime drops a provider that fails to start, with no more than a line in its log."""
    lost = [name for name in wanted if name not in running]
    if lost or (device == "gpu" and graph.device != "gpu"):
        raise DeviceUnavailable(
            f"graph '{graph.name}' was to run on {', '.join(lost) or 'a GPU'}, but ONNX Runtime started only "
            f"{', '.join(running)}; check the driver, or allow the CPU with the graph's option 'fallback: true'"
        )
