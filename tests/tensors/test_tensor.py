from __future__ import annotations

import math
import pickle
import struct
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient import utils as triton

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.tensors import DTYPES, DType, Tensor

FIXED = [d for d in DTYPES.values() if d.name != "BYTES"]
BYTES = DTYPES["BYTES"]
FP32 = DTYPES["FP32"]

shapes = st.lists(st.integers(0, 5), max_size=5)


def raw(dtype: DType, count: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 2, count, np.uint8).tobytes()
        if dtype.name == "BOOL"
        else rng.bytes(count * dtype.itemsize)
    )


@given(
    st.sampled_from(FIXED), shapes, st.integers(0, 1 << 32), st.sampled_from([bytes, bytearray, memoryview])
)
def test_fixed_size_data_are_what_numpy_reads_from_them(
    dtype: DType, shape: list[int], seed: int, kind: type[Any]
) -> None:
    data = raw(dtype, math.prod(shape), seed)
    tensor = Tensor.from_buffer(dtype, shape, kind(data))
    expected = np.frombuffer(data, dtype.numpy.newbyteorder("<")).reshape(shape)
    assert tensor.numpy().dtype == dtype.numpy
    assert tensor.numpy().tobytes() == expected.tobytes()
    assert (tensor.shape, tensor.size, tensor.nbytes) == (tuple(shape), expected.size, len(data))
    assert tensor.buffer() == data
    assert (tensor.buffer().format, tensor.buffer().ndim) == ("B", 1)
    assert tensor.buffer().readonly


@given(st.sampled_from(FIXED), shapes, st.integers(0, 1 << 32))
def test_numpy_arrays_become_their_own_bytes(dtype: DType, shape: list[int], seed: int) -> None:
    array = np.frombuffer(raw(dtype, math.prod(shape), seed), dtype.numpy).reshape(shape)
    for same in (array, np.array(array, order="F"), np.repeat(array[..., None], 2, -1)[..., 0]):
        tensor = Tensor.from_numpy(same)
        assert tensor.dtype is dtype
        assert tensor.shape == tuple(shape)
        assert bytes(tensor.buffer()) == array.tobytes()


@given(shapes.filter(lambda s: math.prod(s) < 200), st.data())
def test_bytes_are_encoded_as_tritonclient_does(shape: list[int], data: st.DataObject) -> None:
    count = math.prod(shape)
    elements = data.draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
    array = np.empty(count, dtype=object)
    array[:] = elements
    encoded = triton.serialize_byte_tensor(array.reshape(shape)) if count else np.empty(0, object)
    wire = encoded.item() if encoded.size else b""
    assert bytes(Tensor.from_numpy(array.reshape(shape)).buffer()) == wire
    for source in (wire, bytearray(wire), memoryview(bytearray(wire))):
        tensor = Tensor.from_buffer(BYTES, shape, source)
        assert tensor.shape == tuple(shape)
        assert tensor.numpy().reshape(-1).tolist() == elements
        assert (bytes(tensor.buffer()), tensor.nbytes) == (wire, len(wire))


@given(
    st.sampled_from(list(DTYPES.values())),
    st.lists(st.integers(-(1 << 70), 1 << 70), max_size=70),
    st.binary(),
)
def test_any_shape_and_data_make_a_fitting_tensor_or_a_typed_error(
    dtype: DType, shape: list[int], data: bytes
) -> None:
    try:
        tensor = Tensor.from_buffer(dtype, shape, data)
    except InvalidRequest:
        return
    assert tensor.shape == tuple(shape)
    assert tensor.numpy().shape == tuple(shape)
    assert tensor.buffer() == data


