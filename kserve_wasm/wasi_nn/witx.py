"""The core-module ABI ``wasi_ephemeral_nn``: wasi-nn.witx, with what WasmEdge added to it.

Guests of every age link: numbers of tensor types and encodings are told apart as :mod:`.tensor_types` and
:mod:`.encodings` describe. WasmEdge's ``*_single`` calls stream tokens of a GGML graph; no other graph has them.
"""

from __future__ import annotations

import json
import struct

from kserve_wasm.wasi_nn import encodings, transfer
from kserve_wasm.wasi_nn.contexts import ExecutionContext, OpenGraph
from kserve_wasm.wasi_nn.host_function import (
    INVALID_ARGUMENT,
    INVALID_ENCODING,
    SUCCESS,
    TOO_LARGE,
    UNSUPPORTED_OPERATION,
    HostFunction,
)
from kserve_wasm.wasi_nn.state import NNState

MODULE = "wasi_ephemeral_nn"

# struct tensor: dims, n_dims, type (one byte; guests leave garbage in the three behind it), data, length of data.
_TENSOR = struct.Struct("<IIBxxxII")
_PAIR = struct.Struct("<II")
_MAX_BUILDERS = 8
_MAX_CONFIG = 64 * 1024
_TARGETS = 4  # cpu, gpu, tpu, and WasmEdge's auto


# --- Graphs


def load(state: NNState, builders: int, n_builders: int, encoding: int, target: int, graph_out: int) -> int:
    """Opens a graph from the guest's own bytes, if the model's configuration allows that.

    ``target`` must be a known one and is otherwise the operator's to choose. Nothing ends an opening once it has
    begun: after the deadline none begins.
    """
    limit, opener = state.limits.load_bytes, state.registry.opener
    if limit == 0 or opener is None:
        return state.fail(
            UNSUPPORTED_OPERATION,
            "WASI-NN load of the guest's own bytes is off: use load_by_name, or set limits.load_bytes",
        )
    if not 0 < n_builders <= _MAX_BUILDERS or target >= _TARGETS:
        return state.fail(
            INVALID_ARGUMENT,
            f"load takes 1 to {_MAX_BUILDERS} buffers and a target below {_TARGETS}, got {n_builders} and {target}",
        )
    memory = state.memory
    ranges = list(_PAIR.iter_unpack(memory.view(builders, n_builders * _PAIR.size)))
    size = sum(length for _, length in ranges)
    loaded = sum(graph.loaded for graph in state.graphs.values())
    if size + loaded > limit:
        return state.fail(
            TOO_LARGE, f"graphs loaded by the guest may have {limit} bytes (limits.load_bytes), got {size}"
        )
    data = tuple(bytes(memory.view(address, length)) for address, length in ranges)
    name = encodings.recognise(data, encoding)
    if size == 0 or name is None:
        return state.fail(
            INVALID_ENCODING, f"neither the {size} bytes nor encoding {encoding} name a known format"
        )
    state.check_deadline()
    handle = state.new_handle(graph_out)
    if handle:
        state.graphs[handle] = OpenGraph(opener(name, data), size)
    return SUCCESS if handle else TOO_LARGE


def load_by_name(state: NNState, name: int, name_len: int, graph_out: int) -> int:
    """Opens a graph that the model brings or the operator registered, or that was built and kept."""
    opened = state.open_named(name, name_len)
    if isinstance(opened, int):
        return opened
    handle = 0
    try:
        handle = state.new_handle(graph_out)
    finally:
        if handle:
            state.graphs[handle] = opened
        else:
            opened.close()
    return SUCCESS if handle else TOO_LARGE


def load_by_name_with_config(
    state: NNState, name: int, name_len: int, config: int, config_len: int, graph_out: int
) -> int:
    """As ``load_by_name``, with options as a JSON object.

    Graphs are shared by all guests, so their options are the operator's: none or ``{}`` is accepted, and any other is
    refused instead of being silently without effect.
    """
    if config_len > _MAX_CONFIG:
        return state.fail(TOO_LARGE, f"a graph's options may have {_MAX_CONFIG} bytes, got {config_len}")
    text = bytes(state.memory.view(config, config_len)).strip(b"\0 \t\r\n")
    try:
        options = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        return state.fail(INVALID_ARGUMENT, "a graph's options must be a JSON object")
    if options:
        return state.fail(
            UNSUPPORTED_OPERATION,
            f"a guest cannot set options of a shared graph (got '{next(iter(options))[:64]}'): set them in model.yaml",
        )
    return load_by_name(state, name, name_len, graph_out)


