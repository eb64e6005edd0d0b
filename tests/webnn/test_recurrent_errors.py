"""Operands and attributes that recurrent networks do not take."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_wasm.tensors.dtypes import FP32
from kserve_wasm.webnn import Builder, OperatorError
from kserve_wasm.webnn.operator import OPERATORS
from tests.webnn.refusals import refusal

HIDDEN, INPUTS, BATCH, STEPS = 2, 3, 4, 5


def shapes(operator: str) -> dict[str, tuple[int, ...]]:
    gates = 4 if operator.startswith("lstm") else 3
    leading: tuple[int, ...] = () if operator.endswith("Cell") else (1,)
    state = (*leading, BATCH, HIDDEN)
    return {
        "input": (BATCH, INPUTS) if operator.endswith("Cell") else (STEPS, BATCH, INPUTS),
        "weight": (*leading, gates * HIDDEN, INPUTS),
        "recurrentWeight": (*leading, gates * HIDDEN, HIDDEN),
        "bias": (*leading, gates * HIDDEN),
        "recurrentBias": (*leading, gates * HIDDEN),
        "peepholeWeight": (*leading, 3 * HIDDEN),
        **dict.fromkeys(("hiddenState", "cellState", "initialHiddenState", "initialCellState"), state),
    }


def problem_of(
    operator: str, wrong: dict[str, tuple[int, ...]], given: dict[str, Any], dtypes: dict[str, str]
) -> str:
    """What it says of operands with other shapes and types than it takes, and of other attributes."""
    known, operands, arguments = shapes(operator), [], []
    numbers = {"steps": STEPS, "hiddenSize": HIDDEN, **given}
    for param in OPERATORS[operator].params:
        if param.name in known:
            operands.append((dtypes.get(param.name, "FP32"), wrong.get(param.name, known[param.name])))
            arguments.append(len(operands))
        else:
            arguments.append(numbers.get(param.name, param.default))
    return refusal(operator, operands, tuple(arguments))


ALL = ("gru", "gruCell", "lstm", "lstmCell")


@pytest.mark.parametrize(
    ("operator", "name"), [(o, p.name) for o in ALL for p in OPERATORS[o].params if p.name in shapes(o)]
)
def test_every_operand_has_its_shape_and_its_type(operator: str, name: str) -> None:
    if name == "input":
        assert "dimensions, got 1" in problem_of(operator, {name: (BATCH,)}, {}, {})
        assert "input must be one of FP16, FP32, got INT8" in problem_of(operator, {}, {}, {name: "INT8"})
    else:
        right = shapes(operator)[name]
        wrong = (*right[:-1], right[-1] + 1)
        expected = f"{name} must have shape {list(right)}, got {list(wrong)}"
        assert expected in problem_of(operator, {name: wrong}, {}, {})
        assert "must have the same data type" in problem_of(operator, {}, {}, {name: "FP16"})


@pytest.mark.parametrize("operator", ALL)
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"hiddenSize": 0}, "hiddenSize must be from 1 to"),
        ({"hiddenSize": (1 << 32) - 1}, "hiddenSize must be from 1 to"),
        ({"hiddenSize": 3}, "weight must have shape"),
        ({"layout": 2}, "layout must be one of 0 "),
        ({"activations": (0, 4, 0)}, "activations must be 0 default, 1 relu, 2 sigmoid or 3 tanh"),
    ],
)
def test_attributes_of_all_are_checked(operator: str, given: dict[str, Any], problem: str) -> None:
    if "activations" in given and operator.startswith("gru"):
        given = {"activations": given["activations"][:2]}
    assert problem in problem_of(operator, {}, given, {})


@pytest.mark.parametrize("operator", ["gru", "lstm"])
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"steps": 0}, "steps must be the first size of the input and at least 1, got 0"),
        ({"steps": 6}, "steps must be the first size of the input and at least 1, got 6"),
        ({"direction": 3}, "direction must be one of 0 forward, 1 backward, 2 both; got 3"),
        ({"direction": 2}, "weight must have shape [2, "),
    ],
)
def test_attributes_of_networks_are_checked(operator: str, given: dict[str, Any], problem: str) -> None:
    assert problem in problem_of(operator, {}, given, {})


def test_a_network_cannot_hold_more_than_a_kernel_may_allocate() -> None:
    steps, hidden = 1 << 20, 1 << 7
    operands = [
        ("FP32", (steps, 1, 1)),
        ("FP32", (1, 4 * hidden, 1)),
        ("FP32", (1, 4 * hidden, hidden)),
    ]
    rest = (steps, hidden, 0, 0, 0, 0, 0, 0, 0, 0, (0, 0, 0))
    expected = f"it takes {steps * 4 * hidden} intermediate elements, and an operator may take {1 << 28}"
    assert expected in refusal("lstm", operands, (1, 2, 3, *rest))


@pytest.mark.parametrize("operator", ["gru", "lstm"])
def test_a_batch_is_not_empty(operator: str) -> None:
    """ONNX Runtime's kernels would end the process."""
    known, builder, arguments = shapes(operator), Builder(1 << 20), []
    for param in OPERATORS[operator].params:
        if param.name in known and param.kind == "operand":
            shape = known[param.name]
            arguments.append(
                builder.input(param.name, FP32, (STEPS, -1, INPUTS) if param.name == "input" else shape)
            )
        else:
            numbers = {"steps": STEPS, "hiddenSize": HIDDEN}
            arguments.append(numbers.get(param.name, param.default or 0))
    program = builder.build([("y", builder.add(operator, tuple(arguments))[0])])
    weights = known["weight"], known["recurrentWeight"]
    program.check(((STEPS, BATCH, INPUTS), *weights))
    with pytest.raises(OperatorError, match=rf"^{operator}: input must not be empty"):
        program.check(((STEPS, 0, INPUTS), *weights))
