"""Tensors to PyTorch and back, over one memory wherever that is possible.

The only place that knows how the two share memory.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from kserve_wasm.tensors import DTYPES, DType, Tensor

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


def to_torch(tensor: Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``; on the CPU it is a view of the same memory unless that is misaligned for its type."""
    array = tensor.numpy()
    if not array.flags.aligned:
        array = array.copy()
    if tensor.dtype is _BF16:  # NumPy has no such type of its own
        view = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        view = torch.from_numpy(array)
    return view if device.type == "cpu" else view.to(device)


def from_torch(value: torch.Tensor) -> Tensor:
    """``value``, of one of :data:`TORCH_DTYPES`, in host memory: its own where it is contiguous and there already."""
    value = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
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
