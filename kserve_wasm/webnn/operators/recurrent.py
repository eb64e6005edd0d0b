"""Recurrent networks, and one step of them.

Source: Web Neural Network API, ``gru``, ``gruCell``, ``lstm``, ``lstmCell``; the cells are computed as its emulations
of them are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kserve_wasm.webnn.operand import FLOATS, Dim, Operand, Scope
from kserve_wasm.webnn.operator import Arguments, Infer, Kind, Param, register
from kserve_wasm.webnn.operators.limits import check_filled, check_products, check_scratch
from kserve_wasm.webnn.operators.windows import layout

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value


@dataclass(frozen=True, slots=True)
class _Kind:
    """What tells the one network from the other.

    Attributes:
        layouts: the orders of the gates, by number.
        onnx: the order that ONNX has, in WebNN's letters.
        activations: by place, what 0 stands for.
        states: how many there are.
    """

    layouts: tuple[str, ...]
    onnx: str
    activations: tuple[str, ...]
    states: int

    @property
    def gates(self) -> int:
        return len(self.onnx)


_GRU = _Kind(("zrn", "rzn"), "zrn", ("Sigmoid", "Tanh"), 1)
_LSTM = _Kind(("iofg", "ifgo"), "iofg", ("Sigmoid", "Tanh", "Tanh"), 2)

DIRECTIONS = ("forward", "backward", "both")
"""By number (``MLRecurrentNetworkDirection``)."""
ACTIVATIONS = ("", "Relu", "Sigmoid", "Tanh")
"""ONNX's, by number (``MLRecurrentNetworkActivation``); 0 is the default at its place."""

_STATES = ("hiddenState", "cellState", "initialHiddenState", "initialCellState")
_OPTIONS = ("bias", "recurrentBias", "peepholeWeight", "initialHiddenState", "initialCellState")


def _activations(a: Arguments, kind: _Kind) -> list[str]:
    if max(a.activations) >= len(ACTIVATIONS):
        a.fail(f"activations must be 0 default, 1 relu, 2 sigmoid or 3 tanh; got {list(a.activations)}")
    return [ACTIVATIONS[n] or default for n, default in zip(a.activations, kind.activations, strict=True)]


def _check(a: Arguments, kind: _Kind, leading: tuple[int, ...], batch: Dim) -> None:
    """Checks what networks and cells have; ``leading`` dimensions are those that networks have for directions."""
    layout(a, "layout", kind.layouts)
    _activations(a, kind)
    gates, hidden = kind.gates, a.hiddenSize
    # ONNX has both biases in one vector.
    if not 0 < 2 * gates * hidden < 1 << 31:
        a.fail(f"hiddenSize must be from 1 to {((1 << 31) - 1) // (2 * gates)}, got {hidden}")
    names = [name for name in (*_STATES[:2], *_OPTIONS) if getattr(a, name, None) is not None]
    a.check_dtype("input", FLOATS)
    a.check_same_dtype("input", "weight", "recurrentWeight", *names)
    shapes = {
        "weight": (gates * hidden, a.input.shape[-1]),
        "recurrentWeight": (gates * hidden, hidden),
        "bias": (gates * hidden,),
        "recurrentBias": (gates * hidden,),
        "peepholeWeight": (3 * hidden,),
        **dict.fromkeys(_STATES, (batch, hidden)),
    }
    for name in ("weight", "recurrentWeight", *names):
        a.check_shape(name, (*leading, *shapes[name]))


# --- One step


def _parts(e: Emitter, value: Value, letters: str, axis: int) -> dict[str, Value]:
    """``value`` in as many parts along ``axis`` as there are letters, by letter."""
    if value.array is not None:
        parts = [e.constant(part) for part in np.split(value.array, len(letters), axis)]
    else:
        shape = list(value.shape)
        shape[axis] //= len(letters)
        part = Operand(value.dtype, tuple(shape))
        parts = e.nodes("Split", value, results=[part] * len(letters), axis=axis, num_outputs=len(letters))
    return dict(zip(letters, parts, strict=True))


