"""Many requests' tensors into one, and one run's outputs apart again. Pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kserve_wasm.artifact.config import Padding
from kserve_wasm.batching.signature import BatchSignature, Fit
from kserve_wasm.batching.staging import Buffers
from kserve_wasm.errors import BackendError
from kserve_wasm.tensors import Tensor

if TYPE_CHECKING:
    from kserve_wasm.tensors.devices import Accelerator


def merged_shapes(
    signature: BatchSignature, fits: Sequence[Fit], first: Mapping[str, Tensor]
) -> tuple[tuple[int, ...], ...]:
    """The shapes, in the order of the graph's inputs and without the first dimension, that hold all of ``fits``.

    Args:
        signature: the graph's.
        fits: how the requests fit; their keys are equal.
        first: the inputs of one of them.
    """
    shapes = tuple([first[spec.name].shape[1:] for spec in signature.inputs])
    if not signature.padding:
        return shapes
    largest = dict(
        zip(signature.padding, map(max, zip(*(fit.sizes for fit in fits), strict=True)), strict=True)
    )
    return tuple(
        tuple(
            largest.get(dim, size) if isinstance(dim, str) else size
            for dim, size in zip(spec.shape[1:], shape, strict=True)
        )
        for spec, shape in zip(signature.inputs, shapes, strict=True)
    )


def stack(
    requests: Sequence[Mapping[str, Tensor]], buffers: Buffers, padding: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Writes the inputs of ``requests`` behind each other into ``buffers``, each once.

    Args:
        requests: their inputs by name, of the buffers' dtypes. Without ``padding`` all dimensions but the first are
            the buffers'; with it they may be smaller.
        buffers: by input, arrays with room for all rows.
        padding: what fills the room behind smaller tensors, by input; 0 for those that it does not name, and nothing
            (``b""``) for ``BYTES``.

    Returns:
        Views of the buffers, as long as all requests together.
    """
    stacked = {}
    for name, buffer in buffers.items():
        at = 0
        for request in requests:
            array = request[name].numpy()
            end = at + array.shape[0]
            if padding is None or array.shape[1:] == buffer.shape[1:]:
                buffer[at:end] = array
            else:
                buffer[at:end] = b"" if buffer.dtype.hasobject else padding.get(name, 0)
                corner = (slice(None), *map(slice, array.shape[1:]))
                buffer[at:end][corner] = array
            at = end
        stacked[name] = Tensor.from_numpy(buffer[:at])
    return stacked


def stack_on(accelerator: Accelerator, tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of ``tensors`` behind each other, in memory of ``accelerator``; those that are there stay there.

    Args:
        accelerator: a device.
        tensors: of one type of fixed size, equal in all dimensions but the first.

    Raises:
        BackendError: the device has no room.
    """
    first = tensors[0]
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    memory = accelerator.allocate(math.prod(shape) * first.dtype.itemsize)
    at = memory.pointer
    with accelerator.completing():
        for tensor in tensors:
            if tensor.memory is not None and tensor.memory.accelerator is accelerator:
                accelerator.copy(at, tensor.pointer, tensor.nbytes)
            else:
                accelerator.upload(at, tensor.numpy())
            at += tensor.nbytes
    return Tensor.from_device(first.dtype, shape, memory)


def split(
    outputs: Mapping[str, Tensor], signature: BatchSignature, fits: Sequence[Fit]
) -> list[dict[str, Tensor]]:
    """Each request's own part of ``outputs``, as views.

    Raises:
        BackendError: an output has not one entry along its first dimension for each of the inputs'.
    """
    rows = sum(fit.rows for fit in fits)
    parts: list[dict[str, Tensor]] = [{} for _ in fits]
    for spec in signature.outputs:
        tensor = outputs[spec.name]
        shape = tensor.shape
        if not shape or shape[0] != rows:
            raise BackendError(
                f"output '{spec.name}' has shape {list(shape)} for a batch of {rows}: the graph does not keep its "
                "first dimension, set batching.max_batch_size to 1"
            )
        at = 0
        for fit, part in zip(fits, parts, strict=True):
            end = at + fit.rows
            own = tensor.rows(at, end)
            if signature.padding:  # such corners are cut on the host
                corner = np.ascontiguousarray(own.numpy()[_unpadded(signature, spec.shape, fit)])
                own = Tensor(tensor.dtype, corner.shape, corner)
            part[spec.name] = own
            at = end
    return parts


def _unpadded(signature: BatchSignature, dims: tuple[int | str | None, ...], fit: Fit) -> tuple[slice, ...]:
    sizes: dict[int | str | None, int] = dict(zip(signature.padding, fit.sizes, strict=True))
    return tuple(slice(sizes.get(dim)) for dim in dims)


def padding_values(padding: Mapping[str, Padding]) -> dict[str, float] | None:
    """What fills each input, by name; None where nothing is padded."""
    if not padding:
        return None
    return {name: value for dim in padding.values() for name, value in dim.values.items()}
