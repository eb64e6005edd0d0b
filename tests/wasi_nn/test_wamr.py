"""WAMR's module ``wasi_nn``: the same host through its older records."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kserve_wasm.artifact.config import Limits
from kserve_wasm.wasi_nn.host_function import INVALID_ARGUMENT, MISSING_MEMORY, TOO_LARGE
from tests.backends import models
from tests.wasi_nn.support import FORMER, NOWHERE, Guest, scheduler

MakeGuest = Callable[..., Guest]
A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = A[::-1] * 10


def call(guest: Guest, name: str, *arguments: int) -> int:
    return guest.call(name, *arguments, module="wasi_nn")


def array(guest: Guest, address: int, count: int) -> int:
    return guest.put(struct.pack("<II", address, count))


def record(guest: Guest, dims: Sequence[int], tag: int, data: bytes) -> int:
    shape = array(guest, guest.put(struct.pack(f"<{len(dims)}I", *dims)), len(dims))
    return guest.put(struct.pack("<IB3sI", shape, tag, b"\xff\xff\xff", guest.put(data)))


def context_of(guest: Guest, name: str, *inputs: npt.NDArray[Any], tag: int = FORMER["FP32"]) -> int:
    graph = guest.handle(call(guest, "load_by_name", guest.put(name.encode()), len(name), guest.out))
    context = guest.handle(call(guest, "init_execution_context", graph, guest.out))
    for index, values in enumerate(inputs):
        assert (
            call(guest, "set_input", context, index, record(guest, values.shape, tag, values.tobytes())) == 0
        )
    return context


def test_sizes_of_outputs_count_f32_elements(make_guest: MakeGuest) -> None:
    guest = make_guest({"sum": models.add_and_subtract()})
    context = context_of(guest, "sum", A, B)
    assert call(guest, "compute", context) == 0
    buffer, size = guest.room(24), guest.put(struct.pack("<I", 6))
    assert call(guest, "get_output", context, 1, buffer, size) == 0
    assert guest.memory.read_u32(size) == 6
    np.testing.assert_array_equal(np.frombuffer(bytes(guest.memory.view(buffer, 24)), "<f4"), (A - B).ravel())
    small = guest.put(struct.pack("<I", 5))
    assert call(guest, "get_output", context, 0, buffer, small) == TOO_LARGE
    assert guest.memory.read_u32(small) == 6


@pytest.mark.parametrize("dtype", FORMER)
def test_the_length_of_the_data_follows_from_type_and_dims(make_guest: MakeGuest, dtype: str) -> None:
    guest = make_guest({"same": models.identity(dtype, [None])})
    values = np.arange(5).astype({"FP16": "<f2", "FP32": "<f4", "UINT8": "u1", "INT32": "<i4"}[dtype])
    context = context_of(guest, "same", values, tag=FORMER[dtype])
    assert call(guest, "compute", context) == 0
    buffer, size = guest.room(64), guest.put(struct.pack("<I", 16))
    assert call(guest, "get_output", context, 0, buffer, size) == 0
    assert guest.memory.read_u32(size) == -(-values.nbytes // 4)
    assert bytes(guest.memory.view(buffer, values.nbytes)) == values.tobytes()


def test_a_type_that_cannot_be_the_inputs_is_refused(make_guest: MakeGuest) -> None:
    guest = make_guest({"sum": models.add_and_subtract()})
    context = context_of(guest, "sum")
    for tag in (FORMER["UINT8"], FORMER["INT32"], 9):
        assert (
            call(guest, "set_input", context, 0, record(guest, (2, 3), tag, A.tobytes())) == INVALID_ARGUMENT
        )
        assert "'a' takes FP32" in guest.state.reason


def test_dims_without_end_are_missing_memory(make_guest: MakeGuest) -> None:
    guest = make_guest({"sum": models.add_and_subtract()})
    context = context_of(guest, "sum")
    shape = array(guest, NOWHERE, 2)
    wild = guest.put(struct.pack("<IIII", shape, 1, 0, 0))
    assert call(guest, "set_input", context, 0, wild) == MISSING_MEMORY
    assert call(guest, "set_input", context, 0, record(guest, (1 << 20, 1 << 20), 1, b"")) == MISSING_MEMORY


def test_load_takes_an_array_of_buffers(make_guest: MakeGuest) -> None:
    model = models.add_and_subtract()
    data = model.SerializeToString()
    guest = make_guest(opener=lambda _encoding, _data: scheduler(model), limits=Limits(load_bytes=len(data)))
    builders = array(guest, array(guest, guest.put(data), len(data)), 1)
    graph = guest.handle(call(guest, "load", builders, 1, 0, guest.out))
    assert call(guest, "init_execution_context", graph, guest.out) == 0
