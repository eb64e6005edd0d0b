"""Uses of operators: what the oracle gives for them, what our lowering gives, and how far the two may differ."""

from __future__ import annotations

import inspect
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from kserve_wasm.backends import Device, GraphSource, open_graph
from kserve_wasm.backends import Graph as OpenGraph
from kserve_wasm.tensors import DTYPES, Tensor
from kserve_wasm.tensors.dtypes import from_numpy_dtype
from kserve_wasm.webnn import Builder
from kserve_wasm.webnn.operator import OPERATORS
from kserve_wasm.webnn.program import SESSION
from tests.support.counts import count
from tests.webnn import oracle
from tests.webnn.oracle.precision import Array

DEVICE: Device = "gpu" if os.environ.get("KSERVE_WASM_TEST_DEVICE") == "gpu" else "cpu"
"""Where graphs run; ``KSERVE_WASM_TEST_DEVICE=gpu`` asks for the GPU."""

OPTIONS: dict[str, Any] = {"session": SESSION}
"""How the backend opens them: as those of guests, and in full precision, since it is the lowering that is compared."""
if DEVICE == "gpu":
    OPTIONS["provider_options"] = {"CUDAExecutionProvider": {"use_tf32": False}}

COMPARED: Counter[str] = Counter()
"""How many uses of each operator were compared with the oracle."""

MAX_BYTES = 1 << 24

CHOICES: dict[str, tuple[str, ...]] = {
    "mode pad": ("constant", "edge", "reflection"),
    "mode resample2d": ("nearest-neighbor", "linear"),
    "mode resample2dTo": ("nearest-neighbor", "linear"),
    "inputLayout": ("nchw", "nhwc"),
    "layout": ("nchw", "nhwc"),
    "layout gru": ("zrn", "rzn"),
    "layout gruCell": ("zrn", "rzn"),
    "layout lstm": ("iofg", "ifgo"),
    "layout lstmCell": ("iofg", "ifgo"),
    "filterLayout conv2d": ("oihw", "hwio", "ohwi", "ihwo"),
    "filterLayout convTranspose2d": ("iohw", "hwoi", "ohwi"),
    "direction": ("forward", "backward", "both"),
    "activations": ("default", "relu", "sigmoid", "tanh"),
    "outputShapeRounding": ("floor", "ceil"),
}
"""The enumerations in the specification's order, by attribute, or by attribute and operator; activations after 0, which
stands for none that is given."""

DTYPE_NUMBERS = {dtype.numpy.name: dtype.onnx for dtype in DTYPES.values()}

RENAMED = {"logicalNot": {"a": "input"}, "isNaN": {"a": "input"}, "isInfinite": {"a": "input"}}
"""Parameters that our operators call otherwise than the specification does."""

ABSENT: dict[str, float] = {"clamp minValue": -math.inf, "clamp maxValue": math.inf, "pad value": 0.0}
"""What stands for options that are not given, where it is no default of the specification's."""


@dataclass(frozen=True)
class Use:
    """One use of an operator.

    Attributes:
        operator: its name.
        arguments: the required ones as the specification orders them; operands are arrays, or uses that give them.
        options: the options by name; absent ones are not there.
        constants: positions of operands (counted as they are met, arguments before options) that are constants.
        open: dimensions that are declared open: of operands by position, axes.
        same: entries of a shape among the arguments that are given as an open dimension of that size.
    """

    operator: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    constants: frozenset[int] = frozenset()
    open: frozenset[tuple[int, int]] = frozenset()
    same: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        # NumPy's arithmetic makes plain numbers of arrays without dimensions.
        given = tuple(
            np.asarray(value) if isinstance(value, np.generic) else value for value in self.arguments
        )
        object.__setattr__(self, "arguments", given)

    def expected(self) -> list[Array]:
        """What the oracle gives."""
        given = oracle.OPERATORS[self.operator](*map(_evaluated, self.arguments), **self.options)
        return list(given) if isinstance(given, (list, tuple)) else [given]

    def operands(self) -> list[Array]:
        """The operands in the order in which ``constants`` and ``open`` count them."""

        def arrays(values: Iterable[Any]) -> Iterator[Array]:
            for value in values:
                if isinstance(value, np.ndarray):
                    yield value
                elif isinstance(value, (list, tuple)):
                    yield from arrays(value)

        return list(arrays(self.named().values()))

    def named(self) -> dict[str, Any]:
        """Every argument by the specification's name."""
        names = inspect.signature(oracle.OPERATORS[self.operator]).parameters
        return {**dict(zip(names, self.arguments, strict=False)), **self.options}


def _evaluated(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_evaluated, value))
    return value.expected()[0] if isinstance(value, Use) else value


