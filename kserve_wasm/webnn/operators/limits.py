"""What one operator may ask of the machine.

A run sees its deadline between ONNX nodes, never within one, and a node's scratch memory is counted nowhere else.
"""

from __future__ import annotations

import math

from kserve_wasm.webnn.operand import Dim, Scope
from kserve_wasm.webnn.operator import Arguments

MAX_PRODUCTS = 1 << 38
"""Multiplications of a product of matrices or a convolution: eight seconds on two cores, a minute in bad shapes."""
MAX_VISITS = 1 << 30
"""Elements that windows visit, one at a time: from one second to half a minute on a core."""
MAX_SCRATCH = 1 << 28
"""Elements of 4 bytes that a kernel allocates beyond its results."""


def check_products(a: Arguments, scope: Scope, *sizes: Dim) -> None:
    """Fails where the product of the sizes, the multiplications to do, is too much."""
    _check(a, scope, sizes, MAX_PRODUCTS, "multiplications")


def check_visits(a: Arguments, scope: Scope, *sizes: Dim) -> None:
    """Fails where the product of the sizes, the elements that windows visit, is too much."""
    _check(a, scope, sizes, MAX_VISITS, "elements in windows")


def check_scratch(a: Arguments, scope: Scope, *sizes: Dim) -> None:
    """Fails where the product of the sizes, the elements held meanwhile, is too much."""
    _check(a, scope, sizes, MAX_SCRATCH, "intermediate elements")


def check_filled(a: Arguments, scope: Scope, name: str) -> None:
    """Fails where the operand is empty, or a run can make it so: there are kernels that then crash or never end."""
    if any(size == 0 or size in scope.bounds for size in getattr(a, name).shape):
        a.fail(f"{name} must not be empty, nor have sizes that only the run decides")


def _check(a: Arguments, scope: Scope, sizes: tuple[Dim, ...], most: int, what: str) -> None:
    # Dispatch checks again with the sizes of open dimensions, but not of those that only the run decides.
    least = math.prod(max(scope.bound(size) or 1, 1) for size in sizes)
    if least > most:
        a.fail(f"it takes {least} {what}, and an operator may take {most}")
