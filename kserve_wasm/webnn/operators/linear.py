"""Products of matrices.

Source: Web Neural Network API, ``matmul`` and ``gemm``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kserve_wasm.webnn.operand import FLOATS, MAX_RANK, Operand, Scope, broadcast, shown
from kserve_wasm.webnn.operator import Arguments, Param, register
from kserve_wasm.webnn.operators.activation import real
from kserve_wasm.webnn.operators.limits import check_products

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value


def _check_inner(a: Arguments, columns: int, rows: int) -> None:
    """Fails unless ``a`` has as many columns as ``b`` has rows; an open size may come to any."""
    if columns != rows and columns >= 0 and rows >= 0:
        a.fail(f"a has {columns} columns and b has {rows} rows: they must be as many")


def _matmul_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_dtype("a", FLOATS)
    a.check_same_dtype("a", "b")
    a.check_rank("a", 2, MAX_RANK)
    a.check_rank("b", 2, MAX_RANK)
    (*stack_a, m, k), (*stack_b, rows, n) = a.a.shape, a.b.shape
    _check_inner(a, k, rows)
    stack = broadcast(tuple(stack_a), tuple(stack_b), scope)
    if stack is None:
        a.fail(f"the stacks of matrices, {shown(stack_a)} and {shown(stack_b)}, cannot be broadcast")
    check_products(a, scope, *stack, m, max(k, rows), n)
    return Operand(a.a.dtype, (*stack, m, n))


def _matmul_row_wise(a: Arguments) -> bool:
    rank = max(a.a.rank, a.b.rank)
    if rank == 2:
        return not a.b.batched
    return all(
        operand.rank == rank if operand.batched else operand.rank < rank or operand.shape[0] == 1
        for operand in (a.a, a.b)
    )


register(
    "matmul",
    "a:operand b:operand",
    _matmul_infer,
    lambda e, a: e.node("MatMul", a.a, a.b),
    _matmul_row_wise,
)


def _gemm_infer(a: Arguments, scope: Scope) -> Operand:
    a.check_dtype("a", FLOATS)
    a.check_same_dtype("a", "b", "c")
    a.check_rank("a", 2)
    a.check_rank("b", 2)
    a.check_rank("c", 0, 2)
    m, k = reversed(a.a.shape) if a.aTranspose else a.a.shape
    rows, n = reversed(a.b.shape) if a.bTranspose else a.b.shape
    _check_inner(a, k, rows)
    if a.c is not None:
        for given, wanted in zip(reversed(a.c.shape), (n, m), strict=False):
            if given not in (1, wanted) and given >= 0 and wanted >= 0:
                a.fail(f"c cannot be broadcast to {shown((m, n))}")
    check_products(a, scope, m, max(k, rows), n)
    return Operand(a.a.dtype, (m, n))


def _gemm(e: Emitter, a: Arguments) -> Value:
    return e.node(
        "Gemm",
        a.a,
        a.b,
        *(() if a.c is None else (a.c,)),
        alpha=real(a.a.dtype, a.alpha),
        beta=real(a.a.dtype, a.beta),
        transA=int(bool(a.aTranspose)),
        transB=int(bool(a.bTranspose)),
    )


def _gemm_row_wise(a: Arguments) -> bool:
    if a.b.batched or (a.a.batched and a.aTranspose):
        return False
    return a.c is None or (a.c.rank == 2 if a.c.batched else a.c.rank < 2 or a.c.shape[0] == 1)


register(
    "gemm",
    (
        Param("a", "operand"),
        Param("b", "operand"),
        Param("c", "optional"),
        Param("alpha", "f64", default=1.0),
        Param("beta", "f64", default=1.0),
        Param("aTranspose", "u32", default=0),
        Param("bTranspose", "u32", default=0),
    ),
    _gemm_infer,
    _gemm,
    _gemm_row_wise,
)