@pytest.mark.parametrize("dtype", [FP32, BYTES, DTYPES["UINT8"]], ids=str)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([-1], r"at least 0, got shape \[-1\]"),
        ([-2, -2], "at least 0"),
        ([0, -1], "at least 0"),
        ([1 << 63, 0], "a dimension is at most 9223372036854775807"),
        ([10**5000], "a dimension is at most"),  # beyond what Python prints
        ([1] * 65, "at most 64 dimensions, got 65"),
        ([1 << 62] * 1000, "at most 64 dimensions"),
        ([1 << 62, 1 << 62, 0], "beyond 64-bit addresses"),
        ([(1 << 63) - 1], "needs 9223372036854775807|needs 36893488147419103228 bytes, got 0"),
        ([1 << 32, 1 << 32], "needs"),  # 2**64: nothing, where arithmetic wraps
        ([1 << 62, 4], "needs"),
        ([2], "needs (8 bytes|2 bytes|2 length-prefixed)"),
        ([], "needs (4 bytes|1 bytes|1 length-prefixed)"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(dtype: DType, shape: list[int], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Tensor.from_buffer(dtype, shape, b"")


@pytest.mark.parametrize("dtype", [FP32, BYTES], ids=str)
def test_a_huge_shape_allocates_nothing(dtype: DType) -> None:
    tracemalloc.start()
    try:
        for shape in ([1 << 27], [(1 << 63) - 1] * 64):
            with pytest.raises(InvalidRequest):
                Tensor.from_buffer(dtype, shape, bytes(400))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ([1], b"\1\0\0", "ends inside the length of element 0"),
        ([1], b"\5\0\0\0abcd", "element 0 says it has 5 bytes, but only 4 are left"),
        ([1], b"\xff\xff\xff\xff", "says it has 4294967295 bytes"),
        ([2], b"\1\0\0\0a", "needs 2 length-prefixed elements, got 1 and 0 bytes besides"),
        ([1], b"\1\0\0\0ab", "got 1 and 1 bytes besides"),
        ([0], b"\0\0\0\0", "needs 0 length-prefixed elements, got 0 and 4 bytes besides"),
        ([2], b"\0\0\0\0\1\0\0", "ends inside the length of element 1"),
    ],
)
def test_bytes_whose_lengths_do_not_add_up_are_refused(shape: list[int], data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Tensor.from_buffer(BYTES, shape, data)


def test_bool_takes_zero_and_one_only() -> None:
    assert Tensor.from_buffer(DTYPES["BOOL"], [2], b"\0\1").numpy().tolist() == [False, True]
    with pytest.raises(InvalidRequest, match="only the bytes 0 and 1"):
        Tensor.from_buffer(DTYPES["BOOL"], [3], b"\0\2\1")


@pytest.mark.parametrize("dtype", FIXED, ids=str)
def test_fixed_size_data_are_not_copied(dtype: DType) -> None:
    data = bytearray(16 * dtype.itemsize)
    tensor = Tensor.from_buffer(dtype, [4, 4], data)
    assert np.shares_memory(tensor.numpy().view(np.uint8), np.frombuffer(data, np.uint8))
    assert np.shares_memory(np.frombuffer(tensor.buffer(), np.uint8), np.frombuffer(data, np.uint8))
    again = Tensor.from_numpy(tensor.numpy())
    assert np.shares_memory(again.numpy().view(np.uint8), np.frombuffer(data, np.uint8))


def test_bytes_do_not_follow_the_memory_they_came_from() -> None:
    memory = bytearray(struct.pack("<I", 3) + b"abc")
    for source in (memory, memoryview(memory), memoryview(memory).toreadonly()):
        tensor = Tensor.from_buffer(BYTES, [1], source)
        memory[4:] = b"xyz"
        assert tensor.numpy().tolist() == [b"abc"]
        assert bytes(tensor.buffer()) == b"\3\0\0\0abc"
        memory[4:] = b"abc"


def test_bytes_out_of_bytes_keep_them_as_the_raw_form() -> None:
    data = struct.pack("<I", 1 << 20) + bytes(1 << 20)
    tensor = Tensor.from_buffer(BYTES, [1], memoryview(b"head" + data)[4:])
    tracemalloc.start()
    try:
        assert tensor.buffer() == data
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("array", "elements"),
    [
        (np.array(["a", "é"]), [b"a", "é".encode()]),
        (np.array([b"ab", b"c"]), [b"ab", b"c"]),
        (np.array(["é", b"\xff"], dtype=object), ["é".encode(), b"\xff"]),
        (np.array([], dtype="U3"), []),
    ],
)
def test_text_and_byte_strings_become_bytes(array: Any, elements: list[bytes]) -> None:
    tensor = Tensor.from_numpy(array)
    assert tensor.dtype is BYTES
    assert tensor.numpy().tolist() == elements


@pytest.mark.parametrize("element", [5, 1 << 40, None, [1], 2.5])
def test_other_objects_are_refused(element: object) -> None:
    array = np.empty(1, dtype=object)
    array[0] = element
    with pytest.raises(TypeError, match=f"must hold str or bytes, got {type(element).__name__}"):
        Tensor.from_numpy(array)


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "V4", [("a", "f4")], ml_dtypes.float8_e5m2])
def test_numpy_dtypes_without_a_v2_datatype_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="has no V2 datatype; cast to one of BOOL, UINT8"):
        Tensor.from_numpy(np.zeros(2, dtype))


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">u2", ">f2"])
def test_big_endian_arrays_keep_their_values(dtype: str) -> None:
    array = np.arange(5).astype(dtype)
    tensor = Tensor.from_numpy(array)
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert bytes(tensor.buffer()) == array.astype(array.dtype.newbyteorder("<")).tobytes()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0, 4), (2, 3)])
def test_tensors_cross_process_boundaries(dtype: DType, shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    tensor = Tensor.from_buffer(dtype, shape, bytes(4 * count if dtype is BYTES else count * dtype.itemsize))
    copy = pickle.loads(pickle.dumps(tensor, protocol=5))
    assert copy.dtype is dtype
    assert (copy.shape, copy.buffer()) == (tensor.shape, tensor.buffer())


def test_a_tensor_shows_its_type_and_shape_but_no_data() -> None:
    assert repr(Tensor.from_numpy(np.full((1, 2), 7.5, np.float32))) == "Tensor(FP32, [1, 2])"
