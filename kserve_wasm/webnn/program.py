"""A graph of operators, whole: checked, and ready to be lowered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from kserve_wasm.webnn.operand import Operand, OperatorError, Scope, shown_open
from kserve_wasm.webnn.operator import Arguments, Operator

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Value

SESSION: Mapping[str, str] = {
    # Folding constants computes, before any deadline counts.
    "optimization.disable_specified_optimizers": "ConstantFolding",
    # What lies between dequantizeLinear and quantizeLinear is computed as it is written: in 8 bits softmax is off by
    # one, averagePool2d does not open, and sums of uint8 times int8 saturate on processors without VNNI.
    "session.disable_quant_qdq": "1",
}
"""How ONNX Runtime is to open a program: session configuration entries."""

MAX_SHAPES = 256
"""Shapes of inputs that a program remembers to have checked."""


@dataclass(frozen=True, slots=True)
class Input:
    """An operand that dispatch gives."""

    name: str
    operand: Operand


@dataclass(frozen=True, slots=True)
class Constant:
    """An operand whose elements are part of the graph: little-endian, row-major."""

    operand: Operand
    data: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """An operator with its arguments: operands by number from 1, 0 for an absent one."""

    operator: Operator
    arguments: tuple[Any, ...]


Step: TypeAlias = Input | Constant | Call
"""What makes an operand, or several."""


def bind(call: Call, operands: Sequence[Any]) -> Arguments:
    """The call's arguments with operands (as they are, or as values) in place of their numbers."""
    numbers: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for param, argument in zip(call.operator.params, call.arguments, strict=True):
        value = argument
        if param.kind in ("operand", "optional"):
            numbers[param.name] = argument
            value = operands[argument - 1] if argument else None
        elif param.kind == "operands":
            numbers[param.name] = argument
            value = tuple(operands[number - 1] for number in argument)
        values[param.name] = value
    return Arguments(call.operator, numbers, values)


def infer(call: Call, operands: Sequence[Operand], scope: Scope) -> tuple[Operand, ...]:
    """Types and shapes of what the call gives. Raises OperatorError."""
    scope.begin(len(operands))
    results = call.operator.infer(bind(call, operands), scope)
    return results if isinstance(results, tuple) else (results,)


