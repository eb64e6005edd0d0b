from __future__ import annotations

import gc
import math
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from kserve_wasm.errors import BackendError
from kserve_wasm.tensors import DTYPES, DType, Tensor, devices
from kserve_wasm.tensors.devices import Accelerator
from tests.support.devices import DEVICES, HostRuntime, allocations, make_device

FIXED = [d for d in DTYPES.values() if d.itemsize]
FP32 = DTYPES["FP32"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Accelerator]:
    device = make_device(request.param)
    yield device
    gc.collect()
    assert device.held_bytes == 0


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def random(dtype: DType, shape: tuple[int, ...], seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    count = math.prod(shape)
    if dtype.name == "BOOL":
        return rng.integers(0, 2, count, np.uint8).tobytes()
    return rng.bytes(count * dtype.itemsize)


@given(st.sampled_from(FIXED), st.lists(st.integers(0, 5), max_size=5), st.integers(0, 1 << 32))
def test_bytes_come_back_from_a_device_as_they_went(dtype: DType, shape: list[int], seed: int) -> None:
    device = Accelerator(HostRuntime())
    data = random(dtype, tuple(shape), seed)
    (there,) = Tensor.move([Tensor.from_buffer(dtype, shape, bytearray(data))], device)
    assert (there.device, there.dtype, there.shape) == ("cpu:0", dtype, tuple(shape))
    assert (there.nbytes, there.size) == (len(data), math.prod(shape))
    assert device.copied_bytes("to_host") == 0
    assert there.buffer() == data
    assert there.numpy().dtype == dtype.numpy
    assert device.copied_bytes("to_device") == device.copied_bytes("to_host") == len(data)


def test_the_host_gets_the_bytes_once(device: Accelerator) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    (there,) = Tensor.move([Tensor.from_numpy(x)], device)
    for _ in range(3):
        np.testing.assert_array_equal(there.numpy(), x)
        assert there.buffer() == x.tobytes()
        assert pickle.loads(pickle.dumps(there)).buffer() == x.tobytes()
    assert device.copies("to_host") == 1
    assert not there.numpy().flags.writeable
    assert there.device == device.name


def test_rows_are_views_that_share_one_move(device: Accelerator) -> None:
    x = np.arange(24, dtype=np.int16).reshape(6, 2, 2)
    (there,) = Tensor.move([Tensor.from_numpy(x)], device)
    rows = [there.rows(i, i + 2) for i in range(0, 6, 2)]
    nested = rows[2].rows(1, 2)
    assert device.copies("on_device") == 0
    assert [row.pointer - there.pointer for row in (*rows, nested)] == [0, 16, 32, 40]
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(row.numpy(), x[2 * i : 2 * i + 2])
    np.testing.assert_array_equal(nested.numpy(), x[5:])
    assert device.copies("to_host") == 1
    assert device.copied_bytes("to_host") == x.nbytes


def test_rows_on_the_host_are_views() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    rows = Tensor.from_numpy(x).rows(1, 3)
    assert (rows.device, rows.shape) == ("cpu", (2, 2))
    assert np.shares_memory(rows.numpy(), x)
    text = Tensor.from_numpy(np.array(["a", "b", "c"])).rows(1, 2)
    assert bytes(text.buffer()) == b"\1\0\0\0b"


def test_a_row_keeps_its_parents_memory(device: Accelerator) -> None:
    x = np.arange(4096, dtype=np.float32).reshape(4, 1024)
    (there,) = Tensor.move([Tensor.from_numpy(x)], device)
    row = there.rows(2, 3)
    del there
    gc.collect()
    for _ in range(8):  # which would take the parent's memory if it were free
        Tensor.move([Tensor.from_numpy(np.zeros_like(x))], device)
    np.testing.assert_array_equal(row.numpy(), x[2:3])


def test_many_threads_that_ask_at_once_share_one_move(device: Accelerator) -> None:
    x = np.arange(1 << 16)
    (there,) = Tensor.move([Tensor.from_numpy(x)], device)
    rows = [there.rows(i, i + 1) for i in range(8)]
    start = threading.Barrier(8)
    got = []

    def read(row: Tensor) -> None:
        start.wait()
        got.append(int(row.numpy()[0]))

    threads = [threading.Thread(target=read, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(8))
    assert device.copies("to_host") == 1


def test_what_cannot_change_moves_once_and_what_can_moves_each_time(device: Accelerator) -> None:
    fixed = Tensor.from_buffer(FP32, [2], bytes(8))
    assert Tensor.move([fixed, fixed], device)[0] is fixed
    assert Tensor.move([fixed], device) == [fixed]
    assert fixed.device == device.name
    memory = bytearray(8)
    changing = Tensor.from_buffer(FP32, [2], memory)
    before = device.copies("to_device")
    (first,) = Tensor.move([changing], device)
    memory[:] = b"\1" * 8
    (second,) = Tensor.move([changing], device)
    assert device.copies("to_device") == before + 2
    assert changing.device == "cpu"
    assert (bytes(first.buffer()), bytes(second.buffer())) == (bytes(8), b"\1" * 8)


def test_what_a_thread_uses_of_a_tensor_that_another_one_moves_as_well_stays(
    device: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = Tensor.from_buffer(FP32, [2], bytes(8))
    used: list[int] = []
    upload = device.upload

    def while_another_moves(target: int, array: npt.NDArray[Any]) -> None:
        monkeypatch.setattr(device, "upload", upload)
        (there,) = Tensor.move([fixed], device)
        used.append(there.pointer)
        upload(target, array)

    monkeypatch.setattr(device, "upload", while_another_moves)
    (mine,) = Tensor.move([fixed], device)
    assert [fixed.pointer] == used
    assert mine.pointer != fixed.pointer
    assert device.held_bytes == 2 * 256


def test_a_tensor_of_another_device_comes_by_way_of_the_host(device: Accelerator) -> None:
    other = Accelerator(HostRuntime())
    x = np.arange(3.0)
    (there,) = Tensor.move([Tensor.from_numpy(x)], other)
    (here,) = Tensor.move([there], device)
    assert here.memory is not None
    assert here.memory.accelerator is device
    np.testing.assert_array_equal(here.numpy(), x)
    assert (other.copies("to_host"), device.copies("to_device")) == (1, 1)


def test_overlap_is_told_by_address(device: Accelerator) -> None:
    x = np.zeros((4, 2), np.float32)
    host = Tensor.from_numpy(x)
    (there,) = Tensor.move([host], device)
    (other,) = Tensor.move([host], device)
    assert there.rows(0, 2).may_share_memory(there.rows(1, 3))
    assert not there.rows(0, 2).may_share_memory(there.rows(2, 4))
    assert not there.may_share_memory(other)
    assert not there.may_share_memory(host)
    assert host.may_share_memory(Tensor.from_numpy(x[1:]))


def test_a_copy_is_where_the_tensor_is(device: Accelerator) -> None:
    x = np.arange(6, dtype=np.float32)
    (there,) = Tensor.move([Tensor.from_numpy(x)], device)
    copy = there.rows(2, 5).copied()
    assert (copy.device, device.copies("on_device"), device.copies("to_host")) == (device.name, 1, 0)
    assert not copy.may_share_memory(there)
    np.testing.assert_array_equal(copy.numpy(), x[2:5])


def test_memory_is_used_again(device: Accelerator) -> None:
    for _ in range(10_000):
        (there,) = Tensor.move([Tensor.from_numpy(np.zeros(1000, np.float32))], device)
        there.numpy()
        del there
    assert device.held_bytes == 0
    assert allocations(device) <= 4  # two of the device, two page-locked


def test_no_more_is_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = HostRuntime()
    device = Accelerator(runtime)
    monkeypatch.setattr(devices, "_KEPT_BYTES", 10_000)
    for n in range(1, 2000, 7):
        Tensor.move([Tensor.from_numpy(np.zeros(n, np.uint8))], device)
    assert device.held_bytes == 0
    assert runtime.allocated <= 10_000


def test_what_is_kept_makes_room_when_it_is_needed() -> None:
    device = Accelerator(HostRuntime(capacity=10_000))
    Tensor.move([Tensor.from_numpy(np.zeros(6000, np.uint8))], device)
    (there,) = Tensor.move([Tensor.from_numpy(np.zeros(9000, np.uint8))], device)
    with pytest.raises(BackendError, match="no 9216 bytes left"):
        Tensor.move([Tensor.from_numpy(np.zeros(9000, np.uint8))], device)
    assert there.buffer() == bytes(9000)
    assert device.held_bytes == 9216


def test_where_no_page_can_be_locked_ordinary_memory_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = HostRuntime()
    device = Accelerator(runtime)

    def refuse(_: int) -> int:
        raise BackendError("out of memory")

    monkeypatch.setattr(device._pinned, "_allocate", refuse)
    array = device.pinned(100)
    array[:] = 1
    assert array.sum() == 100
    (there,) = Tensor.move([Tensor.from_numpy(np.arange(3.0))], device)
    assert there.numpy().tolist() == [0, 1, 2]


def test_page_locked_memory_has_a_bound(device: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_MAX_PINNED", 5000)
    arrays = [device.pinned(2048) for _ in range(4)]
    for i, array in enumerate(arrays):
        array[:] = i
    assert [int(array.sum()) for array in arrays] == [0, 2048, 4096, 6144]
    assert allocations(device) == 2


@pytest.mark.parametrize("nbytes", [0, 1, 256, 257, 4096, 4097, 65_537, 10**6, (1 << 30) + 1])
def test_memory_is_taken_in_few_sizes_little_above_what_is_asked(nbytes: int) -> None:
    size = devices._rounded(nbytes)
    assert size >= max(1, nbytes)
    assert size % devices.ALIGNMENT == 0
    assert size <= max(256, nbytes * 9 / 8 + 256)
    assert len({devices._rounded(n) for n in range(1 << 16, 1 << 17, 97)}) <= 9


def test_the_bytes_of_each_direction_are_a_metric(device: Accelerator) -> None:
    def metric(direction: str) -> float:
        labels = {"device": device.name, "direction": direction}
        return REGISTRY.get_sample_value("kserve_wasm_device_copy_bytes_total", labels) or 0.0

    before = [metric(d) for d in ("to_device", "to_host", "on_device")]
    (there,) = Tensor.move([Tensor.from_numpy(np.zeros(10, np.uint8))], device)
    there.copied()
    there.rows(0, 5).numpy()
    after = [metric(d) for d in ("to_device", "to_host", "on_device")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [10, 10, 10]


def test_a_failed_move_leaves_nothing_behind() -> None:
    device = Accelerator(HostRuntime(capacity=3000))
    tensors = [Tensor.from_numpy(read_only(np.full(1000, i, np.uint8))) for i in range(4)]
    with pytest.raises(BackendError, match="bytes left"):
        Tensor.move(tensors, device)
    assert device.held_bytes == 0
    assert [t.device for t in tensors] == ["cpu"] * 4
    assert Tensor.move(tensors[:2], device)[1].buffer() == b"\1" * 1000
