"""What every protocol checks of a request before a model sees it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.request import Parameter
from kserve_wasm.tensors import DTYPES, DType, Tensor, TensorSpec
from kserve_wasm.tensors.tensor import BytesLike

MAX_RANK = 32
MAX_ELEMENTS = 1 << 40
"""Above what any request can carry, and low enough that no product of it overflows NumPy's index type."""


def dtype_of(name: str, datatype: Any) -> DType:
    """The element type that input ``name`` declares; raises InvalidRequest for an unknown one."""
    dtype = DTYPES.get(datatype) if type(datatype) is str else None
    if dtype is None:
        raise InvalidRequest(
            f"input '{name}': 'datatype' must be one of {', '.join(DTYPES)}, got {brief(datatype)}"
        )
    return dtype


def shape_of(name: str, shape: Iterable[Any]) -> tuple[int, ...]:
    """The dimensions that input ``name`` declares; raises InvalidRequest where they are no shape of a tensor."""
    dims = tuple(shape)
    if len(dims) > MAX_RANK:
        raise InvalidRequest(f"input '{name}' has {len(dims)} dimensions; at most {MAX_RANK} are accepted")
    for dim in dims:
        if type(dim) is not int or dim < 0:
            raise InvalidRequest(f"input '{name}': 'shape' must hold integers of 0 or more, got {brief(dim)}")
    # Zeros count as one: an empty tensor's other dimensions must not overflow the strides either.
    if math.prod(dim or 1 for dim in dims) > MAX_ELEMENTS:
        raise InvalidRequest(f"input '{name}': shape {brief(list(dims))} is larger than any request can be")
    return dims


def check_inputs(inputs: Mapping[str, Tensor], specs: Sequence[TensorSpec]) -> None:
    """Raises InvalidRequest unless ``inputs`` are the model's inputs; a model without specs takes anything."""
    if not specs:
        return
    for spec in specs:
        tensor = inputs.get(spec.name)
        if tensor is None:
            raise InvalidRequest(
                f"input '{spec.name}' is missing; the model takes {_names(s.name for s in specs)}, "
                f"got {_names(inputs)}"
            )
        spec.check(tensor)
    if len(inputs) > len(specs):
        unknown = inputs.keys() - {spec.name for spec in specs}
        raise InvalidRequest(
            f"unknown input {_names(unknown)}; the model takes {_names(s.name for s in specs)}"
        )


def check_outputs(names: Collection[str], specs: Sequence[TensorSpec]) -> None:
    """Raises InvalidRequest when an output is asked for that the model does not have."""
    if not specs:
        return
    known = [spec.name for spec in specs]
    for name in names:
        if name not in known:
            raise InvalidRequest(f"unknown output '{name}'; the model has {_names(known)}")


def check_parameters(parameters: Any, of: str = "the request") -> dict[str, Parameter]:
    """V2 ``parameters``, ``{}`` where there are none; raises InvalidRequest where they are not names and scalars."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"'parameters' of {of} must be an object, got {brief(parameters)}")
    for key, value in parameters.items():
        if not isinstance(value, (bool, int, float, str)):
            raise InvalidRequest(
                f"parameter '{key[:80]}' of {of} must be a string, a number, true or false, got {brief(value)}"
            )
    return parameters


def timeout_of(parameters: Mapping[str, Parameter]) -> float:
    """Seconds that the client gives its request: Triton's parameter ``timeout``, in µs there; inf without one.

    Raises:
        InvalidRequest: it is no whole number of 0 or more; 0 is no limit.
    """
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise InvalidRequest(f"parameter 'timeout' must be microseconds, 0 or more, got {brief(timeout)}")
    return timeout / 1e6 if timeout else math.inf


def priority_of(parameters: Mapping[str, Parameter], levels: int, default: int) -> int:
    """How urgent a request is, from 1, the most urgent: Triton's parameter ``priority``.

    Args:
        parameters: the request's.
        levels: how many priorities its model knows; 0 ignores the parameter.
        default: for a request without one, or with 0.

    Raises:
        InvalidRequest: it is no whole number from 0 to ``levels``.
    """
    if not levels:
        return 0
    priority = parameters.get("priority", 0)
    if type(priority) is not int or not 0 <= priority <= levels:
        raise InvalidRequest(
            f"parameter 'priority' must be an integer from 1, the most urgent, to {levels}, or 0 for the model's "
            f"default; got {brief(priority)}"
        )
    return priority or default


def not_json(error: ValueError, body: BytesLike, hint: str = "") -> InvalidRequest:
    """The error for a body that is not JSON, with a hint at what it is."""
    if bytes(body[:2]) == b"\x1f\x8b":
        hint = " (it is gzip: that needs the header Content-Encoding: gzip)"
    return InvalidRequest(f"the request is not JSON{hint}: {error}")


def brief(value: Any) -> str:
    """A JSON value for an error message: short, and safe for values of any size and depth."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        if len(value) <= 8 and all(type(item) is int for item in value):
            return repr(value)
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    shown = ", ".join(f"'{name[:80]}'" for name in listed[:16])
    return (shown or "none") + (f" and {len(listed) - 16} more" if len(listed) > 16 else "")
