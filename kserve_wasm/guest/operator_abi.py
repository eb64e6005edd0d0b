"""The modules ``kserve_wasm_ml`` and ``kserve_wasm_mlx``: the host's side of ``kserve_wasm_ml.h``.

Each operator is one import, made from its table of parameters. An operator that fails gives :data:`FAILED` instead of a
handle, so that guests can write expressions; what is built on that fails as well, and ``build`` tells the first reason.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from typing import Any

from kserve_wasm.errors import GuestError, WasmServingError
from kserve_wasm.guest.building import FAILED, Building, FailedOperand, UnknownOperand
from kserve_wasm.guest.state import NO_REQUEST, InstanceState
from kserve_wasm.tensors.dtypes import BY_ONNX
from kserve_wasm.wasi_nn.built import MAX_NAMED
from kserve_wasm.wasi_nn.contexts import OpenGraph
from kserve_wasm.wasi_nn.host_function import (
    INVALID_ARGUMENT,
    SUCCESS,
    TOO_LARGE,
    UNSUPPORTED_OPERATION,
    HostFunction,
    MemoryFault,
)
from kserve_wasm.wasi_nn.state import MAX_REASON
from kserve_wasm.webnn import Builder, Operand, OperatorError
from kserve_wasm.webnn.operator import OPERATORS, Operator, Param

logger = logging.getLogger(__name__)

MODULE = "kserve_wasm_ml"
OWN_MODULE = "kserve_wasm_mlx"
"""Operators that WebNN does not have."""

MAX_LIST = 4096
"""Numbers or operands in a list."""
MAX_BUILDERS = 16
"""Graphs that a guest has in the making at once."""
MAX_GRAPHS = 64
"""Graphs that a guest has built and open at once."""
_MAX_RANK = 64  # what is read; the builder allows less

_OUTPUT = struct.Struct("<III")  # ml_output: name, its length, operand
_LETTERS = {
    "operand": "i",
    "optional": "i",
    "operands": "ii",
    "u32": "i",
    "i32": "i",
    "f64": "F",
    "u32s": "ii",
    "u32s?": "ii",
    "i32s": "ii",
}


# --- Reading arguments


Read = Callable[[InstanceState, "_Operands", Sequence[Any]], Any]


class _Operands:
    """Reads operands of one call, which all have to be of one graph."""

    __slots__ = ("_find", "builder")

    def __init__(self, building: Building, builder: Builder | None = None) -> None:
        self._find = building.find
        self.builder = builder

    def number(self, handle: int, name: str) -> int:
        """The operand's number in its graph. Raises UnknownOperand."""
        builder, number = self._find(handle, name)
        if self.builder is not builder:
            if self.builder is not None:
                raise UnknownOperand(f"{name}: operand {handle} belongs to another graph")
            self.builder = builder
        return number


def _numbers(state: InstanceState, address: int, count: int, letter: str, name: str) -> tuple[Any, ...]:
    if count > MAX_LIST:
        raise UnknownOperand(f"{name} may have {MAX_LIST} entries, got {count}")
    return struct.unpack(f"<{count}{letter}", state.memory.view(address, 4 * count))


def _reader(param: Param, at: int) -> Read:
    """Reads a parameter whose first argument is the call's ``at``-th."""
    name, kind = param.name, param.kind
    if kind == "operand":
        return lambda _state, operands, args: operands.number(args[at], name)
    if kind == "optional":
        return lambda _state, operands, args: operands.number(args[at], name) if args[at] else 0
    if kind == "operands":
        return lambda state, operands, args: tuple(
            [operands.number(h, name) for h in _numbers(state, args[at], args[at + 1], "I", name)]
        )
    if kind == "i32":
        return lambda _state, _operands, args: args[at] - (args[at] >> 31 << 32)
    if kind == "u32s?":
        return lambda state, _operands, args: (
            _numbers(state, args[at], args[at + 1], "I", name) if args[at] else None
        )
    if kind in ("u32s", "i32s"):
        letter = "i" if kind == "i32s" else "I"
        return lambda state, _operands, args: _numbers(state, args[at], args[at + 1], letter, name)
    return lambda _state, _operands, args: args[at]


