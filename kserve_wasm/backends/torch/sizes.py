"""Sizes that an exported program leaves open: symbols, expressions of them, and what requests must keep to.

They stand in the archive as SymPy's ``srepr``, such as ``Add(Mul(Integer(2), Symbol('s0', …)), Integer(1))``. SymPy
would evaluate that as Python; here it is only ever read.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from kserve_wasm.errors import BackendError, InvalidRequest
from kserve_wasm.tensors import Tensor, TensorSpec

Size: TypeAlias = Callable[[Mapping[str, int]], int]
"""Gives a dimension's size from those of the symbols; raises KeyError where one is not known."""

_LONGEST = 10_000
_FUNCTIONS: dict[str, Callable[..., int]] = {
    "Add": lambda *parts: sum(parts),
    "Mul": lambda *parts: math.prod(parts),
    "FloorDiv": lambda a, b: a // b,
    "CleanDiv": lambda a, b: a // b,
    "Mod": lambda a, b: a % b,
    "PythonMod": lambda a, b: a % b,
    "Max": max,
    "Min": min,
}


def symbol(expression: str) -> str | None:
    """The name of the symbol that ``expression`` is; None where it is more than one."""
    tree = _parse(expression)
    return _name(tree) if isinstance(tree, ast.Call) and _called(tree) == "Symbol" else None


def size(expression: str) -> Size | None:
    """``expression`` as a function; None where it has operators that are not known here."""
    try:
        return _compile(_parse(expression))
    except (KeyError, RecursionError):
        return None


class Checks:
    """What a program asks of the sizes of its inputs, beyond each one's specification.

    Args:
        inputs: the specifications.
        derived: the dimensions that are expressions: index of the input, index of the dimension, size.
        ranges: lowest and highest value of each symbol; None is no bound.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        derived: Sequence[tuple[int, int, Size]],
        ranges: Mapping[str, tuple[int | None, int | None]],
    ) -> None:
        self._inputs = inputs
        self._derived = derived
        self._ranges = ranges
        self._symbols = [
            (i, axis, name)
            for i, spec in enumerate(inputs)
            for axis, name in enumerate(spec.shape)
            if isinstance(name, str)
        ]

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        """Raises InvalidRequest unless the shapes of ``tensors``, one for each input, go together."""
        sizes: dict[str, int] = {}
        for i, axis, name in self._symbols:
            came = tensors[i].shape[axis]
            if sizes.setdefault(name, came) != came:
                raise InvalidRequest(
                    f"'{name}' is {sizes[name]} and, in input '{self._inputs[i].name}', {came}: "
                    "dimensions of one name must have one size"
                )
        for name, came in sizes.items():
            low, high = self._ranges.get(name, (None, None))
            # Programs are exported as if no size were 0 or 1, and take them all the same, as torch.export's own do.
            if (low is not None and low > 2 and came < low) or (high is not None and came > high):
                raise InvalidRequest(
                    f"'{name}' must be from {low if low is not None else 0} to {'any' if high is None else high}, "
                    f"got {came}"
                )
        for i, axis, want in self._derived:
            try:
                expected, came = want(sizes), tensors[i].shape[axis]
            except ZeroDivisionError:
                raise InvalidRequest(
                    f"dimension {axis} of input '{self._inputs[i].name}' has no size where "
                    + ", ".join(f"'{name}' is {size}" for name, size in sizes.items())
                ) from None
            if expected != came:
                raise InvalidRequest(
                    f"input '{self._inputs[i].name}' must have {expected} entries along dimension {axis}, got {came}"
                )


def _parse(expression: str) -> ast.expr:
    if len(expression) > _LONGEST:
        raise BackendError("the program has a size of more than 10000 characters")
    try:
        return ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BackendError("the program has a size that is no expression") from error


def _called(tree: ast.expr) -> str:
    return tree.func.id if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) else ""


def _name(tree: ast.Call) -> str | None:
    first = tree.args[0] if tree.args else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def _compile(tree: ast.expr) -> Size:
    """Raises KeyError where something is not known."""
    called = _called(tree)
    arguments = tree.args if isinstance(tree, ast.Call) else []
    if called == "Symbol":
        name = str(_name(tree) if isinstance(tree, ast.Call) else None)
        return lambda sizes: sizes[name]
    if called == "Integer":
        value: Any = ast.unparse(arguments[0]) if arguments else ""
        if not value.lstrip("-").isdecimal() or len(value) > 20:
            raise KeyError(value)
        number = int(value)
        return lambda _: number
    function, parts = _FUNCTIONS[called], [_compile(argument) for argument in arguments]
    return lambda sizes: function(*(part(sizes) for part in parts))
