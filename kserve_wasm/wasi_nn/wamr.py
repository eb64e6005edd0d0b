"""The module ``wasi_nn`` of WebAssembly Micro Runtime: WASI-NN with the records of its own older header.

Handles and behaviour are those of :mod:`.witx`. It differs in how arrays are passed ({address, length} records), in
tensors, which do not say how many bytes they have, and in ``get_output``, whose size goes in and out through one
pointer and counts f32 elements: units of four bytes, rounded up, for other types.
"""

from __future__ import annotations

import math
import struct

from kserve_wasm.wasi_nn import tensor_types, transfer, witx
from kserve_wasm.wasi_nn.host_function import INVALID_ARGUMENT, SUCCESS, TOO_LARGE, HostFunction
from kserve_wasm.wasi_nn.state import NNState

MODULE = "wasi_nn"

_TENSOR = struct.Struct("<IBxxxI")  # array of dims, type (one byte), data
_ARRAY = struct.Struct("<II")  # address, elements


def load(state: NNState, builders: int, encoding: int, target: int, graph_out: int) -> int:
    """See :func:`.witx.load`; ``builders`` is an array record of buffers."""
    address, count = _ARRAY.unpack(state.memory.view(builders, _ARRAY.size))
    return witx.load(state, address, count, encoding, target, graph_out)


def set_input(state: NNState, context: int, index: int, tensor: int) -> int:
    """See :func:`.witx.set_input`; the length of the data follows from its type and dimensions."""
    opened = state.contexts.get(context)
    if opened is None:
        return state.no_context(context)
    if index >= len(opened.graph.inputs):
        return state.no_input(opened, index)
    spec = opened.graph.inputs[index]
    memory = state.memory
    dims_record, tag, data = _TENSOR.unpack(memory.view(tensor, _TENSOR.size))
    dims_at, n_dims = _ARRAY.unpack(memory.view(dims_record, _ARRAY.size))
    dims = transfer.read_dims(state, dims_at, n_dims)
    if dims is None:
        return INVALID_ARGUMENT
    if not tensor_types.may_mean(tag, spec.dtype):
        return state.fail(
            INVALID_ARGUMENT, f"input '{spec.name}' takes {spec.dtype}; the guest gave type number {tag}"
        )
    return transfer.copy_input(
        state, opened, spec, dims, tag, memory.view(data, math.prod(dims) * (spec.dtype.itemsize or 1))
    )


def get_output(state: NNState, context: int, index: int, buffer: int, size_inout: int) -> int:
    """See :func:`.witx.get_output`; ``size_inout`` points to the buffer's size and gets the output's."""
    opened = state.contexts.get(context)
    if opened is None:
        return state.no_context(context)
    tensor = state.output(opened, index)
    if isinstance(tensor, int):
        return tensor
    data = transfer.output_bytes(tensor)
    memory = state.memory
    words, capacity = (len(data) + 3) // 4, memory.read_u32(size_inout)
    if words > capacity:
        memory.write_u32(size_inout, words)
        return state.fail(
            TOO_LARGE, f"output {index} has {words} times 4 bytes, and the guest's buffer {capacity}"
        )
    target = memory.view(buffer, len(data))
    memory.write_u32(size_inout, words)
    target[:] = data
    state.to_guest += len(data)
    return SUCCESS


FUNCTIONS = (
    HostFunction(MODULE, "load", "iiii", load),
    HostFunction(MODULE, "load_by_name", "iii", witx.load_by_name),
    HostFunction(MODULE, "load_by_name_with_config", "iiiii", witx.load_by_name_with_config),
    HostFunction(MODULE, "init_execution_context", "ii", witx.init_execution_context),
    HostFunction(MODULE, "set_input", "iii", set_input),
    HostFunction(MODULE, "compute", "i", witx.compute),
    HostFunction(MODULE, "get_output", "iiii", get_output),
)