_FIELDS = {"u32": "I", "i32": "i", "optional": "I", "u32[]": "I", "f64": "d", "f64[]": "d"}


def options_layout(params: Sequence[Param]) -> struct.Struct:
    """The layout of an operator's structure of options in the guest's memory: doubles come first, as C aligns them."""
    fields = [(_FIELDS[param.kind], param.length or 1) for param in params]
    assert fields == sorted(fields, key=lambda field: field[0] != "d"), "doubles must come first"
    return struct.Struct("<" + "".join(f"{length}{letter}" for letter, length in fields))


def _options_reader(params: Sequence[Param], at: int) -> Callable[..., list[Any]]:
    layout = options_layout(params)
    zeros = bytes(layout.size)

    def read(state: InstanceState, operands: _Operands, args: Sequence[Any]) -> list[Any]:
        fields = layout.unpack(state.memory.view(args[at], layout.size) if args[at] else zeros)
        values: list[Any] = []
        start = 0
        for param in params:
            if param.length:
                value: Any = fields[start : start + param.length]
                start += param.length
                if not any(value):
                    value = param.default
                elif param.default is not None:
                    value = tuple(v or d for v, d in zip(value, param.default, strict=True))
            else:
                value = fields[start]
                start += 1
                if param.kind == "optional":
                    value = operands.number(value, param.name) if value else 0
                elif not value and param.default is not None:
                    value = param.default
            values.append(value)
        return values

    return read


# --- Operators


def _host_function(operator: Operator) -> HostFunction:
    plain = [param for param in operator.params if not param.in_options]
    options = [param for param in operator.params if param.in_options]
    assert [*plain, *options] == list(operator.params), f"{operator.name}: options come last"
    letters = ""
    readers: list[Read] = []
    for param in plain:
        readers.append(_reader(param, len(letters)))
        letters += _LETTERS[param.kind]
    read_options = None
    if options:
        read_options = _options_reader(options, len(letters))
        letters += "i"
    outputs_at = len(letters)
    name, multiple = operator.name, operator.multiple
    failed = INVALID_ARGUMENT if multiple else FAILED

    def call(state: InstanceState, *args: Any) -> int:
        operands = _Operands(state.building)
        try:
            arguments = [read(state, operands, args) for read in readers]
            if read_options is not None:
                arguments += read_options(state, operands, args)
            builder = operands.builder
            if builder is None:
                raise OperatorError(f"{name} needs an operand")
            results = builder.add(name, tuple(arguments))
            if not multiple:
                return _keep(state, builder, results[0])
            view = state.memory.view(args[outputs_at], 4 * len(results))
            handles = [_keep(state, builder, number) for number in results]
            struct.pack_into(f"<{len(handles)}I", view, 0, *handles)
            return SUCCESS
        except FailedOperand as error:
            if operands.builder is None:
                return failed  # whose reason is kept already
            return _failed(state, f"{name}: {error}: {state.building.failure}", failed, operands.builder)
        except (OperatorError, UnknownOperand, MemoryFault, WasmServingError) as error:
            text = str(error) if isinstance(error, OperatorError) else f"{name}: {error}"
            return _failed(state, text, failed, operands.builder)
        except Exception:
            logger.exception("operator %s failed", name)
            return _failed(state, f"{name}: internal error", failed, operands.builder)

    params = letters + "i" * multiple
    return HostFunction(OWN_MODULE if operator.own else MODULE, name, params, call)


def _keep(state: InstanceState, builder: Builder, number: int) -> int:
    return state.building.keep(state.next_handle(), builder, number)


