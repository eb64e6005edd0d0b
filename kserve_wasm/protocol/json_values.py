"""Tensor values in JSON, as V2 (flat or nested ``data``) and V1 (nested) write them.

JSON has one number type and no word for what is not finite, so the rules beyond the protocol's text are:

- Integers outside the element type's range, and fractions for an integer type, are refused; ``3.0`` is 3.
- FP16 and BF16 are numbers like the other floats, both ways.
- NaN is ``null``, infinities are ``"Infinity"`` and ``"-Infinity"``, both ways (``"NaN"`` is read too). A finite number
  that the type can only hold as an infinity is refused.
- BOOL is ``true`` and ``false``; 0 and 1 are read too.
- BYTES are strings in UTF-8. Other bytes have no JSON form: V2 must carry them as binary data; V1 has
  ``{"b64": "…"}``.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.protocol.checks import brief
from kserve_wasm.tensors import DType, Tensor

_NOT_FINITE = {None: math.nan, "NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_FLOATS = ("FP16", "BF16", "FP32", "FP64")
_LARGEST = {"FP32": float(np.finfo(np.float32).max), "FP64": float(np.finfo(np.float64).max)}
_FEW = 64


def decode(name: str, dtype: DType, shape: tuple[int, ...], data: Any) -> Tensor:
    """The tensor of input ``name`` from its JSON ``data``: flat in row-major order, or nested as ``shape`` is.

    Args:
        name: the input's name, for messages.
        dtype: its element type.
        shape: its dimensions, already known to be sound (:func:`kserve_wasm.protocol.checks.shape_of`).
        data: the parsed JSON; a bare value is accepted for a scalar.

    Raises:
        InvalidRequest: ``data`` has not as many elements as ``shape``, is nested otherwise, or an element does not
            fit ``dtype``.
    """
    flat, kinds = _flatten(name, shape, data if isinstance(data, list) else [data])
    if len(flat) != math.prod(shape):
        raise InvalidRequest(
            f"input '{name}' has shape {list(shape)}, that is {math.prod(shape)} elements, "
            f"but its 'data' holds {len(flat)}"
        )
    return Tensor.from_numpy(_array(name, dtype, flat, kinds).reshape(shape))


def flat_values(name: str, tensor: Tensor) -> Any:
    """What to write as output ``name``'s V2 ``data``: a list, or an array that orjson writes as one (row-major).

    Raises:
        InvalidRequest: a BYTES element is not UTF-8.
    """
    array = tensor.numpy().reshape(-1)
    kind = tensor.dtype.name
    if kind == "BYTES":
        try:
            return [element.decode() for element in array]
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"output '{name}' holds bytes that are not UTF-8, which JSON cannot carry; ask for it with "
                f'"parameters": {{"binary_data": true}}'
            ) from None
    if kind in _FLOATS:
        if kind == "BF16":
            array = array.astype(np.float32)
        if not _all_finite(array):
            # orjson writes infinities as null too, from which no client could tell them from NaN.
            return _without_nonfinite(array.tolist())
    return array


def nested_values(tensor: Tensor) -> Any:
    """``tensor`` as nested lists of plain Python values, or a bare value for a scalar: V1's form."""
    array = tensor.numpy()
    kind = tensor.dtype.name
    if kind == "BYTES":
        return _map_nested(_bytes_value, array.tolist())
    if kind in _FLOATS:
        if kind == "BF16":
            array = array.astype(np.float32)
        if not _all_finite(array):
            return _map_nested(_float_value, array.tolist())
    return array.tolist()


def _all_finite(array: npt.NDArray[Any]) -> bool:
    if array.size <= _FEW:
        return all(map(math.isfinite, array.reshape(-1).tolist()))
    return bool(np.isfinite(array).all())


def nested_shape(data: Any) -> tuple[int, ...]:
    """The shape of nested lists, read along the first elements; :func:`decode` finds where the others differ."""
    shape: list[int] = []
    while isinstance(data, list):
        shape.append(len(data))
        if not data:
            break
        data = data[0]
    return tuple(shape)


def kinds(data: Any) -> set[type]:
    """The Python types of the innermost values of nested lists."""
    level = data if isinstance(data, list) else [data]
    found: set[type] = set()
    while level:
        found |= set(map(type, level)) - {list}
        level = list(chain.from_iterable(item for item in level if type(item) is list))
    return found


def from_b64(name: str, value: Any) -> bytes:
    """The bytes of V1's ``{"b64": value}``."""
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InvalidRequest(f"input '{name}': 'b64' must hold text in base64, got {brief(value)}") from None


