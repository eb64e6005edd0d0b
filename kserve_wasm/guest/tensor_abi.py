"""The module ``kserve_wasm``: the host's side of ``kserve_wasm.h``, which says what each function does.

Tensors are handed out as handles, and from a request to a graph to a response no byte of them is touched here.
"""

from __future__ import annotations

import math
import struct

from kserve_wasm.errors import GuestError, GuestRejected, InvalidRequest
from kserve_wasm.guest.graph_abi import MODULE, catch_up
from kserve_wasm.guest.state import InstanceState
from kserve_wasm.request import Parameter
from kserve_wasm.tensors import Tensor
from kserve_wasm.tensors.dtypes import BY_ONNX, DType
from kserve_wasm.wasi_nn.borrowed import BorrowedTensor
from kserve_wasm.wasi_nn.host_function import INVALID_ARGUMENT, NOT_FOUND, SUCCESS, TOO_LARGE, HostFunction
from kserve_wasm.wasi_nn.tensor_types import MAX_DIMS, fits_an_array

MAX_MESSAGE = 4096
"""Bytes of a failure's message that are kept: gRPC carries it in a header."""

_INFO = struct.Struct("<IIQQ")  # kw_tensor_info
_DIMS = tuple(struct.Struct(f"<{n}q") for n in range(MAX_DIMS + 1))
_SEVERITIES = 4


# --- The request


def _input_count(state: InstanceState, count_out: int) -> int:
    state.memory.write_u32(count_out, len(state.inputs))
    return SUCCESS


def _input_name(state: InstanceState, index: int, buffer: int, capacity: int, length_out: int) -> int:
    if index >= len(state.inputs):
        return _no_input(state, f"index {index}")
    return _give(state, state.inputs[index][0], buffer, capacity, length_out)


def _input_by_index(state: InstanceState, index: int, tensor_out: int) -> int:
    if index >= len(state.inputs):
        return _no_input(state, f"index {index}")
    return state.hand_out(state.inputs[index][1], tensor_out)


def _input_by_name(state: InstanceState, name: int, length: int, tensor_out: int) -> int:
    asked = state.name(name, length)
    if asked is None:
        return INVALID_ARGUMENT
    tensor = state.request.inputs.get(asked)
    if tensor is None:
        return _no_input(state, f"'{asked}'")
    return state.hand_out(tensor, tensor_out)


def _parameter(
    state: InstanceState, name: int, length: int, buffer: int, capacity: int, length_out: int
) -> int:
    asked = state.name(name, length)
    if asked is None:
        return INVALID_ARGUMENT
    value = state.request.parameters.get(asked)
    if value is None:
        value = state.parameters.get(asked)
    if value is None:
        return state.fail(NOT_FOUND, f"neither the request nor the model has a parameter '{asked}'")
    return _give(state, _text(value), buffer, capacity, length_out)


def _request_id(state: InstanceState, buffer: int, capacity: int, length_out: int) -> int:
    return _give(state, state.request.id, buffer, capacity, length_out)


# --- Tensors


def _tensor_create(
    state: InstanceState, dtype: int, dims: int, n_dims: int, data: int, data_length: int, tensor_out: int
) -> int:
    kind = BY_ONNX.get(dtype)
    shape = _shape(state, kind, dtype, dims, n_dims, data_length)
    if kind is None or shape is None:
        return INVALID_ARGUMENT
    if not (
        state.has_room(data_length) if kind.itemsize else state.has_text_room(data_length, math.prod(shape))
    ):
        return TOO_LARGE
    try:
        tensor = Tensor.from_buffer(kind, shape, bytes(state.memory.view(data, data_length)))
    except InvalidRequest as error:
        # The guest's mistake, not the client's.
        return state.fail(INVALID_ARGUMENT, str(error))
    state.from_guest += data_length
    errno = state.hand_out(tensor, tensor_out)
    if errno == SUCCESS:
        state.hold(tensor)
    return errno


