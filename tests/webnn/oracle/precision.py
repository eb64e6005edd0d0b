"""What the oracle's operators share: they compute in float64 and round once, at the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def widened(value: Any, dtype: np.dtype[Any]) -> Any:
    """``value`` as the computation takes it: floats in float64, Python floats first rounded to ``dtype``.

    The specification casts attributes such as alpha and epsilon to the input's data type.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(np.float64)
    if isinstance(value, (list, tuple)):
        return type(value)(widened(item, dtype) for item in value)
    if isinstance(value, float) and dtype.kind == "f":
        return float(dtype.type(value))
    return value


def in_double(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives ``function`` its floats in float64, and rounds what it gives to the type of its first operand."""

    @functools.wraps(function)
    def rounded(first: Any, *operands: Any, **attributes: Any) -> Any:
        dtype = (first[0] if isinstance(first, (list, tuple)) else first).dtype
        with np.errstate(all="ignore"):
            result = function(
                widened(first, dtype),
                *(widened(operand, dtype) for operand in operands),
                **{name: widened(value, dtype) for name, value in attributes.items()},
            )
            if isinstance(result, (list, tuple)):
                return [np.asarray(item).astype(dtype) for item in result]
            return np.asarray(result).astype(dtype)

    return rounded


def as_uint8(function: Callable[..., Any]) -> Callable[..., Array]:
    """Gives the truth values of ``function`` as WebNN has them: uint8, 0 or 1."""

    @functools.wraps(function)
    def truth(*operands: Array) -> Array:
        return np.asarray(function(*operands)).astype(np.uint8)

    return truth


def arranged(array: Array, layout: str, wanted: str) -> Array:
    """``array``, whose dimensions are the letters of ``layout``, with those of ``wanted``."""
    return np.transpose(array, [layout.index(letter) for letter in wanted])
