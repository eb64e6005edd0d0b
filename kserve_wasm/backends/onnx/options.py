"""The options of an ONNX graph: ``graphs[].options`` in ``model.yaml``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kserve_wasm.errors import ModelLoadError

OPTIMIZATIONS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
"""``graph_optimization`` → a name in ``onnxruntime.GraphOptimizationLevel``."""

SESSION = (
    "mlas.disable_kleidiai",
    "mlas.enable_gemm_fastmath_arm64_bfloat16",
    "optimization.constant_folding_max_output_size_in_bytes",
    "optimization.disable_specified_optimizers",
    "optimization.enable_cast_chain_elimination",
    "optimization.enable_gelu_approximation",
    "session.disable_aot_function_inlining",
    "session.disable_cpu_ep_fallback",
    "session.disable_double_qdq_remover",
    "session.disable_qdq_constant_folding",
    "session.disable_quant_qdq",
    "session.dynamic_block_base",
    "session.enable_dq_matmulnbits_fusion",
    "session.enable_quant_qdq_cleanup",
    "session.force_spinning_stop",
    "session.inter_op.allow_spinning",
    "session.intra_op.allow_spinning",
    "session.qdq_matmulnbits_accuracy_level",
    "session.qdq_matmulnbits_block_size",
    "session.qdqisint8allowed",
    "session.set_denormal_as_zero",
    "session.use_device_allocator_for_initializers",
    "session.x64quantprecision",
)
"""ONNX Runtime's configuration entries that ``session`` may have: those that only say how to compute.