def _tensor_borrow(
    state: InstanceState, dtype: int, dims: int, n_dims: int, data: int, data_length: int, tensor_out: int
) -> int:
    kind = BY_ONNX.get(dtype)
    shape = _shape(state, kind, dtype, dims, n_dims, data_length)
    if kind is None or shape is None:
        return INVALID_ARGUMENT
    if kind.itemsize == 0 or data % kind.itemsize:
        return state.fail(
            INVALID_ARGUMENT,
            "BYTES cannot be borrowed: use tensor_create"
            if kind.itemsize == 0
            else f"borrowed {kind} data must lie at a multiple of {kind.itemsize}, got address {data}",
        )
    state.memory.view(data, data_length)
    return state.hand_out(BorrowedTensor(kind, shape, data, data_length), tensor_out)


def _tensor_info(state: InstanceState, tensor: int, info_out: int) -> int:
    found = state.tensors.get(tensor)
    if found is None:
        return state.no_tensor(tensor)
    shape = found.shape
    view = state.memory.view(info_out, _INFO.size)
    _INFO.pack_into(view, 0, found.dtype.onnx, len(shape), math.prod(shape), found.nbytes)
    return SUCCESS


def _tensor_shape(state: InstanceState, tensor: int, dims: int, capacity: int) -> int:
    found = state.tensors.get(tensor)
    if found is None:
        return state.no_tensor(tensor)
    shape = found.shape
    if capacity < len(shape):
        return state.fail(
            TOO_LARGE, f"the tensor has {len(shape)} dimensions, and the guest's array {capacity}"
        )
    layout = _DIMS[len(shape)]
    layout.pack_into(state.memory.view(dims, layout.size), 0, *shape)
    return SUCCESS


def _tensor_read(state: InstanceState, tensor: int, offset: int, buffer: int, length: int) -> int:
    found = state.tensors.get(tensor)
    if found is None:
        return state.no_tensor(tensor)
    end = offset + length
    if end > found.nbytes:
        return state.fail(TOO_LARGE, f"bytes {offset} to {end} are past the tensor's end at {found.nbytes}")
    memory = state.memory
    target = memory.view(buffer, length)
    if isinstance(found, Tensor):
        target[:] = found.buffer()[offset:end]
    else:
        target[:] = memory.view(found.address + offset, length)
    state.to_guest += length
    return SUCCESS


def _tensor_drop(state: InstanceState, tensor: int) -> int:
    dropped = state.tensors.pop(tensor, None)
    if dropped is None:
        return state.no_tensor(tensor)
    state.release(dropped)
    return SUCCESS


# --- The response


def _output_set(state: InstanceState, name: int, length: int, tensor: int) -> int:
    output = state.name(name, length)
    if output is None:
        return INVALID_ARGUMENT
    found = state.tensors.get(tensor)
    if found is None:
        return state.no_tensor(tensor)
    if state.put_off is not None and (errno := catch_up(state)):
        return errno
    replaced = state.outputs.get(output)
    if replaced is None and not _take_text(state, length):
        return TOO_LARGE
    state.share(found)
    state.outputs[output] = found
    if replaced is not None:
        state.release(replaced)
    return SUCCESS


def _output_requested(state: InstanceState, name: int, length: int, requested_out: int) -> int:
    output = state.name(name, length)
    if output is None:
        return INVALID_ARGUMENT
    wanted = state.request.outputs
    state.memory.write_u32(requested_out, wanted is None or output in wanted)
    return SUCCESS


def _output_parameter(state: InstanceState, name: int, length: int, value: int, value_length: int) -> int:
    key = state.name(name, length)
    if key is None:
        return INVALID_ARGUMENT
    if not _take_text(state, length + value_length):
        return TOO_LARGE
    try:
        state.output_parameters[key] = str(state.memory.view(value, value_length), "utf-8")
    except UnicodeDecodeError:
        return state.fail(INVALID_ARGUMENT, f"the value of response parameter '{key}' must be UTF-8")
    return SUCCESS


def _fail(state: InstanceState, whose: int, message: int, length: int) -> int:
    kinds = (GuestRejected, GuestError)
    if whose >= len(kinds):
        return state.fail(INVALID_ARGUMENT, f"fail takes KW_FAIL_INPUT or KW_FAIL_INTERNAL, got {whose}")
    text = str(state.memory.view(message, length)[:MAX_MESSAGE], "utf-8", "replace")
    state.failure = kinds[whose](text or "the guest failed and gave no reason")
    return SUCCESS


