"""What guests pass through their memory is what the builder gets: both ways of every operator give the same graph."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_wasm.artifact.config import Limits
from kserve_wasm.guest.building import FAILED
from kserve_wasm.guest.operator_abi import MODULE, OWN_MODULE
from kserve_wasm.guest.state import InstanceState, invoke
from kserve_wasm.tensors import DType
from kserve_wasm.wasi_nn.built import BuiltGraphs
from kserve_wasm.wasi_nn.host_function import SUCCESS
from kserve_wasm.wasi_nn.registry import GraphRegistry
from kserve_wasm.webnn import Program
from kserve_wasm.webnn.operator import OPERATORS, Param
from tests.support.counts import count
from tests.wasi_nn.support import FUNCTIONS, Memory
from tests.webnn import uses
from tests.webnn.strategies import placed
from tests.webnn.test_operators import USES
from tests.webnn.uses import Graph, Use

C_TYPES = {"u32": "I", "i32": "i", "optional": "I", "u32[]": "I", "f64": "d", "f64[]": "d"}


def _scheduler(_program: Program) -> Any:
    return SimpleNamespace(graph=SimpleNamespace(inputs=(), outputs=()), close=lambda: None)


class GuestBuilder:
    """A builder that calls the host as a guest does, with records in its memory as the header lays them out."""

    def __init__(self, max_bytes: int) -> None:
        registry = GraphRegistry({}, None, BuiltGraphs(_scheduler))
        self.state = InstanceState(registry, Limits(tensor_bytes=max_bytes), {}, lambda *_: None)
        self.memory = self.state.memory = Memory(1 << 22)
        self._used = 64
        self._builder = self._call(MODULE, "createBuilder")

    def _put(self, data: bytes) -> int:
        address = (self._used + 7) & ~7
        self._used = address + len(data)
        self.memory.view(address, len(data))[:] = data
        return address

    def _numbers(self, letter: str, numbers: Sequence[Any]) -> tuple[int, int]:
        return self._put(struct.pack(f"<{len(numbers)}{letter}", *numbers)), len(numbers)

    def _call(self, module: str, name: str, *arguments: Any) -> int:
        function = FUNCTIONS[module, name]
        assert len(arguments) == len(function.params)
        return invoke(function, self.state, arguments)

    def _operand(self, handle: int) -> int:
        assert handle != FAILED, self.state.reason
        return handle

    def input(self, name: str, dtype: DType, shape: Sequence[int]) -> int:
        text = name.encode()
        given = (self._put(text), len(text), dtype.onnx, *self._numbers("q", shape))
        return self._operand(self._call(MODULE, "input", self._builder, *given))

    def constant(self, dtype: DType, shape: Sequence[int], data: bytes) -> int:
        given = (dtype.onnx, *self._numbers("q", shape), self._put(data), len(data))
        return self._operand(self._call(MODULE, "constant", self._builder, *given))

    def add(self, name: str, arguments: tuple[Any, ...]) -> tuple[int, ...]:
        operator = OPERATORS[name]
        passed: list[Any] = []
        options: list[tuple[Param, Any]] = []
        for param, value in zip(operator.params, arguments, strict=True):
            if param.in_options:
                options.append((param, value))
            elif param.kind in ("operands", "u32s", "i32s"):
                passed += self._numbers("i" if param.kind == "i32s" else "I", value)
            elif param.kind == "u32s?":
                passed += (0, 0) if value is None else self._numbers("I", value)
            elif param.kind == "i32":
                passed.append(value & 0xFFFFFFFF)
            else:
                passed.append(float(value) if param.kind == "f64" else value)
        if options:
            fields = b"".join(_field(param, value) for param, value in options)
            # All zero is what no address stands for as well.
            passed.append(self._put(fields) if fields.strip(b"\0") else 0)
        module = OWN_MODULE if operator.own else MODULE
        if not operator.multiple:
            return (self._operand(self._call(module, name, *passed)),)
        results = self._put(bytes(4096))
        errno = self._call(module, name, *passed, results)
        assert errno == SUCCESS, self.state.reason
        words = struct.unpack("<1024I", self.memory.view(results, 4096))
        return tuple(words[: words.index(0)])

    def build(self, outputs: Sequence[tuple[str, int]]) -> Program:
        records = b""
        for name, handle in outputs:
            text = name.encode()
            records += struct.pack("<III", self._put(text), len(text), handle)
        out = self._put(bytes(4))
        errno = self._call(MODULE, "build", self._builder, self._put(records), len(outputs), out)
        assert errno == SUCCESS, self.state.reason
        built = self.state.graphs[self.memory.read_u32(out)].built
        assert built is not None
        return built.program


def _field(param: Param, value: Any) -> bytes:
    numbers = value if param.length else (value,)
    if numbers is None or numbers == (None,):
        numbers = (0,) * (param.length or 1)
    return struct.pack(f"<{len(numbers)}{C_TYPES[param.kind]}", *numbers)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_a_guests_call_is_the_builders(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @settings(max_examples=6, derandomize=True)
    @given(st.lists(placed(USES[name]), min_size=1, max_size=3))
    def same(used: list[Use]) -> None:
        with monkeypatch.context() as patch:
            expected = Graph(used).program.model_bytes()
            patch.setattr(uses, "Builder", GuestBuilder)
            assert Graph(used).program.model_bytes() == expected
        count("uses of operators through a guest's memory", len(used))

    same()
