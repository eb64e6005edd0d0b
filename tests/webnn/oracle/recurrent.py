"""Recurrent networks."""

# ruff: noqa: A002, N802, N803  # the specification's names

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.webnn.oracle.precision import Array, in_double

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(0, x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def _gates(parameter: Array | None, layout: str, wanted: str) -> list[Array] | list[float]:
    """The parts of a weight or bias for the gates ``wanted``; zeros where there is none."""
    if parameter is None:
        return [0.0] * len(wanted)
    parts = np.split(parameter, len(layout), 0)
    return [parts[layout.index(gate)] for gate in wanted]


@in_double
def gruCell(
    input: Array,
    weight: Array,
    recurrentWeight: Array,
    hiddenState: Array,
    hiddenSize: int,  # noqa: ARG001  # an argument of the specification's that the shapes tell too
    *,
    bias: Array | None = None,
    recurrentBias: Array | None = None,
    resetAfter: bool = True,
    layout: str = "zrn",
    activations: Sequence[str] | None = None,
) -> Array:
    of_gate, of_new = (_ACTIVATIONS[name] for name in activations or ("sigmoid", "tanh"))
    wz, wr, wn = _gates(weight, layout, "zrn")
    uz, ur, un = _gates(recurrentWeight, layout, "zrn")
    bz, br, bn = _gates(bias, layout, "zrn")
    cz, cr, cn = _gates(recurrentBias, layout, "zrn")
    h = hiddenState
    z = of_gate(input @ wz.T + bz + h @ uz.T + cz)
    r = of_gate(input @ wr.T + br + h @ ur.T + cr)
    recurrent = r * (h @ un.T + cn) if resetAfter else (r * h) @ un.T + cn
    n = of_new(input @ wn.T + bn + recurrent)
    return z * h + (1 - z) * n


@in_double
def lstmCell(
    input: Array,
    weight: Array,
    recurrentWeight: Array,
    hiddenState: Array,
    cellState: Array,
    hiddenSize: int,  # noqa: ARG001  # an argument of the specification's that the shapes tell too
    *,
    bias: Array | None = None,
    recurrentBias: Array | None = None,
    peepholeWeight: Array | None = None,
    layout: str = "iofg",
    activations: Sequence[str] | None = None,
) -> list[Array]:
    """The hidden state and the cell state. All peepholes, that of the output gate too, see the cell's old state."""
    of_gate, of_cell, of_hidden = (_ACTIVATIONS[name] for name in activations or ("sigmoid", "tanh", "tanh"))
    w = _gates(weight, layout, "iofg")
    u = _gates(recurrentWeight, layout, "iofg")
    b = _gates(bias, layout, "iofg")
    c = _gates(recurrentBias, layout, "iofg")
    i, o, f, g = (input @ w[n].T + b[n] + hiddenState @ u[n].T + c[n] for n in range(4))
    pi, po, pf = _gates(peepholeWeight, "iof", "iof")
    i = of_gate(i + pi * cellState)
    o = of_gate(o + po * cellState)
    f = of_gate(f + pf * cellState)
    cell = f * cellState + i * of_cell(g)
    return [o * of_hidden(cell), cell]


def gru(
    input: Array,
    weight: Array,
    recurrentWeight: Array,
    steps: int,
    hiddenSize: int,
    *,
    initialHiddenState: Array | None = None,
    returnSequence: bool = False,
    direction: str = "forward",
    **options: Any,
) -> list[Array]:
    """The last hidden state of each direction, [directions, batch, hidden]; with the sequence, every step's too."""
    results = []
    for n, order in enumerate(_orders(direction, steps)):
        own = _of_direction(options, n)
        hidden = _state(initialHiddenState, n, input, hiddenSize)
        sequence: list[Array] = [hidden] * steps
        for step in order:
            hidden = gruCell.__wrapped__(  # type: ignore[attr-defined]
                _wide(input[step]), _wide(weight[n]), _wide(recurrentWeight[n]), hidden, hiddenSize, **own
            )
            sequence[step] = hidden
        results.append((hidden, np.stack(sequence)))
    return _outputs(input.dtype, results, returnSequence)


def lstm(
    input: Array,
    weight: Array,
    recurrentWeight: Array,
    steps: int,
    hiddenSize: int,
    *,
    initialHiddenState: Array | None = None,
    initialCellState: Array | None = None,
    returnSequence: bool = False,
    direction: str = "forward",
    **options: Any,
) -> list[Array]:
    """The last hidden and cell states, [directions, batch, hidden]; with the sequence, every step's hidden state."""
    results = []
    for n, order in enumerate(_orders(direction, steps)):
        own = _of_direction(options, n)
        hidden = _state(initialHiddenState, n, input, hiddenSize)
        cell = _state(initialCellState, n, input, hiddenSize)
        sequence: list[Array] = [hidden] * steps
        for step in order:
            hidden, cell = lstmCell.__wrapped__(  # type: ignore[attr-defined]
                _wide(input[step]),
                _wide(weight[n]),
                _wide(recurrentWeight[n]),
                hidden,
                cell,
                hiddenSize,
                **own,
            )
            sequence[step] = hidden
        results.append((hidden, cell, np.stack(sequence)))
    return _outputs(input.dtype, results, returnSequence)


def _orders(direction: str, steps: int) -> list[Sequence[int]]:
    forward, backward = range(steps), range(steps - 1, -1, -1)
    return {"forward": [forward], "backward": [backward], "both": [forward, backward]}[direction]  # type: ignore[list-item]


def _wide(array: Array) -> Array:
    return array.astype(np.float64)


def _of_direction(options: dict[str, Any], n: int) -> dict[str, Any]:
    """The options of a cell: of operands, the part of direction ``n``."""
    return {
        name: _wide(value[n]) if isinstance(value, np.ndarray) else value for name, value in options.items()
    }


def _state(initial: Array | None, n: int, input: Array, hiddenSize: int) -> Array:
    return np.zeros((input.shape[1], hiddenSize)) if initial is None else _wide(initial[n])


def _outputs(dtype: np.dtype[Any], results: list[tuple[Array, ...]], returnSequence: bool) -> list[Array]:
    *states, sequences = zip(*results, strict=True)
    outputs = [np.stack(state) for state in states]
    if returnSequence:
        outputs.append(np.stack(sequences, 1))
    return [output.astype(dtype) for output in outputs]