def _log(state: InstanceState, severity: int, message: int, length: int) -> int:
    if severity >= _SEVERITIES:
        return state.fail(INVALID_ARGUMENT, f"log takes a severity below {_SEVERITIES}, got {severity}")
    view = state.memory.view(message, length)
    if length >= state.log_left or not state.log(severity, str(view, "utf-8", "replace")):
        return state.fail(TOO_LARGE, f"a request may log {state.limits.log_bytes} bytes (limits.log_bytes)")
    return SUCCESS


# --- Shared


def _give(state: InstanceState, text: str, buffer: int, capacity: int, length_out: int) -> int:
    data = text.encode(errors="replace")  # JSON can say what UTF-8 cannot
    memory = state.memory
    size = len(data)
    if size > capacity:
        memory.write_u32(length_out, size)
        return state.fail(TOO_LARGE, f"the text has {size} bytes, and the guest's buffer {capacity}")
    target = memory.view(buffer, size)
    memory.write_u32(length_out, size)
    target[:] = data
    return SUCCESS


def _shape(
    state: InstanceState, kind: DType | None, dtype: int, dims: int, n_dims: int, data_length: int
) -> tuple[int, ...] | None:
    """The dimensions at ``dims``, or None (with a reason) unless ``data_length`` is what they and ``kind`` ask for."""
    if kind is None:
        state.reason = f"{dtype} is no element type: see the KW_* numbers in kserve_wasm.h"
        return None
    shape: tuple[int, ...] = ()
    if n_dims <= MAX_DIMS:
        layout = _DIMS[n_dims]
        shape = layout.unpack(state.memory.view(dims, layout.size))
    if n_dims > MAX_DIMS or (n_dims and min(shape) < 0) or not fits_an_array(shape):
        state.reason = (
            f"a tensor may have {MAX_DIMS} dimensions ≥ 0, 2^60 elements; got {n_dims}: {list(shape)}"
        )
        return None
    elements = math.prod(shape)
    # Elements of BYTES are objects: the data bounds their number before any is made.
    if data_length != elements * kind.itemsize if kind.itemsize else data_length < 4 * elements:
        needed = f"{elements * kind.itemsize}" if kind.itemsize else f"at least {4 * elements}"
        state.reason = f"{kind} with shape {list(shape)} needs {needed} bytes, got {data_length}"
        return None
    return shape


def _text(value: Parameter) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _take_text(state: InstanceState, length: int) -> bool:
    state.text_left -= length + 64  # an entry takes memory even if its name is empty
    if state.text_left >= 0:
        return True
    state.reason = f"names and parameters of a response may have {state.TEXT_BYTES} bytes"
    return False


def _no_input(state: InstanceState, asked: str) -> int:
    sent = ", ".join(f"'{name}'" for name, _ in state.inputs) or "none"
    return state.fail(NOT_FOUND, f"the request has no input {asked}; its inputs: {sent}")


FUNCTIONS = (
    HostFunction(MODULE, "input_count", "i", _input_count),
    HostFunction(MODULE, "input_name", "iiii", _input_name),
    HostFunction(MODULE, "input_by_index", "ii", _input_by_index),
    HostFunction(MODULE, "input_by_name", "iii", _input_by_name),
    HostFunction(MODULE, "parameter", "iiiii", _parameter),
    HostFunction(MODULE, "request_id", "iii", _request_id),
    HostFunction(MODULE, "tensor_create", "iiiiii", _tensor_create),
    HostFunction(MODULE, "tensor_borrow", "iiiiii", _tensor_borrow),
    HostFunction(MODULE, "tensor_info", "ii", _tensor_info),
    HostFunction(MODULE, "tensor_shape", "iii", _tensor_shape),
    HostFunction(MODULE, "tensor_read", "iIii", _tensor_read),
    HostFunction(MODULE, "tensor_drop", "i", _tensor_drop),
    HostFunction(MODULE, "output_set", "iii", _output_set),
    HostFunction(MODULE, "output_requested", "iii", _output_requested),
    HostFunction(MODULE, "output_parameter", "iiii", _output_parameter),
    HostFunction(MODULE, "fail", "iii", _fail),
    HostFunction(MODULE, "log", "iii", _log),
)
