from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from kserve_wasm.errors import DeviceUnavailable
from kserve_wasm.tensors import DTYPES, DType, Tensor, dlpack
from kserve_wasm.tensors.devices import Accelerator
from kserve_wasm.tensors.dtypes import from_numpy_dtype
from tests.support.devices import HostRuntime

BF16 = DTYPES["BF16"]
KNOWN_TO_NUMPY = [d for d in DTYPES.values() if d.itemsize and d is not BF16]


class Lender:
    """An array that lends itself as a library of DLPack's first versions does."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU

    def __dlpack__(self, stream: object = None) -> Any:
        assert stream is None
        return self.array.__dlpack__()


class Gives:
    """Lends what it was given."""

    def __init__(self, capsule: object, device: tuple[int, int] = dlpack.CPU) -> None:
        self.capsule = capsule
        self.device = device
        self.streams: list[object] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: object = None, max_version: object = None) -> object:
        self.streams.append(stream)
        return self.capsule


def capsule_over(array: np.ndarray, device: tuple[int, int], *, versioned: bool) -> object:
    dtype = from_numpy_dtype(array.dtype)
    assert dtype is not None
    return dlpack.lend(
        array, dtype, array.shape, array.ctypes.data, device, versioned=versioned, read_only=True
    )


@pytest.mark.parametrize("dtype", KNOWN_TO_NUMPY, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_numpy_reads_what_is_lent_in_place(dtype: DType, shape: tuple[int, ...]) -> None:
    array = np.arange(24).astype(dtype.numpy)[: int(np.prod(shape))].reshape(shape)
    seen = np.from_dlpack(Tensor.from_numpy(array))
    assert (seen.dtype, seen.shape) == (array.dtype, array.shape)
    assert seen.tobytes() == array.tobytes()
    assert np.shares_memory(seen, array) or not array.size


@pytest.mark.parametrize("dtype", KNOWN_TO_NUMPY, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_numpys_memory_is_taken_in_place(dtype: DType, shape: tuple[int, ...]) -> None:
    array = np.arange(24).astype(dtype.numpy)[: int(np.prod(shape))].reshape(shape)
    for source in (array, Lender(array)):
        tensor = Tensor.from_dlpack(source)
        assert (tensor.dtype, tensor.shape, tensor.device) == (dtype, shape, "cpu")
        assert bytes(tensor.buffer()) == array.tobytes()
        assert np.shares_memory(tensor.numpy(), array) or not array.size


def test_bfloat16_goes_both_ways() -> None:
    x = Tensor.from_buffer(BF16, [4], bytes(range(8)))
    y = Tensor.from_dlpack(x)
    assert (y.dtype, bytes(y.buffer())) == (BF16, bytes(range(8)))


def test_read_only_memory_is_lent_as_such_or_not_at_all() -> None:
    x = Tensor.from_buffer(DTYPES["FP32"], [2], bytes(8))
    assert not np.from_dlpack(x).flags.writeable
    assert not Tensor.from_dlpack(x).numpy().flags.writeable
    with pytest.raises(BufferError, match="max_version"):
        x.__dlpack__()
    assert np.from_dlpack(Tensor.from_numpy(np.zeros(2))).flags.writeable


def test_bytes_and_copies_are_not_lent() -> None:
    with pytest.raises(BufferError, match="BYTES"):
        Tensor.from_numpy(np.array(["a"])).__dlpack__()
    x = Tensor.from_numpy(np.zeros(2))
    with pytest.raises(BufferError, match="no copy"):
        x.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="no other device"):
        x.__dlpack__(dl_device=(2, 0))


def test_what_lies_otherwise_is_refused() -> None:
    array = np.zeros((4, 6), np.float32)
    for other in (array.T, array[:, ::2]):
        with pytest.raises(TypeError, match="contiguous and row-major"):
            Tensor.from_dlpack(other)
    assert Tensor.from_dlpack(array[1:3]).shape == (2, 6)
    assert Tensor.from_dlpack(array[:, :1][:1]).shape == (1, 1)  # strides of a single row say nothing


def test_element_types_without_a_v2_datatype_are_refused() -> None:
    with pytest.raises(TypeError, match="has no V2 datatype"):
        Tensor.from_dlpack(np.zeros(2, np.complex64))


def test_memory_lives_as_long_as_the_other_side_uses_it() -> None:
    array = np.arange(5.0)
    alive = weakref.ref(array)
    seen = np.from_dlpack(Tensor.from_numpy(array))
    del array
    gc.collect()
    assert seen.tolist() == [0, 1, 2, 3, 4]
    del seen
    gc.collect()
    assert alive() is None


def test_a_lenders_memory_lives_as_long_as_the_tensor() -> None:
    array = np.arange(5.0)
    alive = weakref.ref(array)
    rows = Tensor.from_dlpack(array).rows(1, 3)
    del array
    gc.collect()
    assert rows.numpy().tolist() == [1, 2]
    assert alive() is not None
    del rows
    gc.collect()
    assert alive() is None


def test_capsules_that_nobody_took_are_forgotten() -> None:
    array = np.zeros(1000)
    alive = weakref.ref(array)
    Tensor.from_numpy(array).__dlpack__()
    del array
    capsules = [Tensor.from_numpy(np.zeros(i)).__dlpack__() for i in range(1, 4)]
    gc.collect()
    assert alive() is None
    assert len(dlpack._lent) == 3
    assert [Tensor.from_dlpack(Gives(capsule)).shape for capsule in capsules] == [(1,), (2,), (3,)]
    assert not dlpack._lent


def test_a_capsule_is_taken_once() -> None:
    capsule = Tensor.from_numpy(np.zeros(3)).__dlpack__()
    assert Tensor.from_dlpack(Gives(capsule)).shape == (3,)
    with pytest.raises(TypeError, match="no capsule"):
        Tensor.from_dlpack(Gives(capsule))


def test_device_memory_is_lent_where_it_is() -> None:
    device = Accelerator(HostRuntime())
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    (there,) = Tensor.move([Tensor.from_numpy(x)], device)
    row = there.rows(1, 3)
    assert row.__dlpack_device__() == (1, 0)
    for seen in (np.from_dlpack(row), Tensor.from_dlpack(row).numpy()):
        assert seen.ctypes.data == row.pointer
        assert not seen.flags.writeable
        np.testing.assert_array_equal(seen, x[1:3])
    assert device.copies("to_host") == 0
    del there, row
    assert device.held_bytes > 0
    del seen
    gc.collect()
    assert device.held_bytes == 0


@pytest.mark.parametrize("versioned", [False, True])
def test_device_memory_of_others_is_taken_where_it_is(
    monkeypatch: pytest.MonkeyPatch, versioned: bool
) -> None:
    runtime = HostRuntime()
    runtime.dlpack = 2
    device = Accelerator(runtime)
    monkeypatch.setattr("kserve_wasm.tensors.devices._opened", {device.name: device})
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    alive = weakref.ref(array)
    lender = Gives(capsule_over(array, (2, 0), versioned=versioned), (2, 0))
    tensor = Tensor.from_dlpack(lender)
    assert (lender.streams, runtime.settled) == ([1], 1)
    assert (tensor.device, tensor.pointer) == (device.name, array.ctypes.data)
    assert device.held_bytes == 24
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert device.copied_bytes("to_host") == 24
    del array, lender
    assert alive() is not None
    del tensor
    gc.collect()
    assert device.held_bytes == 0
    assert alive() is None


def test_unknown_devices_are_refused() -> None:
    capsule = capsule_over(np.zeros(2), (10, 0), versioned=True)
    with pytest.raises(DeviceUnavailable, match="device type 10"):
        Tensor.from_dlpack(Gives(capsule, (10, 0)))
    gc.collect()
    assert not dlpack._lent
