"""What goes along matrices and dimensions: triangles and running sums.

Source: Web Neural Network API, ``triangular`` and ``cumulativeSum``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kserve_wasm.tensors.dtypes import INT8, INT32, INT64, UINT8, UINT32, UINT64
from kserve_wasm.webnn.operand import ALL, MAX_RANK, Operand, Scope
from kserve_wasm.webnn.operator import Arguments, Param, register
from kserve_wasm.webnn.operators.activation import INPUT
from kserve_wasm.webnn.operators.elementwise import unary

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

_COMPUTED = {INT8: INT32, UINT8: INT32, UINT32: INT64, UINT64: INT64}
"""For types that ONNX Runtime has no kernels for: one that it has them for, and that keeps the lower bits."""


def _through(
    e: Emitter, value: Value, op_type: str, *inputs: npt.NDArray[np.int64], **attributes: int
) -> Value:
    """A node, computed in a type that has a kernel."""
    computed = e.cast(value, _COMPUTED.get(value.dtype, value.dtype))
    made = e.node(op_type, computed, *inputs, result=computed.operand, **attributes)
    return e.cast(made, value.dtype)


def _triangular_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_rank("input", 2, MAX_RANK)
    return unary(ALL)(a, scope)


def _cumulative_sum_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_axis("axis", a.input.rank)
    return unary(ALL)(a, scope)


register(
    "triangular",
    (INPUT, Param("upper", "u32", default=1), Param("diagonal", "i32", default=0)),
    _triangular_infer,
    lambda e, a: _through(e, a.input, "Trilu", np.array(a.diagonal, np.int64), upper=int(bool(a.upper))),
    lambda a: a.input.rank > 2,
)
register(
    "cumulativeSum",
    (
        INPUT,
        Param("axis", "u32"),
        Param("exclusive", "u32", default=0),
        Param("reversed", "u32", default=0),
    ),
    _cumulative_sum_infer,
    lambda e, a: _through(
        e,
        a.input,
        "CumSum",
        np.array(a.axis, np.int64),
        exclusive=int(bool(a.exclusive)),
        reverse=int(bool(a.reversed)),
    ),
    lambda a: a.axis != 0,
)
