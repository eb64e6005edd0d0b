"""The ONNX graph that a program becomes. Imports ``onnx``, which takes longer than opening a graph does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from kserve_wasm.tensors import DType, Tensor
from kserve_wasm.tensors.dtypes import BOOL, INT64, from_numpy_dtype
from kserve_wasm.webnn.operand import Dim, Operand, OperatorError

OPSET = 20
"""The newest for which ONNX Runtime's CUDA provider has all the kernels that are used here."""
_IR_VERSION = 10

MAX_VALUES = 1 << 13
"""Values inside a graph: ONNX Runtime takes seconds to open one with so many, in which no deadline is seen."""
MAX_CONSTANTS = 256 << 20
"""Bytes of constants that a graph may have besides its program's own, and copies of those."""

INTERNAL = "#"
"""How names of values inside the graph begin; none of a guest's may."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the ONNX graph.

    Attributes:
        name: its name there.
        operand: element type and shape.
        array: its elements, where it is a constant.
    """

    name: str
    operand: Operand
    array: npt.NDArray[Any] | None = None

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.operand.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The dimensions, negative where open."""
        return self.operand.shape

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.operand.shape)


class Emitter:
    """Collects nodes and constants. Operators describe with it what computes them.

    Args:
        inputs: the graph's.
        constant_bytes: what the program's own constants take.

    Attributes:
        label: the operator that is being lowered, for what ONNX Runtime says when one of its nodes fails.
        results: what the operator is known to give.
        casts: for values that ``cast`` made, what they were made of.
        windows: for values of which a window can be had without the rest: the axes of such windows, and what gives one
            by where it starts (int64 [1]) and its size along each.
    """

    def __init__(self, inputs: Sequence[Value] = (), constant_bytes: int = 0) -> None:
        self._inputs = inputs
        self._room = 2 * constant_bytes + MAX_CONSTANTS
        self.label = ""
        self.results: tuple[Operand, ...] = ()
        self.casts: dict[str, Value] = {}
        self.windows: dict[str, tuple[Sequence[int], Callable[[Mapping[int, tuple[Value, Dim]]], Value]]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        if self._count > MAX_VALUES:
            raise OperatorError(f"build: the graph is lowered to more than {MAX_VALUES} values: split it")
        return f"{INTERNAL}{self._count}"

    def node(
        self,
        op_type: str,
        *inputs: Value | npt.NDArray[Any] | None,
        result: Operand | None = None,
        **attributes: Any,
    ) -> Value:
        """Adds a node with one output.

        Args:
            op_type: ONNX's operator.
            inputs: its inputs; arrays become constants, None an input that is left out.
            result: type and shape of the output; those of the operator's own first result where it is not given.
            attributes: ONNX's attributes; those that are None are left out.
        """
        operand = self.results[0] if result is None else result
        return self.nodes(op_type, *inputs, results=(operand,), **attributes)[0]

    def nodes(
        self,
        op_type: str,
        *inputs: Value | npt.NDArray[Any] | None,
        results: Sequence[Operand | None],
        **attributes: Any,
    ) -> list[Value]:
        """As :meth:`node`, with several outputs; None stands for one that nobody needs."""
        names = ["" if result is None else self._name() for result in results]
        given = ["" if value is None else self.value(value).name for value in inputs]
        while given and not given[-1]:  # ONNX Runtime's inference of LayerNormalization would read past it
            given.pop()
        kept = {key: value for key, value in attributes.items() if value is not None}
        self._nodes.append(
            helper.make_node(op_type, given, names, name=f"{self.label} {self._count}", **kept)
        )
        return [
            Value(name, result) for name, result in zip(names, results, strict=True) if result is not None
        ]

    def scan(
        self,
        body: Callable[[Emitter, list[Value]], tuple[Sequence[Value], Sequence[Value]]],
        states: Sequence[Value],
        sequence: Value,
        results: Sequence[Operand],
        *,
        backward: bool,
    ) -> list[Value]:
        """Adds ONNX's Scan, which runs nodes for each entry of a sequence along its first dimension.

        Args:
            body: adds those nodes to the emitter that it is given, where the values there are here can be used too.
                It is given the states and an entry, and gives the states that follow and entries of outputs.
            states: those before the first entry.
            sequence: the entries.
            results: of the last states, and of the outputs.
            backward: whether the last entry is first; its outputs' entries are then last.
        """
        inner = copy.copy(self)
        inner._nodes = []
        entry = Operand(sequence.dtype, sequence.shape[1:])
        given = [Value(inner._name(), operand) for operand in (*(state.operand for state in states), entry)]
        following, entries = body(inner, given)
        made = [inner.node("Identity", value, result=value.operand) for value in (*following, *entries)]
        self._count, self._room = inner._count, inner._room
        graph = helper.make_graph(
            inner._nodes,
            "entry",
            [_info(value.name, value.operand, {}) for value in given],
            [_info(value.name, value.operand, {}) for value in made],
        )
        direction = int(backward)
        return self.nodes(
            "Scan",
            *states,
            sequence,
            results=results,
            body=graph,
            num_scan_inputs=1,
            scan_input_directions=[direction],
            scan_output_directions=[direction] * len(entries),
        )

    def value(self, value: Value | npt.NDArray[Any]) -> Value:
        """``value``, made a constant of the graph where it is an array."""
        return value if isinstance(value, Value) else self.constant(value)

    def constant(self, array: npt.NDArray[Any]) -> Value:
        """A constant."""
        dtype = from_numpy_dtype(array.dtype)
        assert dtype is not None
        name = self._name()
        self._room -= array.nbytes
        if self._room < 0:
            raise OperatorError(
                "build: what operators add to the graph's constants is more than those, and 256 MiB"
            )
        tensor = Tensor.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
        self._initializers.append(
            helper.make_tensor(name, dtype.onnx, array.shape, bytes(tensor.buffer()), raw=True)
        )
        return Value(name, Operand(dtype, array.shape), array)

    # --- What many operators need

    def cast(self, value: Value, dtype: DType) -> Value:
        """``value`` as elements of another type, as ONNX's Cast does it; itself where it has the type."""
        if value.dtype is dtype:
            return value
        return self.node("Cast", value, result=Operand(dtype, value.shape), to=dtype.onnx)

    def boolean(self, value: Value) -> Value:
        """Of uint8: whether each element is not 0, as ONNX's BOOL."""
        return self.cast(value, BOOL)

    def pad(self, value: Value, pads: npt.NDArray[np.int64], fill: npt.NDArray[Any]) -> Value:
        """``value`` with ``fill`` around it: elements before each dimension, then elements after each."""
        # With axes it stays a node. Without, ONNX Runtime fuses it into a pooling that follows, which then takes zeros
        # for no elements, and refuses padding that is as large as its window.
        return self.node("Pad", value, pads, fill, np.arange(value.rank, dtype=np.int64))

    def reshape(self, value: Value, shape: Sequence[Dim], *sources: Value) -> Value:
        """``value`` with another shape.

        Its open dimensions are some of ``value``'s, of ``sources``' or of the inputs'; one may be none of them, and
        follows from the others.
        """
        target = Operand(value.dtype, tuple(shape))
        if target.shape == value.shape:
            return value
        vector: Value | npt.NDArray[np.int64]
        opened = [dim for dim in shape if dim < 0]
        if len(opened) == 1 and opened == [dim for dim in value.shape if dim < 0]:
            vector = np.array(shape, np.int64).clip(min=-1)
        else:
            vector = self.shape_vector(shape, value, *sources)
        # A size of 0 is meant as that; without allowzero it stands for the one that ``value`` has there.
        return self.node("Reshape", value, vector, result=target, allowzero=1)

    def shape_vector(self, shape: Sequence[Dim], *sources: Value) -> Value | npt.NDArray[np.int64]:
        """``shape`` as an int64 vector; the sizes of its open dimensions are those that ``sources`` or the inputs have.

        An open dimension that none of them has is -1 in the vector.
        """
        parts: list[Value] = []
        fixed: list[int] = []
        for dim in shape:
            found = None if dim >= 0 else self._found(dim, sources)
            if found is None:
                fixed.append(max(dim, -1))
                continue
            if fixed:
                parts.append(self.constant(np.array(fixed, np.int64)))
                fixed = []
            parts.append(self._size(*found))
        if not parts:
            return np.array(shape, np.int64).clip(min=-1)
        if fixed:
            parts.append(self.constant(np.array(fixed, np.int64)))
        if len(parts) == 1:
            return parts[0]
        return self.node("Concat", *parts, result=Operand(INT64, (len(shape),)), axis=0)

    def size(self, dim: Dim, *sources: Value) -> Value:
        """The size of a dimension as an int64 vector of one element; if open, one that a source or an input has."""
        if dim >= 0:
            return self.constant(np.array([dim], np.int64))
        found = self._found(dim, sources)
        assert found is not None
        return self._size(*found)

    def _found(self, dim: Dim, sources: Sequence[Value]) -> tuple[Value, int] | None:
        return next(((s, s.shape.index(dim)) for s in (*sources, *self._inputs) if dim in s.shape), None)

    def _size(self, source: Value, axis: int) -> Value:
        return self.node("Shape", source, result=Operand(INT64, (1,)), start=axis, end=axis + 1)

    # --- The whole

    def model(
        self, inputs: Mapping[str, Operand], outputs: Mapping[str, Value], symbols: Mapping[Dim, str]
    ) -> bytes:
        """The serialized ModelProto.

        Args:
            inputs: by name.
            outputs: by name; values that other operators gave, inputs or constants.
            symbols: names of open dimensions.
        """
        for name, value in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value.name], [name]))
        # What nothing needs would be computed all the same: ONNX Runtime runs every node there is.
        nodes: list[onnx.NodeProto] = []
        used = set(outputs)
        for node in reversed(self._nodes):
            if used.intersection(node.output):
                used.update(node.input)
                used.update(name for own in node.attribute for inner in own.g.node for name in inner.input)
                nodes.append(node)
        graph = helper.make_graph(
            nodes[::-1],
            "webnn",
            [_info(name, operand, symbols) for name, operand in inputs.items()],
            [_info(name, value.operand, symbols) for name, value in outputs.items()],
            [constant for constant in self._initializers if constant.name in used],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION
        )
        serialized: bytes = model.SerializeToString()
        return serialized


def _info(name: str, operand: Operand, symbols: Mapping[Dim, str]) -> onnx.ValueInfoProto:
    shape = [dim if dim >= 0 else symbols.get(dim, f"open{-dim}") for dim in operand.shape]
    return helper.make_tensor_value_info(name, operand.dtype.onnx, shape)
