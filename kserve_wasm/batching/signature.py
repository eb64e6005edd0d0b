"""Which requests of a graph may be merged: those that differ only in the size of their first dimension."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kserve_wasm.artifact.config import Batching, Padding
from kserve_wasm.errors import ModelLoadError
from kserve_wasm.tensors import DType, Tensor, TensorSpec


class Fit(NamedTuple):
    """How one request fits into a batch.

    Attributes:
        rows: its entries along the first dimension.
        key: requests with equal keys may be merged.
        sizes: its sizes along the dimensions that are padded, in the order of ``Batching.padding``.
    """

    rows: int
    key: Hashable
    sizes: tuple[int, ...]


class BatchSignature:
    """The inputs and outputs of a graph whose first dimension is the batch. Make one with :func:`batch_signature`.

    Attributes:
        inputs: the graph's inputs.
        outputs: the graph's outputs.
        padding: the names of the dimensions that are padded.
    """

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batching: Batching
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.padding = tuple(batching.padding)
        self._max_rows = batching.max_batch_size
        self._buckets = tuple(batching.padding[name].sizes for name in self.padding)

    def fit(self, inputs: Mapping[str, Tensor]) -> Fit | None:
        """How ``inputs`` fit into a batch; None when they do not, or are not what the graph takes: to be run alone."""
        if len(inputs) != len(self.inputs):
            return None
        rows = -1
        shapes = []
        for spec in self.inputs:
            tensor = inputs.get(spec.name)
            if tensor is None or tensor.dtype is not spec.dtype or not spec.takes(tensor.shape):
                return None
            shape = tensor.shape
            if rows != shape[0]:
                if rows >= 0:
                    return None
                rows = shape[0]
            shapes.append(shape[1:])
        if not 0 < rows <= self._max_rows:
            return None
        return self._padded(rows, shapes) if self.padding else Fit(rows, tuple(shapes), ())

    def _padded(self, rows: int, shapes: list[tuple[int, ...]]) -> Fit | None:
        sizes: dict[str, int] = {}
        key: list[tuple[int, ...]] = []
        for spec, shape in zip(self.inputs, shapes, strict=True):
            open_dims = list(shape)
            for axis, dim in enumerate(spec.shape[1:]):
                if dim in self.padding:
                    assert isinstance(dim, str)
                    if sizes.setdefault(dim, shape[axis]) != shape[axis]:
                        return None
                    open_dims[axis] = 0
            key.append(tuple(open_dims))
        found = tuple(sizes[name] for name in self.padding)
        return Fit(rows, (tuple(key), tuple(map(_bucket, self._buckets, found))), found)


def _bucket(bounds: tuple[int, ...], size: int) -> int:
    """The first of ``bounds`` that holds ``size``; beyond the last, ``size`` itself."""
    return next((bound for bound in bounds if size <= bound), size)


def batch_signature(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batching: Batching
) -> BatchSignature | None:
    """The signature of a graph whose requests can be merged; None where that is off or the graph says otherwise.

    A graph says so by an open first dimension of every input and output, of one name among the inputs, that is no
    further dimension of anything.

    Args:
        name: the graph's name, for messages.
        inputs: its inputs.
        outputs: its outputs.
        batching: what is configured.

    Raises:
        ModelLoadError: the configuration asks for what the graph does not offer.
    """
    if batching.max_batch_size <= 1:
        return None
    reason = _obstacle(inputs, outputs)
    for dim in batching.padding:
        _check_padding(name, inputs, dim, batching.padding[dim])
    if reason is None:
        return BatchSignature(inputs, outputs, batching)
    if batching.declared:
        raise ModelLoadError(
            f"batching.max_batch_size is {batching.max_batch_size}, but requests for graph '{name}' cannot be merged: "
            f"{reason}; leave it out, or set it to 1"
        )
    return None


def _check_padding(name: str, inputs: Sequence[TensorSpec], dim: str, padding: Padding) -> None:
    padded = {spec.name: spec.dtype for spec in inputs if dim in spec.shape[1:]}
    if not padded:
        known = {d for spec in inputs for d in spec.shape[1:] if isinstance(d, str)}
        raise ModelLoadError(
            f"batching.padding: no input of graph '{name}' has a dimension '{dim}' after its first; "
            f"those with a name are: {_list(known)}"
        )
    for given, value in padding.values.items():
        dtype = padded.get(given)
        if dtype is None:
            raise ModelLoadError(
                f"batching.padding.{dim}.values: no input '{given}' of graph '{name}' has the dimension; "
                f"those that do are: {_list(padded)}"
            )
        if not _holds(dtype, value):
            raise ModelLoadError(
                f"batching.padding.{dim}.values: {value:g} is no value for input '{given}' of graph '{name}', "
                f"which is {dtype}"
            )


def _holds(dtype: DType, value: float) -> bool:
    """Whether elements of this type can have the value, rounded where they are floats."""
    if not dtype.itemsize:
        return False
    with np.errstate(all="ignore"):
        held = float(np.array(value).astype(dtype.numpy))
    return held == value or (
        dtype.name in ("FP16", "BF16", "FP32") and math.isfinite(held) == math.isfinite(value)
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"


def _obstacle(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    if not inputs:
        return "it has no inputs"
    for kind, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            if not spec.shape:
                return f"{kind} '{spec.name}' has no dimensions, or any number of them"
            if isinstance(spec.shape[0], int):
                return f"the first dimension of {kind} '{spec.name}' is {spec.shape[0]} and not open"
    leading = {spec.shape[0] for spec in inputs}
    if len(leading) > 1:
        return f"the inputs' first dimensions have different names: {', '.join(sorted(map(str, leading)))}"
    (batch,) = leading
    for spec in (*inputs, *outputs):
        if batch is not None and batch in spec.shape[1:]:
            return f"'{batch}' is also a further dimension of '{spec.name}'"
    return None
