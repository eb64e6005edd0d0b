"""Builds programs, and remembers what was built: to a fresh instance, building again costs a look-up an operator."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from kserve_wasm.tensors import DType
from kserve_wasm.tensors.dtypes import BOOL
from kserve_wasm.webnn import operators as _operators  # noqa: F401  # registers them
from kserve_wasm.webnn.operand import ALL, MAX_RANK, TENSORS, Operand, OperatorError, Scope
from kserve_wasm.webnn.operator import OPERATORS
from kserve_wasm.webnn.program import Call, Constant, Input, Program, Step, infer

MAX_OPERANDS = 4096
"""Operands of one graph."""
_MAX_LISTED = 1 << 14
"""Operands that the lists in a graph name together: each is looked at several times, in which no deadline is seen."""
_MAX_NODES = 1 << 16
_MAX_CONSTANTS = 256 << 20
_REALS = frozenset(
    name
    for name, operator in OPERATORS.items()
    if any(param.kind in ("f64", "f64[]") for param in operator.params)
)


class _Node:
    """A graph as far as it is built: what follows on each further step, and what was built of it."""

    __slots__ = ("bounds", "next", "programs", "results")

    def __init__(self, results: tuple[Operand, ...], bounds: Mapping[int, int]) -> None:
        self.results = results
        self.bounds = bounds
        self.next: dict[Hashable, _Node] = {}
        self.programs: dict[tuple[tuple[str, int], ...], Program] = {}


class Recordings:
    """What the guests of one model have built; shared by its instances, on any thread.

    Of guests that build something new every time, it keeps the latest tens of thousands of operators, and 256 MiB of
    constants.
    """

    def __init__(self) -> None:
        self.root = _Node((), {})
        self._nodes = self._bytes = 0

    def added(self, entries: int, data: int) -> None:
        """Counts what is new, in operands and in bytes; forgets everything once it is too much."""
        self._nodes += entries
        self._bytes += data
        if self._nodes > _MAX_NODES or self._bytes > _MAX_CONSTANTS:
            self.root = _Node((), {})
            self._nodes = self._bytes = 0


class Builder:
    """Builds one graph (``MLGraphBuilder``). Used by one thread.

    Operands are numbered from 1. What an operator gives is found when it is added, and so is what it does not take.

    Args:
        max_bytes: what all operands of the graph may take together.
        recordings: what was built before.
    """

    def __init__(self, max_bytes: int, recordings: Recordings | None = None) -> None:
        self._max_bytes = max_bytes
        self._recordings = recordings or Recordings()
        self._node = self._recordings.root
        self._steps: list[Step] = []
        self._listed = 0
        self._operands: list[Operand] = []
        self._names: set[str] = set()
        self._scope = Scope()

    def operand(self, number: int) -> Operand:
        """Type and shape of an operand."""
        return self._operands[number - 1]

    def input(self, name: str, dtype: DType, shape: Sequence[int]) -> int:
        """An operand that dispatch gives; negative dimensions are open, equal ones of equal size.

        Raises:
            OperatorError: the name is empty, taken or begins with ``#``, or there can be no such operand.
        """
        if not name or name in self._names or name.startswith("#"):
            raise OperatorError(
                f"input: '{name}' must be a name that no other input has and that does not begin with '#'"
            )
        operand = _checked("input", dtype, shape, TENSORS)
        self._add(Input(name, operand), (name, operand))
        self._names.add(name)
        self._scope.named.update(dim for dim in operand.shape if dim < 0)
        return len(self._operands)

    def constant(self, dtype: DType, shape: Sequence[int], data: bytes) -> int:
        """An operand with these elements: little-endian, row-major.

        Raises:
            OperatorError: ``data`` has not the length that type and shape ask for, or there can be no such operand.
        """
        operand = _checked("constant", dtype, shape, ALL | {BOOL})
        size = self._scope.least(operand) if operand.is_static else None
        if len(data) != size:
            raise OperatorError(f"constant: {operand} needs {size or 'known'} bytes, got {len(data)}")
        if dtype is BOOL and data.strip(b"\0\1"):
            raise OperatorError("constant: BOOL data must hold only the bytes 0 and 1, got others")
        self._add(Constant(operand, data), (operand, data))
        return len(self._operands)

    def add(self, name: str, arguments: tuple[Any, ...]) -> tuple[int, ...]:
        """Uses an operator.

        Args:
            name: the operator's.
            arguments: in the order of its parameters: operands by number (0 for an absent one), numbers, and tuples;
                hashable.

        Returns:
            The numbers of what it gives.

        Raises:
            OperatorError: the operator does not take its arguments; the message names it and its operands.
        """
        first = len(self._operands) + 1
        # 0.0 equals -0.0 and NaN not even itself: their texts are what they are.
        key = repr(arguments) if name in _REALS else arguments
        self._add(Call(OPERATORS[name], arguments), (name, key))
        return tuple(range(first, len(self._operands) + 1))

    def _add(self, step: Step, key: Hashable) -> None:
        if len(self._operands) >= MAX_OPERANDS:
            raise OperatorError(f"a graph may have {MAX_OPERANDS} operands")
        # Lists of operands come first: concat's.
        listed = len(step.arguments[0]) if isinstance(step, Call) and type(step.arguments[0]) is tuple else 0
        self._listed += listed
        if self._listed > _MAX_LISTED:
            raise OperatorError(f"the lists of operands in a graph may have {_MAX_LISTED} entries together")
        following = self._node.next.get(key)
        if following is None:
            scope = self._scope
            known = len(scope.bounds)
            results = infer(step, self._operands, scope) if isinstance(step, Call) else (step.operand,)
            for operand in results:
                self._check_size(step, operand)
            bounds = dict(scope.bounds) if len(scope.bounds) > known else {}
            following = self._node.next.setdefault(key, _Node(results, bounds))
            data = (
                0 if isinstance(step, Call) else len(step.data if isinstance(step, Constant) else step.name)
            )
            self._recordings.added(1 + len(results) + listed, data)
        self._node = following
        self._steps.append(step)
        self._operands += following.results
        if following.bounds:
            self._scope.bounds.update(following.bounds)

    def _check_size(self, step: Step, operand: Operand) -> None:
        what = step.operator.name if isinstance(step, Call) else type(step).__name__.lower()
        if operand.rank > MAX_RANK:
            raise OperatorError(f"{what}: an operand may have {MAX_RANK} dimensions, got {operand}")
        size = self._scope.least(operand)
        if size > self._max_bytes:
            raise OperatorError(
                f"{what}: the result, {operand}, takes {size} bytes, and the operands of a graph may take "
                f"{self._max_bytes}: raise limits.tensor_bytes"
            )

    def build(self, outputs: Sequence[tuple[str, int]]) -> Program:
        """The graph that gives ``outputs``: names and numbers of operands.

        Raises:
            OperatorError: there are no outputs or inputs, names meet, or the operands take too much together.
        """
        key = tuple(outputs)
        program = self._node.programs.get(key)
        if program is None:
            names = [name for name, _ in outputs]
            if not names or not self._names:
                raise OperatorError("build: a graph needs an input and an output")
            taken = [name for name in names if not name or name.startswith("#") or name in self._names]
            if taken or len(set(names)) < len(names):
                raise OperatorError(
                    f"build: each output needs a name of its own, which is no input's, not empty, and does not begin "
                    f"with '#'; got {', '.join(map(repr, names))}"
                )
            program = Program(self._steps, dict(key), self._max_bytes)
            self._node.programs[key] = program
            self._recordings.added(len(self._steps) + len(names), sum(map(len, names)))
        return program


def _checked(what: str, dtype: DType, shape: Sequence[int], allowed: frozenset[DType]) -> Operand:
    if dtype not in allowed:
        names = ", ".join(sorted(d.name for d in allowed))
        raise OperatorError(f"{what}: the data type must be one of {names}, got {dtype}")
    if len(shape) > MAX_RANK or 0 in shape or any(not -(1 << 31) <= dim < 1 << 31 for dim in shape):
        raise OperatorError(
            f"{what}: a shape has at most {MAX_RANK} dimensions, each at least 1, or negative where open; got "
            f"{list(shape)}"
        )
    return Operand(dtype, tuple(shape))
