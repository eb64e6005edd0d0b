"""What operators say of arguments that they do not take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from kserve_wasm.tensors import DTYPES
from kserve_wasm.webnn import Builder, OperatorError

MAX_BYTES = 1 << 30


def refusal(
    operator: str, operands: Sequence[tuple[str, tuple[int, ...]]], arguments: tuple[Any, ...]
) -> str:
    """The reason why the operator cannot be added to a graph with these inputs, numbered from 1.

    It names the operator, and every operand that is given to it with its type.
    """
    builder = Builder(MAX_BYTES)
    for n, (dtype, shape) in enumerate(operands):
        builder.input(f"x{n}", DTYPES[dtype], shape)
    with pytest.raises(OperatorError) as caught:
        builder.add(operator, arguments)
    message = str(caught.value)
    assert message.startswith(f"{operator}: ")
    if " takes " not in message:  # of a result that is too large, the result is told
        for n, (dtype, _) in enumerate(operands):
            assert f"operand {n + 1}: {dtype} [" in message
    return message