class Graph:
    """A graph of several uses side by side, lowered and opened once.

    Raises:
        OperatorError: an operator does not take its arguments.
    """

    def __init__(self, uses: Sequence[Use]) -> None:
        self.uses = uses
        self._builder = Builder(MAX_BYTES)
        self.feeds: dict[str, Array] = {}
        outputs: list[tuple[str, int]] = []
        self._counts: list[int] = []
        for use in uses:
            made = self._add(use)
            self._counts.append(len(made))
            outputs += [(f"y{len(outputs) + n}", number) for n, number in enumerate(made)]
        if not self.feeds:  # a graph needs an input
            self._operand(np.zeros(1, np.float32))
        self._outputs = [name for name, _ in outputs]
        self.program = self._builder.build(outputs)

    @cached_property
    def opened(self) -> OpenGraph:
        source = GraphSource("uses", "onnx", data=self.program.model_bytes(), options=OPTIONS)
        return open_graph(source, DEVICE)

    def run(self) -> list[list[Array]]:
        """What the graph gives for the uses' own operands: for each use, its results."""
        given = iter(self.run_with(self.feeds))
        return [[next(given) for _ in range(number)] for number in self._counts]

    def run_with(self, feeds: Mapping[str, Array]) -> list[Array]:
        """What the graph gives for these inputs: the results of all uses in a row."""
        tensors = self.opened.run({name: Tensor.from_numpy(array) for name, array in feeds.items()})
        return [np.array(tensors[name].numpy()) for name in self._outputs]

    def _add(self, use: Use) -> tuple[int, ...]:
        values = use.named()
        position = 0

        def placed(value: Any) -> Any:
            nonlocal position
            if isinstance(value, (list, tuple)):
                return tuple(placed(item) for item in value)
            if isinstance(value, Use):
                return self._add(value)[0]
            if not isinstance(value, np.ndarray):
                return value
            axes = [axis for n, axis in use.open if n == position]
            number = self._operand(value, position in use.constants, axes)
            position += 1
            return number

        numbers = {name: placed(value) for name, value in values.items()}
        for param in OPERATORS[use.operator].params:
            if param.kind == "i32s":
                shape = numbers[param.name]
                numbers[param.name] = tuple(-size if n in use.same else size for n, size in enumerate(shape))
        return self._builder.add(use.operator, arguments(use.operator, numbers))

    def _operand(self, array: Array, constant: bool = False, open_axes: Sequence[int] = ()) -> int:
        dtype = from_numpy_dtype(array.dtype)
        assert dtype is not None
        array = np.array(array, order="C")
        if constant:
            return self._builder.constant(dtype, array.shape, array.tobytes())
        name = f"x{len(self.feeds)}"
        self.feeds[name] = array
        # Open dimensions of one size are one dimension.
        shape = [-size if axis in open_axes else size for axis, size in enumerate(array.shape)]
        return self._builder.input(name, dtype, shape)


def arguments(operator: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Arguments as our builder takes them: operands by number, enumerations by their order, absent ones by default."""
    renamed = RENAMED.get(operator, {})
    if operator == "split":
        splits = values["splits"]
        equal = isinstance(splits, int)
        values = {**values, "count": splits if equal else 0, "splits": None if equal else splits}
    if "resetAfter" in values:  # zero means the default in a structure: there, it is the opposite
        values = {**values, "resetBefore": not values["resetAfter"]}
        del values["resetAfter"]
    taken = {renamed.get(name, name): value for name, value in values.items()}
    result: list[Any] = []
    for param in OPERATORS[operator].params:
        if param.name in taken:
            result.append(_encoded(operator, param.name, taken.pop(param.name)))
        elif param.kind == "optional" or (param.kind == "u32" and param.default is None):
            result.append(0)
        else:
            result.append(ABSENT.get(f"{operator} {param.name}", param.default))
    assert not taken, f"{operator} has no parameters {sorted(taken)}"
    return tuple(result)


def _encoded(operator: str, name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_encoded(operator, name, item) for item in value)
    if name in ("type", "outputDataType"):
        return DTYPE_NUMBERS[value]
    if isinstance(value, str):
        choices = CHOICES.get(f"{name} {operator}") or CHOICES[name]
        return choices.index(value)
    return int(value) if isinstance(value, bool) else value


# --- How far a result may differ

FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
FLOAT16 = {"rtol": 2e-3, "atol": 1e-3}
"""Two units in the last place of a number with 11 bits."""


def compare(use: Use, got: list[Array]) -> None:
    """Asserts that our lowering gave what the oracle gives, and counts the use."""
    expected = use.expected()
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert_close(ours, theirs)
    COMPARED[use.operator] += 1
    count("uses of WebNN operators compared with the oracle")


def assert_close(ours: Array, theirs: Array) -> None:
    """Asserts that types and shapes are the same, and elements: of integers exactly, of floats as far as they may."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if theirs.dtype.kind != "f":
        np.testing.assert_array_equal(ours, theirs)
    else:
        tolerance = FLOAT16 if theirs.dtype == np.float16 else FLOAT32
        np.testing.assert_allclose(ours, theirs, **tolerance, equal_nan=True)


def check(uses: Sequence[Use]) -> None:
    """Lowers the uses as one graph, runs it, and compares every result."""
    if not uses:
        return
    for use, got in zip(uses, Graph(uses).run(), strict=True):
        compare(use, got)