Options may come from a model's file, and there are entries that name files of the host to write or to read.
"""


CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
CPU = "CPUExecutionProvider"

PROVIDER: dict[str, tuple[str, ...]] = {
    CUDA: (
        "arena_extend_strategy",
        "cudnn_conv1d_pad_to_nc1d",
        "cudnn_conv_algo_search",
        "cudnn_conv_use_max_workspace",
        "do_copy_in_default_stream",
        "enable_skip_layer_norm_strict_mode",
        "fuse_conv_bias",
        "gpu_mem_limit",
        "prefer_nhwc",
        "sdpa_kernel",
        "tunable_op_enable",
        "tunable_op_max_tuning_duration_ms",
        "tunable_op_tuning_enable",
        "use_ep_level_unified_stream",
        "use_tf32",
    ),
    TENSORRT: (
        "trt_auxiliary_streams",
        "trt_bf16_enable",
        "trt_build_heuristics_enable",
        "trt_builder_optimization_level",
        "trt_context_memory_sharing_enable",
        "trt_engine_cache_enable",
        "trt_force_sequential_engine_build",
        "trt_force_timing_cache",
        "trt_fp16_enable",
        "trt_int8_enable",
        "trt_int8_use_native_calibration_table",
        "trt_layer_norm_fp32_fallback",
        "trt_max_partition_iterations",
        "trt_max_workspace_size",
        "trt_min_subgraph_size",
        "trt_op_types_to_exclude",
        "trt_profile_max_shapes",
        "trt_profile_min_shapes",
        "trt_profile_opt_shapes",
        "trt_sparsity_enable",
        "trt_timing_cache_enable",
    ),
}
"""What ``provider_options`` may have for each execution provider: what names no file, device or address of the host."""


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """How ONNX Runtime opens and runs a graph.

    Attributes:
        intra_op_threads: threads that one operator may use; 0 takes the CPUs this process may use, its cgroup's quota
            included (ONNX Runtime's own default counts the machine's cores). The calling thread is one of them, and
            concurrent runs share the others. They do not spin while they wait: spinning threads of an idle graph take
            the cores from the guests and the event loop. 1 is the choice where many requests always run at once:
            then each stays on its own core.
        inter_op_threads: operators that may run side by side; above 1, ONNX Runtime's parallel execution mode is on.
        providers: execution providers by ONNX Runtime's names, best first; empty takes those of the device.
        prepacking: copy weights into the layout that the CPU kernels like best. Matrix products then run 1.3 to 3
            times as fast, but a 100 MB graph opens in 40 to 300 ms instead of 2, and its weights occupy private memory
            instead of lying file-backed in the page cache. None prepacks graphs whose weights file is smaller than
            :data:`MAPPED_FROM` bytes.
        graph_optimization: ``none``, ``basic``, ``extended``, ``layout`` or ``all``.
        fallback: run on the CPU where the device, or a provider of the list, is not there.
        session: further session configuration entries, as ONNX Runtime spells them: those of :data:`SESSION`.
        device_id: which of the host's GPUs runs the graph.
        tensorrt: on a GPU, let TensorRT compile the parts of the graph that it knows; CUDA runs the rest.
        cuda_graphs: on a GPU, launch all kernels of a run as one. Pays where kernels are short and many. For graphs
            without control flow, all of whose operators run on the GPU, and without TensorRT; one run at a time,
            captured for each of the first 16 shapes of inputs: ``preferred_batch_size`` and ``padding`` keep these few.
            While one is captured, CUDA refuses new memory to all other runs of the process, and these fail.
        provider_options: options of execution providers by ONNX Runtime's names, those of :data:`PROVIDER`:
            ``{CUDAExecutionProvider: {gpu_mem_limit: 4294967296}}``. What TensorRT caches lies in the cache directory.
    """

    intra_op_threads: int = 0
    inter_op_threads: int = 1
    providers: tuple[str, ...] = ()
    prepacking: bool | None = None
    graph_optimization: str = "all"
    fallback: bool = False
    session: Mapping[str, str] = field(default_factory=dict)
    device_id: int = 0
    tensorrt: bool = False
    cuda_graphs: bool = False
    provider_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


MAPPED_FROM = 64 << 20
"""Bytes of a weights file from which on it is used in place, not prepacked."""


def parse(options: Mapping[str, Any]) -> OnnxOptions:
    """Reads ``options`` as they stand in ``model.yaml``.

    Raises:
        ModelLoadError: an option is unknown, or its value is not one it takes.
    """
    known = {f.name for f in fields(OnnxOptions)}
    unknown = sorted(str(name) for name in options if name not in known)
    if unknown:
        raise ModelLoadError(
            f"unknown option {', '.join(unknown)} of an ONNX graph; known: {', '.join(sorted(known))}"
        )
    return OnnxOptions(**{name: _READERS[name](name, value) for name, value in options.items()})


def _wrong(name: str, expected: str, value: object) -> ModelLoadError:
    return ModelLoadError(f"option '{name}' of an ONNX graph must be {expected}, got {value!r}")


def _threads(name: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1024:
        return value
    raise _wrong(name, "a number of threads from 0 (the default) to 1024", value)


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _wrong(name, "true or false", value)


def _names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return tuple(value)
    raise _wrong(name, "a list of execution providers, such as [CPUExecutionProvider]", value)


def _optimization(name: str, value: object) -> str:
    if isinstance(value, str) and value in OPTIMIZATIONS:
        return value
    raise _wrong(name, f"one of {', '.join(OPTIMIZATIONS)}", value)


def _device_id(name: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 256:
        return value
    raise _wrong(name, "the number of a GPU, from 0 on", value)


def _session(name: str, value: object) -> dict[str, str]:
    return _entries(name, value, SESSION)


def _provider_options(name: str, value: object) -> dict[str, dict[str, str]]:
    if not isinstance(value, Mapping) or not all(provider in PROVIDER for provider in value):
        raise _wrong(name, f"a mapping whose keys are of {', '.join(PROVIDER)}", value)
    return {
        provider: _entries(f"{name}.{provider}", entries, PROVIDER[provider])
        for provider, entries in value.items()
    }


def _entries(name: str, value: object, known: tuple[str, ...]) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(k, str) and isinstance(v, str | int | float) for k, v in value.items()
    ):
        raise _wrong(name, "a mapping of configuration entries to text, numbers or true and false", value)
    refused = sorted(key for key in value if key not in known)
    if refused:
        raise ModelLoadError(
            f"option '{name}' of an ONNX graph cannot set {', '.join(map(repr, refused))}; "
            f"it takes: {', '.join(known)}"
        )
    return {k: str(int(v)) if isinstance(v, bool) else str(v) for k, v in value.items()}


_READERS: dict[str, Callable[[str, object], Any]] = {
    "intra_op_threads": _threads,
    "inter_op_threads": _threads,
    "providers": _names,
    "prepacking": _flag,
    "graph_optimization": _optimization,
    "fallback": _flag,
    "session": _session,
    "device_id": _device_id,
    "tensorrt": _flag,
    "cuda_graphs": _flag,
    "provider_options": _provider_options,
}
