"""JSON values and tensors, with NumPy as the oracle."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.protocol import json_values
from kserve_wasm.tensors import DTYPES, Tensor

# A signalling NaN makes NumPy warn when it is converted; it is a NaN all the same.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

NUMERIC = [name for name in DTYPES if name != "BYTES"]
INTEGERS = [name for name in NUMERIC if "INT" in name]
FLOATS = ["FP16", "BF16", "FP32", "FP64"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any numeric tensor; floats of any bit pattern."""
    dtype = DTYPES[draw(st.sampled_from(NUMERIC))]
    shape = draw(SHAPES)
    raw = draw(
        st.binary(min_size=math.prod(shape) * dtype.itemsize, max_size=math.prod(shape) * dtype.itemsize)
    )
    if dtype.name == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    return Tensor.from_buffer(dtype, shape, raw)


def reread(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def same(a: Any, b: Any) -> None:
    """Equal in shape, type and value; NaN equals NaN, whatever its bits."""
    assert a.dtype == b.dtype
    if a.dtype.kind not in "iub":
        a, b = a.astype(np.float64), b.astype(np.float64)  # exact for every float type here
    np.testing.assert_array_equal(a, b)


@given(tensors())
def test_v2_values_survive_json(tensor: Tensor) -> None:
    data = reread(json_values.flat_values("y", tensor))
    assert isinstance(data, list)
    assert len(data) == tensor.size
    same(json_values.decode("y", tensor.dtype, tensor.shape, data).numpy(), tensor.numpy())


@given(tensors())
def test_nested_values_survive_json(tensor: Tensor) -> None:
    data = reread(json_values.nested_values(tensor))
    same(json_values.decode("y", tensor.dtype, tensor.shape, data).numpy(), tensor.numpy())


@given(tensors())
def test_nested_values_have_the_shape_that_numpy_gives_them(tensor: Tensor) -> None:
    finite = tensor.dtype.name not in FLOATS or np.isfinite(tensor.numpy()).all()
    if finite:
        expected = tensor.numpy().astype(np.float32) if tensor.dtype.name == "BF16" else tensor.numpy()
        assert json_values.nested_values(tensor) == expected.tolist()


@given(st.lists(st.text(max_size=5), max_size=6))
def test_strings_survive_json(texts: list[str]) -> None:
    data = reread(texts)
    tensor = json_values.decode("x", DTYPES["BYTES"], (len(texts),), data)
    assert tensor.numpy().tolist() == [text.encode() for text in texts]
    assert json_values.flat_values("x", tensor) == texts


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_outside_the_type_are_refused_and_named(name: str) -> None:
    dtype = DTYPES[name]
    info = np.iinfo(dtype.numpy)
    low, high = int(info.min), int(info.max)
    tensor = json_values.decode("x", dtype, (2,), [low, high])
    assert tensor.numpy().tolist() == [low, high]
    for wrong in (low - 1, high + 1):
        with pytest.raises(
            InvalidRequest, match=rf"input 'x': element 1 must be within {name}, {low} to {high}, got"
        ):
            json_values.decode("x", dtype, (2,), [0, wrong])


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_type_takes_integral_floats_and_no_others(name: str) -> None:
    assert json_values.decode("x", DTYPES[name], (2,), [1.0, 2]).numpy().tolist() == [1, 2]
    for wrong, shown in ((1.5, "1.5"), (True, "true"), (None, "null"), ("1", "'1'"), ([], "a list of 0")):
        with pytest.raises(InvalidRequest, match=r"input 'x'.*"):
            json_values.decode("x", DTYPES[name], (2,), [0, wrong])
        if not isinstance(wrong, list):
            with pytest.raises(InvalidRequest) as caught:
                json_values.decode("x", DTYPES[name], (2,), [0, wrong])
            assert str(caught.value).startswith("input 'x': element 1 must be an integer")
            assert str(caught.value).endswith(f"got {shown}")


@pytest.mark.parametrize("name", FLOATS)
def test_what_is_not_finite_has_a_form_in_json(name: str) -> None:
    values = [None, "NaN", "Infinity", "-Infinity", 1, 0.5]
    array = json_values.decode("x", DTYPES[name], (6,), values).numpy().astype(np.float64)
    np.testing.assert_array_equal(array, [np.nan, np.nan, np.inf, -np.inf, 1, 0.5])
    written = reread(json_values.flat_values("x", Tensor.from_numpy(array)))
    assert written == [None, None, "Infinity", "-Infinity", 1, 0.5]


@pytest.mark.parametrize(("name", "largest"), [("FP16", 65504.0), ("FP32", float(np.finfo(np.float32).max))])
def test_a_number_that_would_become_an_infinity_is_refused(name: str, largest: float) -> None:
    assert float(json_values.decode("x", DTYPES[name], (1,), [largest]).numpy()[0]) == largest
    with pytest.raises(InvalidRequest, match=f"element 1 must be within {name}"):
        json_values.decode("x", DTYPES[name], (2,), [0, largest * 2])


def test_bf16_is_rounded_as_numpy_rounds_it() -> None:
    values = [1.0, 3.14159, -0.1, 1e30]
    tensor = json_values.decode("x", DTYPES["BF16"], (4,), values)
    expected = np.array(values).astype(ml_dtypes.bfloat16)
    assert tensor.numpy().tobytes() == expected.tobytes()
    read = np.array(reread(json_values.flat_values("x", tensor)), np.float32)
    assert read.tolist() == expected.astype(np.float32).tolist()


def test_bool_takes_truth_values_and_zero_and_one() -> None:
    assert json_values.decode("x", DTYPES["BOOL"], (4,), [True, False, 1, 0]).numpy().tolist() == [1, 0, 1, 0]
    for wrong in (2, "true", 1.0, None):
        with pytest.raises(InvalidRequest, match="element 0 must be true or false"):
            json_values.decode("x", DTYPES["BOOL"], (1,), [wrong])


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((), 5),
        ((), [5]),
        ((0,), []),
        ((0, 4), []),
        ((2, 0), []),
        ((2, 0), [[], []]),
        ((1, 1), [[5]]),
        ((2, 1), [5, 5]),
    ],
)
def test_scalars_empty_tensors_and_flat_data_are_accepted(shape: tuple[int, ...], data: Any) -> None:
    tensor = json_values.decode("x", DTYPES["INT32"], shape, data)
    assert tensor.shape == shape
    assert tensor.numpy().tolist() == np.full(shape, 5, np.int32).tolist()


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((2, 2), [1, 2, 3]),
        ((2, 2), [1, 2, 3, 4, 5]),
        ((2, 2), [[1, 2], [3]]),
        ((2, 2), [[1, 2, 3, 4]]),
        ((2, 2), [[1], [2], [3], [4]]),
        ((2, 2), [[1, 2], 3, 4]),
        ((2, 2), [[[1, 2]], [[3, 4]]]),
        ((4,), [[1, 2], [3, 4]]),
        ((), [[1]]),
        ((), []),
        ((1,), []),
        ((0,), [1]),
        ((2, 2, 1), [[1, 2], [3, 4]]),
    ],
)
def test_data_that_does_not_fit_the_shape_is_refused_by_name(shape: tuple[int, ...], data: Any) -> None:
    with pytest.raises(InvalidRequest, match="input 'x'") as caught:
        json_values.decode("x", DTYPES["INT32"], shape, data)
    assert str(list(shape)) in str(caught.value)


def test_bytes_that_are_not_utf8_are_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidRequest, match=r"output 'y' .* not UTF-8.*binary_data"):
        json_values.flat_values("y", Tensor.from_numpy(np.array([b"ok", b"\xff"], dtype=object)))
