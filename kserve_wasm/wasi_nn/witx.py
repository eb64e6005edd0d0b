"""The core-module ABI ``wasi_ephemeral_nn``: wasi-nn.witx, with what WasmEdge added to it.

Guests of every age link: numbers of tensor types and encodings are told apart as :mod:`.tensor_types` and
:mod:`.encodings` describe. WasmEdge's ``*_single`` calls stream tokens of a GGML graph; no other graph has them.

The bytes of ``set_input`` are copied, once: guests reuse the buffer. ``set_input_tensor`` of ``kserve_wasm.h`` does
without.

An input of type ``BYTES`` takes ``u8`` data as one element, and an output with one element gives that element's bytes:
so prompts and texts need no framing. With any other number of elements the data is the V2 raw encoding, each element
behind its length in four bytes.
"""

from __future__ import annotations

import json
import math
import struct
from typing import TypeAlias

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.tensors import Tensor, TensorSpec
from kserve_wasm.tensors.dtypes import UINT8
from kserve_wasm.wasi_nn import encodings, tensor_types
from kserve_wasm.wasi_nn.host_function import (
    INVALID_ARGUMENT,
    INVALID_ENCODING,
    NOT_FOUND,
    SUCCESS,
    TOO_LARGE,
    UNSUPPORTED_OPERATION,
    HostFunction,
)
from kserve_wasm.wasi_nn.state import ExecutionContext, NNState, OpenGraph, text_bytes

MODULE = "wasi_ephemeral_nn"

# struct tensor: dims, n_dims, type (one byte; guests leave garbage in the three behind it), data, length of data.
_TENSOR = struct.Struct("<IIBxxxII")
_PAIR = struct.Struct("<II")
_DIMS = tuple(struct.Struct(f"<{n}I") for n in range(tensor_types.MAX_DIMS + 1))
_MAX_BUILDERS = 8
_MAX_CONFIG = 64 * 1024
_TARGETS = 4  # cpu, gpu, tpu, and WasmEdge's auto

Buffer: TypeAlias = bytes | memoryview


# --- Graphs


def load(state: NNState, builders: int, n_builders: int, encoding: int, target: int, graph_out: int) -> int:
    """Opens a graph from the guest's own bytes, if the model's configuration allows that.

    ``target`` must be a known one and is otherwise the operator's to choose.
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
    handle = state.new_handle(graph_out)
    if handle:
        state.graphs[handle] = OpenGraph(opener(name, data), size)
    return SUCCESS if handle else TOO_LARGE


def load_by_name(state: NNState, name: int, name_len: int, graph_out: int) -> int:
    """Opens a graph that the model brings or the operator registered."""
    asked = state.name(name, name_len)
    if asked is None:
        return INVALID_ARGUMENT
    scheduler = state.registry.get(asked)
    if scheduler is None:
        known = ", ".join(f"'{n}'" for n in state.registry.names) or "none"
        return state.fail(NOT_FOUND, f"no graph is named '{asked}'; the model has: {known}")
    handle = state.new_handle(graph_out)
    if not handle:
        return TOO_LARGE
    state.graphs[handle] = OpenGraph(scheduler)
    return SUCCESS


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
        return no_graph(state, graph)
    state.close_graph(graph)
    return SUCCESS


# --- Execution contexts


def init_execution_context(state: NNState, graph: int, context_out: int) -> int:
    """Opens an execution context of a graph."""
    opened = state.graphs.get(graph)
    if opened is None:
        return no_graph(state, graph)
    handle = state.new_handle(context_out)
    if not handle:
        return TOO_LARGE
    state.contexts[handle] = ExecutionContext(opened)
    return SUCCESS


def set_input(state: NNState, context: int, index: int, tensor: int) -> int:
    """Copies a tensor of the guest's memory into an input."""
    opened = state.contexts.get(context)
    if opened is None:
        return no_context(state, context)
    specs = opened.graph.inputs
    if index >= len(specs):
        return no_input(state, opened, index)
    memory = state.memory
    dims_at, n_dims, tag, data, length = _TENSOR.unpack(memory.view(tensor, _TENSOR.size))
    dims = read_dims(state, dims_at, n_dims)
    if dims is None:
        return INVALID_ARGUMENT
    return copy_input(state, opened, specs[index], dims, tag, memory.view(data, length))


def compute(state: NNState, context: int) -> int:
    """Runs the graph on the inputs set, perhaps together with other instances' calls."""
    opened = state.contexts.get(context)
    return no_context(state, context) if opened is None else state.compute(opened)


def get_output(
    state: NNState, context: int, index: int, buffer: int, buffer_len: int, written_out: int
) -> int:
    """Copies an output into the guest's memory, row-major and little-endian.

    Where ``buffer_len`` is too small, the length needed goes to ``written_out`` and the answer is ``TOO_LARGE``.
    """
    opened = state.contexts.get(context)
    if opened is None:
        return no_context(state, context)
    tensor = state.output(opened, index)
    if isinstance(tensor, int):
        return tensor
    data = output_bytes(tensor)
    size = len(data)
    memory = state.memory
    if size > buffer_len:
        memory.write_u32(written_out, size)
        return state.fail(TOO_LARGE, f"output {index} has {size} bytes, and the guest's buffer {buffer_len}")
    target = memory.view(buffer, size)
    memory.write_u32(written_out, size)
    target[:] = data
    return SUCCESS


