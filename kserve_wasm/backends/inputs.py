"""What every backend says of a graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.tensors import Tensor, TensorSpec


def wrong_names(graph: str, specs: Sequence[TensorSpec], inputs: Mapping[str, Tensor]) -> InvalidRequest:
    """The error of inputs that have not the names of ``specs``: those that are missing, and those that are unknown."""
    names = {spec.name for spec in specs}
    wrong = [f"'{name}' is missing" for name in sorted(names - inputs.keys())]
    wrong += [f"'{name}' is unknown" for name in sorted(inputs.keys() - names)]
    known = ", ".join(f"'{spec.name}'" for spec in specs) or "none"
    return InvalidRequest(f"graph '{graph}': input {', '.join(wrong)}; its inputs are {known}")


def failed(graph: str, reason: str, specs: Sequence[TensorSpec], inputs: Mapping[str, Tensor]) -> str:
    """The message of a run that failed: why, what the graph takes, and what it got."""
    got = ", ".join(f"{name} {t.dtype} {list(t.shape)}" for name, t in inputs.items())
    takes = ", ".join(f"{s.name} {s.dtype} {s.v2_shape}" for s in specs)
    return f"graph '{graph}' failed: {reason} (it takes {takes}; got {got})"