def _product(e: Emitter, x: Value, weight: Value, bias: Value | None) -> Value:
    """[batch, …] · [units, …]ᵀ + [units]."""
    result = Operand(x.dtype, (x.shape[0], weight.shape[0]))
    return e.node("Gemm", x, weight, *(() if bias is None else (bias,)), result=result, transB=1)


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell's weights, and how they are to be read."""

    weight: Value
    recurrent_weight: Value
    bias: Value | None
    recurrent_bias: Value | None
    peepholes: Value | None
    layout: str
    activations: list[str]
    reset_before: bool


def _of(op_type: str, e: Emitter, *values: Any) -> Value:
    return e.node(op_type, *values, result=values[-1].operand)


def _lstm_step(e: Emitter, cell: _Cell, x: Value, hidden: Value, state: Value) -> tuple[Value, Value]:
    """The hidden state and the cell state. Every peephole looks at the old cell state (ONNX's of ``o`` at the new)."""
    at_gate, at_cell, at_hidden = cell.activations
    whole = _of(
        "Add",
        e,
        _product(e, x, cell.weight, cell.bias),
        _product(e, hidden, cell.recurrent_weight, cell.recurrent_bias),
    )
    gates = _parts(e, whole, cell.layout, 1)
    if cell.peepholes is not None:
        for letter, weight in _parts(e, cell.peepholes, "iof", 0).items():
            gates[letter] = _of("Add", e, _of("Mul", e, weight, state), gates[letter])
    i, o, f = (_of(at_gate, e, gates[letter]) for letter in "iof")
    kept = _of("Mul", e, f, state)
    following = _of("Add", e, _of("Mul", e, i, _of(at_cell, e, gates["g"])), kept)
    return _of("Mul", e, o, _of(at_hidden, e, following)), following


def _gru_step(e: Emitter, cell: _Cell, x: Value, hidden: Value) -> Value:
    at_gate, at_new = cell.activations
    of_input = _parts(e, _product(e, x, cell.weight, cell.bias), cell.layout, 1)
    if cell.reset_before:
        weights = _parts(e, cell.recurrent_weight, cell.layout, 0)
        biases = {} if cell.recurrent_bias is None else _parts(e, cell.recurrent_bias, cell.layout, 0)
        of_hidden = {letter: _product(e, hidden, weights[letter], biases.get(letter)) for letter in "zr"}
    else:
        product = _product(e, hidden, cell.recurrent_weight, cell.recurrent_bias)
        of_hidden = _parts(e, product, cell.layout, 1)
    z, r = (_of(at_gate, e, _of("Add", e, of_input[letter], of_hidden[letter])) for letter in "zr")
    if cell.reset_before:
        recurrent = _product(e, _of("Mul", e, r, hidden), weights["n"], biases.get("n"))
    else:
        recurrent = _of("Mul", e, r, of_hidden["n"])
    new = _of(at_new, e, _of("Add", e, of_input["n"], recurrent))
    rest = _of("Sub", e, np.array(1, x.dtype.numpy), z)
    return _of("Add", e, _of("Mul", e, z, hidden), _of("Mul", e, rest, new))


def _cell_infer(kind: _Kind) -> Infer:
    def infer(a: Arguments, scope: Scope) -> Operand | tuple[Operand, ...]:
        a.check_rank("input", 2)
        batch, inputs = a.input.shape
        _check(a, kind, (), batch)
        check_products(a, scope, batch, kind.gates * a.hiddenSize, max(inputs, 1) + a.hiddenSize)
        state = Operand(a.input.dtype, (batch, a.hiddenSize))
        return (state,) * kind.states if kind.states > 1 else state

    return infer