def _failed(state: InstanceState, reason: str, result: int, builder: Builder | None = None) -> int:
    """Keeps the first reason for the builder's ``build`` to tell."""
    if builder is None:
        state.building.failure = reason[:MAX_REASON]
    else:
        state.building.failures.setdefault(builder, reason[:MAX_REASON])
    state.fail(INVALID_ARGUMENT, reason)
    return result


# --- Building


def _create_builder(state: InstanceState) -> int:
    building = state.building
    if state.registry.built is None or len(building.builders) >= MAX_BUILDERS:
        return _failed(state, f"a guest may have {MAX_BUILDERS} graphs in the making", FAILED)
    handle = state.next_handle()
    building.builders[handle] = Builder(state.limits.tensor_bytes, state.registry.built.recordings)
    return handle


def _input(
    state: InstanceState, builder: int, name: int, length: int, dtype: int, dims: int, n_dims: int
) -> int:
    def add(found: Builder) -> int:
        text = state.name(name, length)
        if text is None:
            raise OperatorError(f"input: {state.reason}")
        return found.input(text, _dtype("input", dtype), _dims(state, dims, n_dims))

    return _add(state, builder, add)


def _constant(
    state: InstanceState, builder: int, dtype: int, dims: int, n_dims: int, data: int, length: int
) -> int:
    def add(found: Builder) -> int:
        if not state.has_room(length):
            raise OperatorError(f"constant: {state.reason}")
        number = found.constant(
            _dtype("constant", dtype), _dims(state, dims, n_dims), bytes(state.memory.view(data, length))
        )
        state.tensor_bytes += length
        state.building.add_constant(found, length)
        return number

    return _add(state, builder, add)


def _add(state: InstanceState, handle: int, add: Callable[[Builder], int]) -> int:
    builder = state.building.builders.get(handle)
    if builder is None:
        return _failed(state, _no_builder(state, handle), FAILED)
    try:
        return _keep(state, builder, add(builder))
    except (OperatorError, MemoryFault) as error:
        return _failed(state, str(error), FAILED, builder)


def _no_builder(state: InstanceState, handle: int) -> str:
    if handle == FAILED and state.building.failure:
        return f"there is no graph in the making: {state.building.failure}"
    return f"{handle} is not the handle of a graph in the making; ml_build ends one"


def _dtype(what: str, number: int) -> Any:
    dtype = BY_ONNX.get(number)
    if dtype is None:
        raise OperatorError(f"{what}: {number} is no element type: see the KW_* numbers in kserve_wasm.h")
    return dtype


def _dims(state: InstanceState, address: int, count: int) -> tuple[int, ...]:
    if count > _MAX_RANK:
        raise OperatorError(f"a shape has at most {_MAX_RANK} dimensions, got {count}")
    return struct.unpack(f"<{count}q", state.memory.view(address, 8 * count))


def _operand(state: InstanceState, handle: int) -> Operand | None:
    try:
        builder, number = state.building.find(handle, "operand")
    except UnknownOperand as error:
        state.fail(INVALID_ARGUMENT, str(error))
        return None
    return builder.operand(number)


def _operand_rank(state: InstanceState, handle: int) -> int:
    operand = _operand(state, handle)
    return FAILED if operand is None else operand.rank


def _operand_dtype(state: InstanceState, handle: int) -> int:
    operand = _operand(state, handle)
    return FAILED if operand is None else operand.dtype.onnx


def _operand_shape(state: InstanceState, handle: int, dims: int, capacity: int) -> int:
    operand = _operand(state, handle)
    if operand is None:
        return INVALID_ARGUMENT
    shape = operand.shape
    if capacity < len(shape):
        return state.fail(
            TOO_LARGE, f"the operand has {len(shape)} dimensions, and the guest's array {capacity}"
        )
    struct.pack_into(f"<{len(shape)}q", state.memory.view(dims, 8 * len(shape)), 0, *shape)
    return SUCCESS


