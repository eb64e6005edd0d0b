"""What an operator is: its parameters, the shapes of its results, and the ONNX that computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

from kserve_wasm.tensors import DType
from kserve_wasm.webnn.operand import Operand, OperatorError, Scope, broadcast, shown

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

Kind: TypeAlias = Literal[
    "operand", "optional", "operands", "u32", "i32", "f64", "u32s", "u32s?", "i32s", "u32[]", "f64[]"
]
"""What a parameter is: an operand (which may be absent), a list of operands, a number, a list of numbers (which may be
absent), or (in a structure of options) an array of fixed length."""


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of an operator, in the order of the guest's call.

    Attributes:
        name: as the specification spells it.
        kind: what it is.
        in_options: whether it is passed in a structure, where all zero means its default.
        length: the array's, for those of fixed length.
        default: what zero stands for in a structure.
    """

    name: str
    kind: Kind
    in_options: bool = False
    length: int = 0
    default: Any = None


class Arguments:
    """The arguments of one use of an operator, by name: operands as :class:`Operand`, or as emitted values.

    Args:
        operator: the operator.
        numbers: the operands' numbers, for messages, by the parameter's name.
        values: the arguments.
    """

    def __init__(self, operator: Operator, numbers: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        self._operator = operator
        self._numbers = numbers
        self._values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    def fail(self, problem: str) -> NoReturn:
        """Raises OperatorError with ``problem`` behind the operator's name, and its operands behind that."""
        operands = []
        for name, number in self._numbers.items():
            values = self._values[name]
            for n, value in zip(
                *((number, values) if isinstance(number, tuple) else ((number,), (values,))), strict=True
            ):
                if value is not None:
                    operands.append(f"{name} = operand {n}: {value.dtype} {shown(value.shape)}")
        raise OperatorError(f"{self._operator.name}: {problem} ({'; '.join(operands)})")

    # --- Checks that many operators share

    def check_dtype(self, name: str, allowed: Iterable[DType]) -> None:
        """Fails unless the operand's element type is one of ``allowed``."""
        operand = self._values[name]
        if operand is not None and operand.dtype not in allowed:
            names = ", ".join(sorted(dtype.name for dtype in allowed))
            self.fail(f"{name} must be one of {names}, got {operand.dtype}")

    def check_same_dtype(self, *names: str) -> None:
        """Fails unless the operands have the same element type; absent ones are left out."""
        kinds = {self._values[name].dtype for name in names if self._values[name] is not None}
        if len(kinds) > 1:
            self.fail(f"{', '.join(names)} must have the same data type: cast to one")

    def check_rank(self, name: str, least: int, most: int | None = None) -> None:
        """Fails unless the operand has from ``least`` to ``most`` dimensions (as many as ``least`` without it)."""
        operand = self._values[name]
        most = least if most is None else most
        if operand is not None and not least <= operand.rank <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            self.fail(f"{name} must have {wanted} dimensions, got {operand.rank}")

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """Fails unless the operand, if there is one, has this shape; open dimensions may come to it."""
        operand = self._values[name]
        if operand is None:
            return
        if operand.rank != len(shape) or any(
            x != y and x >= 0 and y >= 0 for x, y in zip(operand.shape, shape, strict=True)
        ):
            self.fail(f"{name} must have shape {shown(shape)}, got {shown(operand.shape)}")

    def check_axis(self, name: str, rank: int) -> None:
        """Fails unless the attribute is an axis of an operand with ``rank`` dimensions."""
        axis = self._values[name]
        if axis >= rank:
            given = axis - (1 << 32) if axis >> 31 else axis
            self.fail(
                f"{name} must be below {rank}, the number of dimensions, and counts from the first; got {given}"
            )

    def axes(self, name: str, rank: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The attribute as axes of an operand with ``rank`` dimensions; ``default``, or all, where it is absent."""
        given = self._values[name]
        if given is None:
            return tuple(range(rank)) if default is None else default
        if len(set(given)) < len(given) or any(axis >= rank for axis in given):
            self.fail(f"{name} must be different numbers below {rank}, got {list(given)}")
        return tuple(given)

    def broadcast(self, scope: Scope, *names: str) -> tuple[int, ...]:
        """The shape that the operands broadcast to."""
        shape: tuple[int, ...] = ()
        for name in names:
            together = broadcast(shape, self._values[name].shape, scope)
            if together is None:
                self.fail("the shapes cannot be broadcast")
            shape = together
        return shape


Infer: TypeAlias = Callable[[Arguments, Scope], Operand | tuple[Operand, ...]]
Lower: TypeAlias = "Callable[[Emitter, Arguments], Value | Sequence[Value]]"
RowWise: TypeAlias = Callable[[Arguments], bool]


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator.

    Attributes:
        name: as the specification spells it.
        params: its parameters.
        infer: its results' types and shapes. Raises OperatorError.
        lower: adds the nodes that compute its results.
        row_wise: whether entry ``i`` of every result along its first dimension depends on no other entry of the
            operands that have the batch as their first dimension; asked only where at least one of them has. The
            first dimension of every result is then the batch.
        multiple: whether it gives several results, and so their number to the guest through memory.
        own: whether it is this project's, and not of the specification.
    """

    name: str
    params: tuple[Param, ...]
    infer: Infer
    lower: Lower
    row_wise: RowWise
    multiple: bool = False
    own: bool = False


OPERATORS: dict[str, Operator] = {}
"""Every operator by name; filled by the modules of :mod:`kserve_wasm.webnn.operators`."""


def register(
    name: str,
    params: Sequence[Param] | str,
    infer: Infer,
    lower: Lower,
    row_wise: RowWise | None = None,
    *,
    multiple: bool = False,
    own: bool = False,
) -> None:
    """Adds an operator; without ``row_wise`` none of its uses keeps requests apart.

    ``params`` may be text: ``"input:operand bias:optional axis:u32"``.
    """
    parsed = tuple(_params(params)) if isinstance(params, str) else tuple(params)
    OPERATORS[name] = Operator(name, parsed, infer, lower, row_wise or _never, multiple, own)


def _params(text: str) -> Iterable[Param]:
    for word in text.split():
        name, _, kind = word.partition(":")
        yield Param(name, kind)  # type: ignore[arg-type]


def _never(_arguments: Arguments) -> bool:
    return False