def _cell(
    a: Arguments, kind: _Kind, of: Callable[[Value | None], Value | None] = lambda value: value
) -> _Cell:
    """The cell, with ``of`` applied to its weights."""
    weight, recurrent_weight = of(a.weight), of(a.recurrentWeight)
    assert weight is not None
    assert recurrent_weight is not None
    return _Cell(
        weight,
        recurrent_weight,
        of(a.bias),
        of(a.recurrentBias),
        of(getattr(a, "peepholeWeight", None)),
        kind.layouts[a.layout],
        _activations(a, kind),
        bool(getattr(a, "resetBefore", 0)),
    )


def _cell_row_wise(a: Arguments) -> bool:
    states = [getattr(a, name, None) for name in _STATES[:2]]
    weights = [getattr(a, name, None) for name in ("weight", "recurrentWeight", *_OPTIONS[:3])]
    return all(state is None or state.batched for state in (a.input, *states)) and not any(
        weight is not None and weight.batched for weight in weights
    )


# --- All steps


def _directions(a: Arguments) -> int:
    return 2 if layout(a, "direction", DIRECTIONS) == "both" else 1


def _network_infer(kind: _Kind) -> Infer:
    def infer(a: Arguments, scope: Scope) -> tuple[Operand, ...]:
        a.check_rank("input", 3)
        check_filled(a, scope, "input")
        steps, batch, inputs = a.input.shape
        if a.steps == 0 or 0 <= steps != a.steps:
            a.fail(f"steps must be the first size of the input and at least 1, got {a.steps}")
        directions = _directions(a)
        _check(a, kind, (directions,), batch)
        units = kind.gates * a.hiddenSize
        check_products(a, scope, a.steps, directions, batch, units, max(inputs, 1) + a.hiddenSize)
        check_scratch(a, scope, a.steps, directions, batch, units)
        shape = (directions, batch, a.hiddenSize)
        states = (Operand(a.input.dtype, shape),) * kind.states
        return (*states, Operand(a.input.dtype, (a.steps, *shape))) if a.returnSequence else states

    return infer


def _reordered(e: Emitter, value: Value, units: int, given: str, wanted: str) -> Value:
    """A weight or bias with its gates, ``units`` each along the second dimension, in the order that is wanted."""
    if given == wanted:
        return value
    order = np.concatenate([np.arange(units) + units * given.index(letter) for letter in wanted])
    if value.array is not None:
        return e.constant(value.array[:, order])
    return e.node("Gather", value, order, result=value.operand, axis=1)


def _network(op_type: str, kind: _Kind, **own: str) -> Any:
    """ONNX's operator; ``own`` are its attributes, by the names of WebNN's."""

    def lower(e: Emitter, a: Arguments) -> list[Value]:
        given = kind.layouts[a.layout]
        directions, units = _directions(a), kind.gates * a.hiddenSize

        def ordered(value: Value) -> Value:
            return _reordered(e, value, a.hiddenSize, given, kind.onnx)

        bias = None
        if a.bias is not None or a.recurrentBias is not None:
            none = np.zeros((directions, units), a.input.dtype.numpy)
            halves = [none if half is None else ordered(half) for half in (a.bias, a.recurrentBias)]
            joined = Operand(a.input.dtype, (directions, 2 * units))
            bias = e.node("Concat", *halves, result=joined, axis=1)
        *states, sequence = (*e.results, None) if not a.returnSequence else e.results
        initial = [getattr(a, name, None) for name in _STATES[2:]][: kind.states]
        made = e.nodes(
            op_type,
            a.input,
            ordered(a.weight),
            ordered(a.recurrentWeight),
            bias,
            None,
            *initial,
            results=(sequence, *states),
            hidden_size=a.hiddenSize,
            direction=("forward", "reverse", "bidirectional")[a.direction],
            activations=_activations(a, kind) * directions,
            **{attribute: int(not getattr(a, name)) for name, attribute in own.items()},
        )
        return [*made[1:], made[0]] if a.returnSequence else made

    return lower