def finalize_execution_context(state: NNState, context: int) -> int:
    """Ends an execution context (WasmEdge)."""
    if context not in state.contexts:
        return no_context(state, context)
    state.close_context(context)
    return SUCCESS


def compute_single(state: NNState, context: int) -> int:
    """Refused: no graph here gives its output token by token (WasmEdge, GGML)."""
    return no_context(state, context) if context not in state.contexts else _no_stream(state)


def get_output_single(
    state: NNState, context: int, _index: int, _buffer: int, _buffer_len: int, _written_out: int
) -> int:
    """Refused, as ``compute_single``."""
    return compute_single(state, context)


# --- What both dialects and the tensor ABI share


def no_graph(state: NNState, handle: int) -> int:
    """The failure of a call with a handle that is no graph's."""
    return state.fail(INVALID_ARGUMENT, f"{handle} is not the handle of an open graph")


def no_context(state: NNState, handle: int) -> int:
    """The failure of a call with a handle that is no execution context's."""
    return state.fail(INVALID_ARGUMENT, f"{handle} is not the handle of an open execution context")


def no_input(state: NNState, context: ExecutionContext, index: int) -> int:
    """The failure of a call with an index that is no input's."""
    names = ", ".join(f"{i}: '{spec.name}'" for i, spec in enumerate(context.graph.inputs))
    return state.fail(INVALID_ARGUMENT, f"the graph has the inputs {names}; got index {index}")


def read_dims(state: NNState, address: int, n_dims: int) -> tuple[int, ...] | None:
    """``n_dims`` dimensions of u32 at ``address``; None, with a reason, when no array can have them."""
    if n_dims <= tensor_types.MAX_DIMS:
        layout = _DIMS[n_dims]
        dims: tuple[int, ...] = layout.unpack(state.memory.view(address, layout.size))
        if tensor_types.fits_an_array(dims):
            return dims
    state.reason = (
        f"a tensor may have {tensor_types.MAX_DIMS} dimensions and 2^60 bytes, got {n_dims} dimensions"
    )
    return None


def copy_input(
    state: NNState,
    context: ExecutionContext,
    spec: TensorSpec,
    dims: tuple[int, ...],
    tag: int,
    data: memoryview,
) -> int:
    """Makes a copy of ``data`` the input ``spec`` of ``context``; ``tag`` is the guest's number of the type."""
    elements, size = math.prod(dims), len(data)
    if spec.dtype.itemsize == 0 and tensor_types.may_mean(tag, spec.dtype):
        return _copy_text(state, context, spec, dims, data)
    if spec.dtype is UINT8 and elements == 1 and size > 1:
        dims, elements = (size,), size  # GGML guests send [1] for N bytes of text
    if spec.dtype.itemsize == 0 or not tensor_types.fits(tag, elements, size, spec.dtype):
        return state.fail(
            INVALID_ARGUMENT,
            f"input '{spec.name}' takes {spec.dtype} with shape {spec.v2_shape}; the guest gave "
            f"{tensor_types.describe(tag, elements, size)}, shape {list(dims)}",
        )
    copy = context.copies.get(spec.name)
    if copy is not None and context.inputs[spec.name].shape == dims:
        copy[:] = data
        return SUCCESS
    if not state.has_room(size):
        return TOO_LARGE
    own = bytearray(data)
    _take(state, context, spec.name, Tensor.from_buffer(spec.dtype, dims, own))
    context.copies[spec.name] = memoryview(own)
    return SUCCESS


def _copy_text(
    state: NNState, context: ExecutionContext, spec: TensorSpec, dims: tuple[int, ...], data: memoryview
) -> int:
    elements, size, prefix = math.prod(dims), len(data), b""
    if elements == 1 or 0 < elements == size:
        dims = dims if elements == 1 else (1,) * len(spec.shape)
        elements, prefix = 1, size.to_bytes(4, "little")
    # Elements are objects: the data bounds their number before any is made.
    if 4 * elements > size + len(prefix):
        return state.fail(
            INVALID_ARGUMENT,
            f"input '{spec.name}' takes {elements} elements, each behind its length in four bytes; got {size} bytes",
        )
    if not state.has_room(text_bytes(size + len(prefix), elements)):
        return TOO_LARGE
    encoded = prefix + data
    try:
        tensor = Tensor.from_buffer(spec.dtype, dims, encoded)
    except InvalidRequest as error:
        return state.fail(INVALID_ARGUMENT, f"input '{spec.name}': {error}")
    _take(state, context, spec.name, tensor)
    return SUCCESS


def _take(state: NNState, context: ExecutionContext, name: str, tensor: Tensor) -> None:
    state.hold(tensor)
    state.set_input(context, name, tensor)
    state.release(tensor)


def output_bytes(tensor: Tensor) -> Buffer:
    """What ``get_output`` gives of a tensor."""
    if tensor.dtype.itemsize == 0 and tensor.size == 1:
        text: bytes = tensor.numpy().item()
        return text
    return tensor.buffer()


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