def unload(state: NNState, graph: int) -> int:
    """Ends a graph handle and its execution contexts (WasmEdge)."""
    if graph not in state.graphs:
        return state.no_graph(graph)
    state.close_graph(graph)
    return SUCCESS


# --- Execution contexts


def init_execution_context(state: NNState, graph: int, context_out: int) -> int:
    """Opens an execution context of a graph."""
    opened = state.graphs.get(graph)
    if opened is None:
        return state.no_graph(graph)
    handle = state.new_handle(context_out)
    if not handle:
        return TOO_LARGE
    state.contexts[handle] = ExecutionContext(opened)
    return SUCCESS


def set_input(state: NNState, context: int, index: int, tensor: int) -> int:
    """Copies a tensor of the guest's memory into an input."""
    opened = state.contexts.get(context)
    if opened is None:
        return state.no_context(context)
    specs = opened.graph.inputs
    if index >= len(specs):
        return state.no_input(opened, index)
    memory = state.memory
    dims_at, n_dims, tag, data, length = _TENSOR.unpack(memory.view(tensor, _TENSOR.size))
    dims = transfer.read_dims(state, dims_at, n_dims)
    if dims is None:
        return INVALID_ARGUMENT
    return transfer.copy_input(state, opened, specs[index], dims, tag, memory.view(data, length))


def compute(state: NNState, context: int) -> int:
    """Runs the graph on the inputs set, perhaps together with other instances' calls."""
    opened = state.contexts.get(context)
    return state.no_context(context) if opened is None else state.compute(opened)


def get_output(
    state: NNState, context: int, index: int, buffer: int, buffer_len: int, written_out: int
) -> int:
    """Copies an output into the guest's memory, row-major and little-endian.

    Where ``buffer_len`` is too small, the length needed goes to ``written_out`` and the answer is ``TOO_LARGE``.
    """
    opened = state.contexts.get(context)
    if opened is None:
        return state.no_context(context)
    tensor = state.output(opened, index)
    if isinstance(tensor, int):
        return tensor
    data = transfer.output_bytes(tensor)
    size = len(data)
    memory = state.memory
    if size > buffer_len:
        memory.write_u32(written_out, size)
        return state.fail(TOO_LARGE, f"output {index} has {size} bytes, and the guest's buffer {buffer_len}")
    target = memory.view(buffer, size)
    memory.write_u32(written_out, size)
    target[:] = data
    state.to_guest += len(data)
    return SUCCESS


def finalize_execution_context(state: NNState, context: int) -> int:
    """Ends an execution context (WasmEdge)."""
    if context not in state.contexts:
        return state.no_context(context)
    state.close_context(context)
    return SUCCESS


def compute_single(state: NNState, context: int) -> int:
    """Refused: no graph here gives its output token by token (WasmEdge, GGML)."""
    return state.no_context(context) if context not in state.contexts else _no_stream(state)


def get_output_single(
    state: NNState, context: int, _index: int, _buffer: int, _buffer_len: int, _written_out: int
) -> int:
    """Refused, as ``compute_single``."""
    return compute_single(state, context)


def _no_stream(state: NNState) -> int:
    return state.fail(
        UNSUPPORTED_OPERATION, "only a GGML graph computes token by token: use compute and get_output"
    )


FUNCTIONS = (
    HostFunction(MODULE, "load", "iiiii", load),
    HostFunction(MODULE, "load_by_name", "iii", load_by_name),
    HostFunction(MODULE, "load_by_name_with_config", "iiiii", load_by_name_with_config),
    HostFunction(MODULE, "init_execution_context", "ii", init_execution_context),
    HostFunction(MODULE, "set_input", "iii", set_input),
    HostFunction(MODULE, "compute", "i", compute),
    HostFunction(MODULE, "get_output", "iiiii", get_output),
    HostFunction(MODULE, "unload", "i", unload),
    HostFunction(MODULE, "finalize_execution_context", "i", finalize_execution_context),
    HostFunction(MODULE, "compute_single", "i", compute_single),
    HostFunction(MODULE, "get_output_single", "iiiii", get_output_single),
    HostFunction(MODULE, "fini_single", "i", compute_single),
)
