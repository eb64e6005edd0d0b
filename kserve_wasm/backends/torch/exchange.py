"""Tensors to PyTorch and back, over one memory wherever that is possible.

The only place that knows how the two share memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kserve_wasm.tensors import DTYPES, DType, Tensor
from kserve_wasm.tensors.devices import Accelerator

TORCH_DTYPES: dict[torch.dtype, DType] = {
    torch.bool: DTYPES["BOOL"],
    torch.uint8: DTYPES["UINT8"],
    torch.uint16: DTYPES["UINT16"],
    torch.uint32: DTYPES["UINT32"],
    torch.uint64: DTYPES["UINT64"],
    torch.int8: DTYPES["INT8"],
    torch.int16: DTYPES["INT16"],
    torch.int32: DTYPES["INT32"],
    torch.int64: DTYPES["INT64"],
    torch.float16: DTYPES["FP16"],
    torch.bfloat16: DTYPES["BF16"],
    torch.float32: DTYPES["FP32"],
    torch.float64: DTYPES["FP64"],
}
"""PyTorch's element types → V2 datatypes. PyTorch has no strings."""

_BF16 = DTYPES["BF16"]

with warnings.catch_warnings():
    # PyTorch warns, once a process, that read-only memory could be written to. Here it never is.
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"\0", np.uint8))
    torch.frombuffer(b"\0", dtype=torch.uint8)


def to_torch(tensors: Sequence[Tensor], accelerator: Accelerator | None) -> list[torch.Tensor]:
    """``tensors`` as PyTorch's, which must not be written to.

    Args:
        tensors: of fixed-size types.
        accelerator: where they are wanted; those that are there already are used in place, as are those on the host
            where this is None, unless they are misaligned for their type.

    Raises:
        BackendError: the device has no room.
    """
    if accelerator is not None:
        return [torch.from_dlpack(tensor) for tensor in Tensor.move(tensors, accelerator)]
    return [_view(tensor) for tensor in tensors]


def _view(tensor: Tensor) -> torch.Tensor:
    array = tensor.numpy()
    if not array.flags.aligned:
        array = array.copy()
    if tensor.dtype is _BF16:  # NumPy has no such type of its own
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(value: torch.Tensor, accelerator: Accelerator | None) -> Tensor:
    """``value`` over its own memory where that is where it is to be.

    Args:
        value: contiguous, of one of :data:`TORCH_DTYPES`, and complete: nothing on the device writes it any more.
        accelerator: where it is to be; None for the host.
    """
    if accelerator is not None and value.device.type == accelerator.runtime.kind and value.numel():
        held = accelerator.adopt(value, value.data_ptr(), value.nbytes)
        return Tensor.from_device(TORCH_DTYPES[value.dtype], tuple(value.shape), held)
    value = value.cpu()
    if value.dtype is torch.bfloat16:
        return Tensor.from_numpy(value.view(torch.int16).numpy().view(_BF16.numpy))
    return Tensor.from_numpy(value.numpy())


def memory(value: torch.Tensor) -> int:
    """What two tensors have in common that share memory: the address of their storage; 0 without elements."""
    address: int = value.untyped_storage().data_ptr()
    return address


def as_tensor(value: Any) -> torch.Tensor | None:
    """``value`` as a tensor: itself, or the number that it is; None for anything else."""
    if isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value) if isinstance(value, bool | int | float) else None