class Program:
    """A graph of operators. Immutable, and shared by all instances that build the same one.

    Args:
        steps: what makes its operands, in order.
        outputs: numbers of operands by the outputs' names.
        max_bytes: what all its operands together may take.

    Attributes:
        inputs: the inputs in order.
        outputs: the outputs' operands by name, in order.
        constant_bytes: bytes of its constants.
    """

    def __init__(self, steps: Sequence[Step], outputs: Mapping[str, int], max_bytes: int) -> None:
        self._steps = tuple(steps)
        self._output_numbers = dict(outputs)
        self._max_bytes = max_bytes
        self.inputs = tuple(step for step in steps if isinstance(step, Input))
        self.constant_bytes = sum(len(step.data) for step in steps if isinstance(step, Constant))
        self._named = frozenset(dim for i in self.inputs for dim in i.operand.shape if dim < 0)
        self._results = self._infer({}, Scope(self._named))
        operands = [operand for results in self._results for operand in results]
        self.outputs = {name: operands[number - 1] for name, number in outputs.items()}
        self._checked: set[tuple[tuple[int, ...], ...]] = set()

    def check(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Checks the sizes that inputs have for its open dimensions.

        Args:
            shapes: of every input, in order.

        Raises:
            OperatorError: an input has not the shape it was declared with, an operator does not take the sizes, or all
                operands together take too much.
        """
        if not self._named or shapes in self._checked:
            return
        sizes: dict[int, int] = {}
        for given, shape in zip(self.inputs, shapes, strict=True):
            declared = given.operand.shape
            fits = len(declared) == len(shape)
            for dim, size in zip(declared, shape, strict=False):
                fits = fits and size == (sizes.setdefault(dim, size) if dim < 0 else dim)
            if not fits:
                clashes = {
                    f"; equal negative numbers are one size, and {dim} is {sizes[dim]}"
                    for dim, size in zip(declared, shape, strict=False)
                    if dim < 0 and size != sizes[dim]
                }
                raise OperatorError(
                    f"input '{given.name}' must have shape {shown_open(declared)}, got {list(shape)}"
                    f"{''.join(sorted(clashes))}"
                )
        self._infer(sizes, Scope())
        if len(self._checked) >= MAX_SHAPES:
            self._checked.clear()
        self._checked.add(shapes)

    def _infer(self, sizes: Mapping[int, int], scope: Scope) -> list[tuple[Operand, ...]]:
        """What each step gives, with ``sizes`` for open dimensions."""
        given: list[tuple[Operand, ...]] = []
        operands: list[Operand] = []
        taken = 0
        for step in self._steps:
            if isinstance(step, Call):
                substituted = Call(step.operator, _with_sizes(step, sizes)) if sizes else step
                results = infer(substituted, operands, scope)
            else:
                operand = step.operand
                results = (Operand(operand.dtype, tuple(sizes.get(dim, dim) for dim in operand.shape)),)
            given.append(results)
            operands += results
            taken += sum(map(scope.least, results))
            if taken > self._max_bytes:
                what = step.operator.name if isinstance(step, Call) else "the inputs and constants"
                raise OperatorError(
                    f"{what}: with {', '.join(map(str, results))}, the operands of the graph take {taken} bytes, and "
                    f"{self._max_bytes} are allowed: raise limits.tensor_bytes"
                )
        return given

    # --- Requests together

    def merges(self) -> bool:
        """Whether each entry of the outputs along their first dimension depends on that of the inputs alone.

        Then requests can be run together without having to be tried. It is derived, never guessed: what an operator
        does not promise is not assumed.
        """
        leading = {i.operand.shape[0] if i.operand.rank else 0 for i in self.inputs}
        if len(leading) != 1 or (batch := leading.pop()) >= 0:
            return False
        if any(batch in i.operand.shape[1:] for i in self.inputs):
            return False
        seen: list[_Batched] = []
        for step, results in zip(self._steps, self._results, strict=True):
            if not isinstance(step, Call):
                seen.append(_Batched(step.operand, isinstance(step, Input)))
                continue
            # An operator may also have the batch's size from its name alone.
            of_batch = any(seen[number - 1].batched for number in _operands(step)) or any(
                batch in r.shape for r in results
            )
            if of_batch:
                keeps = all(r.rank and r.shape[0] == batch and batch not in r.shape[1:] for r in results)
                if not keeps or not step.operator.row_wise(bind(step, seen)):
                    return False
            seen += [_Batched(operand, of_batch) for operand in results]
        return all(seen[number - 1].batched for number in self._output_numbers.values())

    # --- Lowering

    def model_bytes(self) -> bytes:
        """The program as one ONNX graph, a serialized ModelProto; open dimension -1 is called ``d1``, and so on.

        Raises:
            OperatorError: it is too large.
        """
        import numpy as np

        from kserve_wasm.webnn.emit import Emitter, Value

        emitter = Emitter([Value(i.name, i.operand) for i in self.inputs], self.constant_bytes)
        values: list[Value] = []
        for step, results in zip(self._steps, self._results, strict=True):
            if isinstance(step, Input):
                values.append(Value(step.name, step.operand))
            elif isinstance(step, Constant):
                array = np.frombuffer(step.data, step.operand.dtype.numpy).reshape(step.operand.shape)
                values.append(emitter.constant(array))
            else:
                emitter.label = f"{step.operator.name}, operand {len(values) + 1};"
                emitter.results = results
                lowered = step.operator.lower(emitter, bind(step, values))
                made = (lowered,) if isinstance(lowered, Value) else tuple(lowered)
                # The shapes that were inferred are the ones to go on with.
                values += [
                    Value(value.name, operand, value.array)
                    for value, operand in zip(made, results, strict=True)
                ]
        symbols = {dim: f"d{-dim}" for dim in self._named}
        return emitter.model(
            {i.name: i.operand for i in self.inputs},
            {name: values[number - 1] for name, number in self._output_numbers.items()},
            symbols,
        )


@dataclass(frozen=True, slots=True)
class _Batched:
    """An operand as :attr:`~kserve_wasm.webnn.operator.Operator.row_wise` sees it."""

    operand: Operand
    batched: bool

    def __getattr__(self, name: str) -> Any:
        return getattr(self.operand, name)


def _operands(call: Call) -> Iterator[int]:
    for param, argument in zip(call.operator.params, call.arguments, strict=True):
        if param.kind in ("operand", "optional") and argument:
            yield argument
        elif param.kind == "operands":
            yield from argument


def _with_sizes(call: Call, sizes: Mapping[int, int]) -> tuple[Any, ...]:
    return tuple(
        tuple(sizes.get(n, n) for n in argument) if param.kind == "i32s" else argument
        for param, argument in zip(call.operator.params, call.arguments, strict=True)
    )
