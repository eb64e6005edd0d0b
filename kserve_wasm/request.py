"""One inference, free of any protocol: what the server hands to a model and what it gets back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from kserve_wasm.tensors import Tensor

Parameter: TypeAlias = bool | int | float | str


@dataclass(slots=True)
class InferenceRequest:
    """A request's tensors.

    Attributes:
        inputs: the tensors by name, in the request's order.
        outputs: names of the outputs that the client wants; None for all of them.
        parameters: V2 request parameters.
        id: the client's request id, or "".
    """

    inputs: Mapping[str, Tensor]
    outputs: Collection[str] | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    id: str = ""


@dataclass(slots=True)
class InferenceResponse:
    """An answer's tensors.

    Attributes:
        outputs: the tensors by name, in the order in which the guest set them.
        parameters: V2 response parameters that the guest set.
    """

    outputs: dict[str, Tensor]
    parameters: dict[str, Parameter] = field(default_factory=dict)