def _lstm(e: Emitter, a: Arguments) -> list[Value]:
    if a.peepholeWeight is None:
        lowered: list[Value] = _network("LSTM", _LSTM)(e, a)
        return lowered
    # ONNX's peepholes differ: each direction is a scan over the steps.
    made = [_scanned(e, a, n, backward=a.direction == 1 or n == 1) for n in range(_directions(a))]
    axes = (0, 0, 1)[: len(e.results)]
    joined = []
    for result, axis, parts in zip(e.results, axes, zip(*made, strict=True), strict=False):
        place = np.array([axis], np.int64)
        wider = [e.node("Unsqueeze", part, place, result=result) for part in parts]
        joined.append(e.node("Concat", *wider, result=result, axis=axis))
    return joined


def _scanned(e: Emitter, a: Arguments, direction: int, *, backward: bool) -> list[Value]:
    """The last states and every step's hidden state, of one direction."""

    def own(value: Value | None) -> Value | None:
        if value is None:
            return None
        if value.array is not None:
            return e.constant(value.array[direction])
        result = Operand(value.dtype, value.shape[1:])
        return e.node("Gather", value, np.array(direction, np.int64), result=result, axis=0)

    state = Operand(a.input.dtype, e.results[0].shape[1:])

    def initial(value: Value | None) -> Value:
        zero = np.zeros((1, 1), a.input.dtype.numpy)
        return own(value) or e.node("Expand", zero, e.shape_vector(state.shape, a.input), result=state)

    cell = _cell(a, _LSTM, own)

    def step(inner: Emitter, given: list[Value]) -> tuple[list[Value], list[Value]]:
        hidden, following = _lstm_step(inner, cell, given[2], given[0], given[1])
        return [hidden, following], [hidden]

    states = [initial(a.initialHiddenState), initial(a.initialCellState)]
    sequence = Operand(state.dtype, (a.steps, *state.shape))
    return e.scan(step, states, a.input, (state, state, sequence), backward=backward)


# --- The operators


def _options(*names: str, kind: _Kind) -> tuple[Param, ...]:
    """Operands by their names, and enumerations."""
    optional: Kind = "optional"
    return tuple(
        Param(name, optional, in_options=True)
        if name in _OPTIONS
        else Param(
            name, "u32[]", in_options=True, length=len(kind.activations), default=(0,) * len(kind.activations)
        )
        if name == "activations"
        else Param(name, "u32", in_options=True, default=0)
        for name in names
    )


def _operands(*names: str) -> tuple[Param, ...]:
    return tuple(Param(name, "operand") for name in ("input", "weight", "recurrentWeight", *names))


_STEPS, _HIDDEN_SIZE = Param("steps", "u32"), Param("hiddenSize", "u32")

register(
    "gru",
    (
        *_operands(),
        _STEPS,
        _HIDDEN_SIZE,
        *_options("bias", "recurrentBias", "initialHiddenState", kind=_GRU),
        *_options("resetBefore", "returnSequence", "direction", "layout", "activations", kind=_GRU),
    ),
    _network_infer(_GRU),
    _network("GRU", _GRU, resetBefore="linear_before_reset"),
    multiple=True,
)
register(
    "gruCell",
    (
        *_operands("hiddenState"),
        _HIDDEN_SIZE,
        *_options("bias", "recurrentBias", "resetBefore", "layout", "activations", kind=_GRU),
    ),
    _cell_infer(_GRU),
    lambda e, a: _gru_step(e, _cell(a, _GRU), a.input, a.hiddenState),
    _cell_row_wise,
)
register(
    "lstm",
    (
        *_operands(),
        _STEPS,
        _HIDDEN_SIZE,
        *_options(*_OPTIONS, "returnSequence", "direction", "layout", "activations", kind=_LSTM),
    ),
    _network_infer(_LSTM),
    _lstm,
    multiple=True,
)
register(
    "lstmCell",
    (
        *_operands("hiddenState", "cellState"),
        _HIDDEN_SIZE,
        *_options(*_OPTIONS[:3], "layout", "activations", kind=_LSTM),
    ),
    _cell_infer(_LSTM),
    lambda e, a: _lstm_step(e, _cell(a, _LSTM), a.input, a.hiddenState, a.cellState),
    _cell_row_wise,
    multiple=True,
)
