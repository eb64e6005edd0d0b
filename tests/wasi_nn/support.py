"""A guest without an engine: memory, records as C lays them out, and host calls under the policy of the real ones."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from kserve_wasm.artifact.config import Limits
from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.batching import DirectScheduler
from kserve_wasm.guest.host_functions import HOST_FUNCTIONS
from kserve_wasm.guest.state import InstanceState, invoke
from kserve_wasm.tensors import DTYPES, Tensor
from kserve_wasm.wasi_nn.host_function import MemoryFault
from kserve_wasm.wasi_nn.registry import GraphOpener, GraphRegistry

FUNCTIONS = {(f.module, f.name): f for f in HOST_FUNCTIONS}
TODAY = {"FP16": 0, "FP32": 1, "FP64": 2, "UINT8": 3, "INT32": 4, "INT64": 5}
FORMER = {"FP16": 0, "FP32": 1, "UINT8": 2, "INT32": 3}
WIT_ORDER = {"FP16": 0, "FP32": 1, "FP64": 2, "BF16": 3, "UINT8": 4, "INT32": 5, "INT64": 6}
NOWHERE = 0xFFFFFFF0
"""An address outside every memory here."""


class Memory:
    """Implements GuestMemory over a bytearray."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def view(self, address: int, length: int) -> memoryview:
        assert address >= 0
        assert length >= 0
        if address + length > len(self.data):
            raise MemoryFault(f"{address} + {length} is outside {len(self.data)} bytes")
        return memoryview(self.data)[address : address + length]

    def read_u32(self, address: int) -> int:
        return int.from_bytes(self.view(address, 4), "little")

    def write_u32(self, address: int, value: int) -> None:
        self.view(address, 4)[:] = value.to_bytes(4, "little")


class Guest:
    """What a guest's own code would do: lay out records and call imports."""

    def __init__(
        self,
        graphs: Mapping[str, onnx.ModelProto] | None = None,
        *,
        limits: Limits | None = None,
        opener: GraphOpener | None = None,
        parameters: Mapping[str, str] | None = None,
        memory: int = 1 << 16,
    ) -> None:
        self.schedulers = {name: scheduler(model) for name, model in (graphs or {}).items()}
        self.log: list[tuple[int, str]] = []
        self.state = InstanceState(
            GraphRegistry(self.schedulers, opener),
            limits or Limits(),
            parameters or {},
            lambda severity, text: self.log.append((severity, text)),
        )
        self.memory = Memory(memory)
        self.state.memory = self.memory
        self._used = 64
        self.out = self.room(8)

    def room(self, size: int) -> int:
        """Fresh, zeroed memory at a multiple of 8."""
        address = self._used
        self._used = (address + size + 7) & ~7
        assert self._used <= len(self.memory.data)
        return address

    def put(self, data: bytes) -> int:
        address = self.room(len(data))
        self.memory.data[address : address + len(data)] = data
        return address

    def call(self, name: str, *arguments: int, module: str = "wasi_ephemeral_nn") -> int:
        function = FUNCTIONS[module, name]
        assert len(arguments) == len(function.params)
        return invoke(function, self.state, arguments)

    def kw(self, name: str, *arguments: int | str) -> int:
        """Calls the tensor ABI; a text stands for its address and length."""
        flat: list[int] = []
        for argument in arguments:
            flat += (
                (self.put(argument.encode()), len(argument.encode()))
                if isinstance(argument, str)
                else (argument,)
            )
        return self.call(name, *flat, module="kserve_wasm")

    def result(self) -> int:
        return self.memory.read_u32(self.out)

    def handle(self, errno: int) -> int:
        assert errno == 0, self.state.reason
        return self.result()

    def graph(self, name: str) -> int:
        return self.handle(self.kw_nn_load(name))

    def kw_nn_load(self, name: str) -> int:
        return self.call("load_by_name", self.put(name.encode()), len(name.encode()), self.out)

    def context(self, name: str) -> int:
        return self.handle(self.call("init_execution_context", self.graph(name), self.out))

    def record(self, dims: Iterable[int], tag: int, data: bytes) -> int:
        """``struct tensor`` of wasi-nn.witx, with garbage where C leaves it."""
        dims = list(dims)
        at = self.put(struct.pack(f"<{len(dims)}I", *dims))
        return self.put(
            struct.pack("<IIB3sII", at, len(dims), tag, b"\xaa\xbb\xcc", self.put(data), len(data))
        )

    def set_input(self, context: int, index: int, array: npt.NDArray[Any], tag: int) -> int:
        return self.call("set_input", context, index, self.record(array.shape, tag, array.tobytes()))

    def output(self, context: int, index: int, dtype: Any) -> npt.NDArray[Any]:
        """What ``get_output`` writes, flat."""
        buffer = self.room(4096)
        size = self.handle(self.call("get_output", context, index, buffer, 4096, self.out))
        return np.frombuffer(bytes(self.memory.view(buffer, size)), dtype)

    def close(self) -> None:
        self.state.close()
        for one in self.schedulers.values():
            one.close()


def scheduler(model: onnx.ModelProto) -> DirectScheduler:
    return DirectScheduler(open_graph(GraphSource("g", "onnx", data=model.SerializeToString()), "cpu"))


def sample(dtype: str, shape: tuple[int, ...] = (2, 3)) -> npt.NDArray[Any]:
    """Some values that every numeric type and BOOL can hold."""
    return (np.arange(np.prod(shape)).reshape(shape) % 2).astype(DTYPES[dtype].numpy)


def tensors(**arrays: npt.NDArray[Any]) -> dict[str, Tensor]:
    return {name: Tensor.from_numpy(array) for name, array in arrays.items()}