def _build(state: InstanceState, builder: int, outputs: int, n_outputs: int, graph_out: int) -> int:
    building = state.building
    found = building.builders.pop(builder, None)
    if found is None:
        return state.fail(INVALID_ARGUMENT, _no_builder(state, builder))
    failure = building.failures.get(found)
    built = state.registry.built
    if built is None:
        return state.fail(UNSUPPORTED_OPERATION, "this host builds no graphs")
    try:
        if failure is not None:
            raise OperatorError(failure)
        program = found.build(_outputs(state, found, outputs, n_outputs))
    except FailedOperand as error:
        return _refused(state, OperatorError(f"{error}: {building.failure}"))
    except (OperatorError, UnknownOperand) as error:
        return _refused(state, error)
    finally:
        state.tensor_bytes -= building.end(found)
    if sum(graph.built is not None for graph in state.graphs.values()) >= MAX_GRAPHS:
        return state.fail(TOO_LARGE, f"a guest may have {MAX_GRAPHS} built graphs open; unload some")
    state.check_deadline()
    handle = state.new_handle(graph_out)
    if not handle:
        return TOO_LARGE
    try:
        graph, scheduler = built.use(program)
    except OperatorError as error:
        return _refused(state, error)
    held = program.constant_bytes
    state.graphs[handle] = OpenGraph(scheduler, built=graph, release=built.release, held=held)
    state.tensor_bytes += held
    return SUCCESS


def _refused(state: InstanceState, error: Exception) -> int:
    """The guest's mistake, unless it says otherwise: it has seen what the client sent."""
    errno = state.fail(INVALID_ARGUMENT, str(error))
    state.cause = GuestError(state.reason)
    return errno


def _keep_graph(state: InstanceState, graph: int, name: int, length: int) -> int:
    if state.request is not NO_REQUEST:
        # What one client sends must not decide what others' requests find under a name.
        return state.fail(UNSUPPORTED_OPERATION, "graphs are kept in 'load' alone")
    opened = state.graphs.get(graph)
    if opened is None:
        return state.no_graph(graph)
    asked = state.name(name, length)
    if asked is None:
        return INVALID_ARGUMENT
    built = state.registry.built
    if built is None or opened.built is None:
        return state.fail(INVALID_ARGUMENT, f"graph {graph} was not built of operators: only such are kept")
    if state.registry.get(asked) is not None:
        return state.fail(
            INVALID_ARGUMENT, f"the model has a graph '{asked}': keep this one under another name"
        )
    if not built.keep(asked, opened.built):
        return state.fail(TOO_LARGE, f"a model keeps {MAX_NAMED} graphs under names")
    return SUCCESS


def _outputs(state: InstanceState, builder: Builder, address: int, count: int) -> list[tuple[str, int]]:
    if count > MAX_LIST:
        raise OperatorError(f"build: a graph may have {MAX_LIST} outputs, got {count}")
    operands = _Operands(state.building, builder)
    given = []
    records = bytes(state.memory.view(address, count * _OUTPUT.size))
    for name, length, handle in _OUTPUT.iter_unpack(records):
        text = state.name(name, length)
        if text is None:
            raise OperatorError(f"build: {state.reason}")
        given.append((text, operands.number(handle, f"build: output '{text}'")))
    return given


FUNCTIONS = (
    HostFunction(MODULE, "createBuilder", "", _create_builder),
    HostFunction(MODULE, "input", "iiiiii", _input),
    HostFunction(MODULE, "constant", "iiiiii", _constant),
    HostFunction(MODULE, "operandRank", "i", _operand_rank),
    HostFunction(MODULE, "operandDataType", "i", _operand_dtype),
    HostFunction(MODULE, "operandShape", "iii", _operand_shape),
    HostFunction(MODULE, "build", "iiii", _build),
    HostFunction(OWN_MODULE, "keep", "iii", _keep_graph),
    *(_host_function(operator) for operator in OPERATORS.values()),
)
