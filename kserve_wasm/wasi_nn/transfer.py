"""Tensors between the guest's memory and an execution context, for the dialects that pass them by address.

Inputs are copied, once: guests reuse the buffer. ``set_input_tensor`` of ``kserve_wasm.h`` does without.

An input of type ``BYTES`` takes ``u8`` data as one element, and an output with one element gives that element's bytes:
so prompts and texts need no framing. With any other number of elements the data is the V2 raw encoding, each element
behind its length in four bytes.
"""

from __future__ import annotations

import math
import struct

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.tensors import Tensor, TensorSpec
from kserve_wasm.tensors.dtypes import BOOL, UINT8
from kserve_wasm.wasi_nn import tensor_types
from kserve_wasm.wasi_nn.contexts import ExecutionContext
from kserve_wasm.wasi_nn.host_function import INVALID_ARGUMENT, SUCCESS, TOO_LARGE
from kserve_wasm.wasi_nn.state import NNState

_DIMS = tuple(struct.Struct(f"<{n}I") for n in range(tensor_types.MAX_DIMS + 1))


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
    state.from_guest += size
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
    errno = _take(state, context, spec, dims, own)
    if errno == SUCCESS and spec.dtype is not BOOL:  # whose values are checked when a tensor is made
        context.copies[spec.name] = memoryview(own)
    return errno


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
    if not state.has_text_room(size + len(prefix), elements):
        return TOO_LARGE
    return _take(state, context, spec, dims, prefix + bytes(data))


def _take(
    state: NNState,
    context: ExecutionContext,
    spec: TensorSpec,
    dims: tuple[int, ...],
    data: bytes | bytearray,
) -> int:
    try:
        tensor = Tensor.from_buffer(spec.dtype, dims, data)
    except InvalidRequest as error:  # the guest's mistake, not the client's
        return state.fail(INVALID_ARGUMENT, f"input '{spec.name}': {error}")
    state.hold(tensor)
    state.set_input(context, spec.name, tensor)
    state.release(tensor)
    return SUCCESS


def output_bytes(tensor: Tensor) -> bytes | memoryview:
    """What ``get_output`` gives of a tensor."""
    if tensor.dtype.itemsize == 0 and tensor.size == 1:
        text: bytes = tensor.numpy().item()
        return text
    return tensor.buffer()
