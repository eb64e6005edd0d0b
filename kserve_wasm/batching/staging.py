"""Memory that batches are written into."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kserve_wasm.batching.signature import BatchSignature
from kserve_wasm.tensors import TensorSpec

if TYPE_CHECKING:
    from kserve_wasm.tensors.devices import Accelerator

Buffers: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""An array for each input."""
Shapes: TypeAlias = tuple[tuple[int, ...] | None, ...]
"""The shape of each input in the graph's order, without the first dimension; None for one that takes no buffer."""

_KEPT = 64
"""Buffers kept at most: clients choose the shapes, and one with a 0 in it takes no bytes."""


class Staging:
    """Buffers for batches of one graph: made once, used by run after run. Thread-safe.

    New memory for every batch would cost a page fault for every 4 KiB of it.

    Args:
        signature: the graph's inputs.
        rows: entries along the first dimension that a buffer has room for.
        accelerator: the device that batches are copied to: its page-locked memory is used.
        max_bytes: memory that is kept in buffers that nobody uses; those used last stay.
    """

    def __init__(
        self,
        signature: BatchSignature,
        rows: int,
        accelerator: Accelerator | None = None,
        max_bytes: int = 256 << 20,
    ) -> None:
        self._specs = signature.inputs
        self._rows = rows
        self._accelerator = accelerator
        self._max_bytes = max_bytes
        self._kept: list[tuple[Shapes, Buffers]] = []
        self._kept_bytes = 0
        self._lock = threading.Lock()
        # Objects would live on in a buffer that keeps them.
        self._reusable = all(spec.dtype.itemsize for spec in self._specs)

    def take(self, shapes: Shapes) -> Buffers:
        """Buffers of ``shapes`` with any contents."""
        with self._lock:
            for i in range(len(self._kept) - 1, -1, -1):
                if self._kept[i][0] == shapes:
                    self._kept_bytes -= self._bytes(shapes)
                    return self._kept.pop(i)[1]
        return {
            spec.name: self._new(spec, shape)
            for spec, shape in zip(self._specs, shapes, strict=True)
            if shape is not None
        }

    def give_back(self, shapes: Shapes, buffers: Buffers) -> None:
        """Takes buffers back that nothing refers to any more."""
        size = self._bytes(shapes)
        if not self._reusable or size > self._max_bytes:
            return
        with self._lock:
            self._kept.append((shapes, buffers))
            self._kept_bytes += size
            while self._kept_bytes > self._max_bytes or len(self._kept) > _KEPT:
                self._kept_bytes -= self._bytes(self._kept.pop(0)[0])

    def _new(self, spec: TensorSpec, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        dims = (self._rows, *shape)
        if self._accelerator is None:
            return np.empty(dims, spec.dtype.numpy)
        pinned = self._accelerator.pinned(math.prod(dims) * spec.dtype.itemsize)
        return pinned.view(spec.dtype.numpy).reshape(dims)

    def _bytes(self, shapes: Shapes) -> int:
        each = (
            spec.dtype.itemsize * math.prod(shape)
            for spec, shape in zip(self._specs, shapes, strict=True)
            if shape is not None
        )
        return self._rows * sum(each)