def _flatten(name: str, shape: tuple[int, ...], data: list[Any]) -> tuple[list[Any], set[type]]:
    """The innermost values of ``data`` and their Python types."""
    kinds = set(map(type, data))
    level = 0
    while list in kinds:
        if kinds != {list} or level + 1 >= len(shape) or len(data) != math.prod(shape[: level + 1]):
            raise _nesting(name, shape)
        level += 1
        if any(len(part) != shape[level] for part in data):
            raise _nesting(name, shape)
        data = list(chain.from_iterable(data))
        kinds = set(map(type, data))
    if 0 < level < len(shape) - 1 and data:
        raise _nesting(name, shape)
    return data, kinds


def _nesting(name: str, shape: tuple[int, ...]) -> InvalidRequest:
    return InvalidRequest(
        f"input '{name}': 'data' must be one flat list in row-major order or lists nested as its shape "
        f"{list(shape)} says"
    )


def _array(name: str, dtype: DType, flat: list[Any], kinds: set[type]) -> npt.NDArray[Any]:
    """``flat`` as an array of ``dtype``; ``kinds`` are the types of its elements."""
    if dtype.name in _FLOATS:
        return _float_array(name, dtype, flat, kinds)
    if dtype.name == "BOOL":
        if kinds <= {bool} or (kinds <= {bool, int} and all(value in (0, 1) for value in flat)):
            return np.array(flat, dtype=dtype.numpy)
        raise _element(
            name, "true or false", flat, lambda v: v is True or v is False or (type(v) is int and v in (0, 1))
        )
    if dtype.name == "BYTES":
        if not kinds <= {str, bytes}:
            raise _element(name, "a string", flat, lambda v: isinstance(v, (str, bytes)))
        array = np.empty(len(flat), dtype=object)
        for i, value in enumerate(flat):
            array[i] = value.encode() if type(value) is str else value
        return array
    if not kinds <= {int, float}:
        raise _element(name, f"an integer ({dtype})", flat, lambda v: type(v) in (int, float))
    if float in kinds:
        if not all(type(value) is int or value.is_integer() for value in flat):
            raise _element(name, f"an integer ({dtype})", flat, lambda v: type(v) is int or v.is_integer())
        flat = [int(value) for value in flat]
    try:
        return np.array(flat, dtype=dtype.numpy)
    except OverflowError:
        info = np.iinfo(dtype.numpy)
        low, high = int(info.min), int(info.max)
        raise _element(name, f"within {dtype}, {low} to {high}", flat, lambda v: low <= v <= high) from None


def _float_array(name: str, dtype: DType, flat: list[Any], kinds: set[type]) -> npt.NDArray[Any]:
    numbers = flat
    if not kinds <= {int, float}:
        if not kinds <= {int, float, str, type(None)} or (
            str in kinds and any(type(value) is str and value not in _NOT_FINITE for value in flat)
        ):
            raise _element(
                name,
                f'a number ({dtype}), null, "NaN", "Infinity" or "-Infinity"',
                flat,
                lambda v: type(v) in (int, float) or v is None or (type(v) is str and v in _NOT_FINITE),
            )
        numbers = [_NOT_FINITE[v] if v is None or type(v) is str else v for v in flat]
    elif len(flat) <= _FEW and flat and dtype.name in _LARGEST:
        # What NumPy needs to find an overflow takes ten times as long as a few numbers do.
        largest = _LARGEST[dtype.name]
        if -largest <= min(flat) and max(flat) <= largest:
            return np.array(flat, dtype=dtype.numpy)
    with np.errstate(over="ignore"):
        array = np.array(numbers, dtype=np.float64).astype(dtype.numpy)
    overflowed = np.isinf(array)
    if overflowed.any():
        for i in np.flatnonzero(overflowed).tolist():
            if not math.isinf(numbers[i]):
                raise InvalidRequest(
                    f"input '{name}': element {i} must be within {dtype}, got {brief(flat[i])}; "
                    f'for an infinity write "Infinity"'
                )
    return array


def _element(name: str, wanted: str, flat: list[Any], fits: Callable[[Any], bool]) -> InvalidRequest:
    """The error for the first element that does not fit."""
    at = next(i for i, value in enumerate(flat) if not fits(value))
    return InvalidRequest(f"input '{name}': element {at} must be {wanted}, got {brief(flat[at])}")


def _float_value(value: float) -> float | str | None:
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _without_nonfinite(values: list[float]) -> list[float | str | None]:
    return [_float_value(value) for value in values]


def _bytes_value(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _map_nested(convert: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list):
        return [_map_nested(convert, item) for item in value]
    return convert(value)
