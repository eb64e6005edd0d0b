from __future__ import annotations

import pytest

from kserve_wasm.tensors import DTYPES
from kserve_wasm.wasi_nn.tensor_types import fits, fits_an_array, may_mean
from tests.wasi_nn.support import FORMER, TODAY, WIT_ORDER

# wasi-nn.witx today, wasi-nn.witx before August 2023, and the order of wasi-nn.wit.
ROWS = [(tag, name) for numbers in (TODAY, FORMER, WIT_ORDER) for name, tag in numbers.items()]
EXPRESSIBLE = [*TODAY, "BF16"]


@pytest.mark.parametrize(("tag", "name"), ROWS)
def test_number_and_width_name_one_type_in_all_numberings(tag: int, name: str) -> None:
    width = DTYPES[name].itemsize
    taken = [n for n in EXPRESSIBLE if fits(tag, 6, 6 * width, DTYPES[n])]
    assert taken == [name]


@pytest.mark.parametrize(("tag", "name"), ROWS)
def test_a_length_that_is_not_that_of_the_elements_is_refused(tag: int, name: str) -> None:
    dtype = DTYPES[name]
    assert not fits(tag, 6, 6 * dtype.itemsize - 1, dtype)
    assert not fits(tag, 6, 0, dtype)
    assert not fits(tag, 0, 6 * dtype.itemsize, dtype)


@pytest.mark.parametrize(
    ("wanted", "tags"),
    [
        ("BOOL", {2, 3, 4}),  # u8 in the three numberings
        ("INT8", {2, 3, 4}),
        ("INT16", {0, 2, 3, 4}),  # f16, bf16, and u8 as plain bytes
        ("UINT16", {0, 2, 3, 4}),
        ("UINT32", {2, 3, 4, 5}),  # i32, and u8 as plain bytes
        ("UINT64", {3, 4, 5, 6}),  # i64, and u8 as plain bytes, but 2, which with eight bytes is f64
    ],
)
def test_types_without_a_number_travel_under_one_of_their_width(wanted: str, tags: set[int]) -> None:
    dtype = DTYPES[wanted]
    assert {tag for tag in range(256) if fits(tag, 4, 4 * dtype.itemsize, dtype)} == tags
    assert not any(fits(tag, 4, 4 * dtype.itemsize + 1, dtype) for tag in range(256))


def test_floats_are_never_read_as_integers() -> None:
    for wanted in ("UINT32", "INT32"):
        assert not fits(TODAY["FP32"], 4, 16, DTYPES[wanted])
    for wanted in ("UINT64", "INT64"):
        assert not fits(TODAY["FP64"], 4, 32, DTYPES[wanted])
    assert not fits(TODAY["FP16"], 4, 8, DTYPES["BF16"])


def test_empty_data_fits_whatever_its_number_may_mean() -> None:
    assert fits(3, 0, 0, DTYPES["UINT8"])
    assert fits(3, 0, 0, DTYPES["INT32"])
    assert fits(3, 0, 0, DTYPES["BF16"])
    assert fits(3, 0, 0, DTYPES["BOOL"])
    assert not fits(3, 0, 0, DTYPES["FP32"])
    assert not fits(200, 0, 0, DTYPES["FP32"])


@pytest.mark.parametrize("tag", [7, 8, 255])
def test_unknown_numbers_mean_nothing(tag: int) -> None:
    assert not any(fits(tag, 1, d.itemsize, d) or may_mean(tag, d) for d in DTYPES.values() if d.itemsize)


def test_shapes_that_no_array_can_have_are_told() -> None:
    assert fits_an_array(())
    assert fits_an_array((0, 2**32 - 1))
    assert not fits_an_array((0, 2**31, 2**31))
    assert not fits_an_array((1,) * 65)
