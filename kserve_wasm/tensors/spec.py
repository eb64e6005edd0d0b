"""What a model says of a tensor: its name, element type and shape, some dimensions of which may be open."""

from __future__ import annotations

from dataclasses import dataclass

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.tensors.dtypes import DType
from kserve_wasm.tensors.tensor import Tensor


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of an input or output.

    Attributes:
        name: as the graph or manifest spells it.
        dtype: the element type.
        shape: one entry a dimension: a size, a symbol (``"batch"``; equal symbols need not be equal sizes), or None
            for a dimension without a name.
    """

    name: str
    dtype: DType
    shape: tuple[int | str | None, ...]

    @property
    def v2_shape(self) -> list[int]:
        """The shape for V2 metadata, where every open dimension is -1."""
        return [d if isinstance(d, int) else -1 for d in self.shape]

    def check(self, tensor: Tensor) -> None:
        """Raises InvalidRequest, naming this tensor, what was expected and what came, unless ``tensor`` fits."""
        if tensor.dtype is not self.dtype:
            raise InvalidRequest(f"input '{self.name}' must be {self.dtype}, got {tensor.dtype}")
        if not self.takes(tensor.shape):
            raise InvalidRequest(
                f"input '{self.name}' must have shape {self.v2_shape} (-1: any size), got {list(tensor.shape)}"
            )

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether ``shape`` is one that this allows."""
        if len(shape) != len(self.shape):
            return False
        for want, got in zip(self.shape, shape, strict=True):  # noqa: SIM110  # a generator costs a µs here
            if want != got and isinstance(want, int):
                return False
        return True
