"""The V1 protocol. Expected payloads are those of KServe's and TensorFlow Serving's documentation, values NumPy's."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.protocol.v1 import decode_v1, encode_v1
from kserve_wasm.request import InferenceResponse
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec

MATRIX = (TensorSpec("x", DTYPES["FP32"], ("batch", 4)),)
PAIR = (TensorSpec("a", DTYPES["INT64"], ("n",)), TensorSpec("b", DTYPES["FP32"], ("n", 2)))
TEXT = (TensorSpec("text", DTYPES["BYTES"], (None,)),)


def tensors_of(payload: Any, specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    request, _ = decode_v1(payload, specs)
    return {name: tensor.numpy() for name, tensor in request.inputs.items()}


@pytest.mark.parametrize(
    "payload",
    [
        {"instances": [[1, 2, 3, 4], [5, 6, 7, 8.5]]},
        {"instances": [{"x": [1, 2, 3, 4]}, {"x": [5, 6, 7, 8.5]}]},
        {"inputs": [[1, 2, 3, 4], [5, 6, 7, 8.5]]},
        {"inputs": {"x": [[1, 2, 3, 4], [5, 6, 7, 8.5]]}, "signature_name": "serving_default"},
        b'{"instances": [[1, 2, 3, 4], [5, 6, 7, 8.5]]}',
    ],
)
def test_each_form_of_a_single_input_gives_the_same_tensor(payload: Any) -> None:
    (x,) = tensors_of(payload, MATRIX).values()
    expected = np.array([[1, 2, 3, 4], [5, 6, 7, 8.5]], np.float32)
    assert x.dtype == expected.dtype
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(
    "payload",
    [
        {"instances": [{"a": 1, "b": [1, 2]}, {"b": [3, 4], "a": 2}]},
        {"inputs": {"a": [1, 2], "b": [[1, 2], [3, 4]]}},
    ],
)
def test_rows_and_columns_of_several_inputs(payload: Any) -> None:
    found = tensors_of(payload, PAIR)
    np.testing.assert_array_equal(found["a"], np.array([1, 2], np.int64))
    np.testing.assert_array_equal(found["b"], np.array([[1, 2], [3, 4]], np.float32))


def test_bytes_come_as_strings_or_base64() -> None:
    raw = b"\x00\xff\xfe"
    row = {"b64": base64.b64encode(raw).decode()}
    for payload in (
        {"instances": ["é", row]},
        {"instances": [{"text": "é"}, {"text": row}]},
        {"inputs": ["é", row]},
    ):
        assert tensors_of(payload, TEXT)["text"].tolist() == ["é".encode(), raw]


def test_no_rows_are_an_empty_batch_of_the_models_shape() -> None:
    assert tensors_of({"instances": []}, MATRIX)["x"].shape == (0, 4)


def test_a_model_that_says_nothing_gets_types_by_the_values() -> None:
    found = tensors_of({"inputs": {"i": [1, 2], "f": [1, 2.5], "s": ["a"], "b": [[True]], "e": []}}, ())
    assert {name: array.dtype for name, array in found.items()} == {
        "i": np.int64,
        "f": np.float32,
        "s": np.object_,
        "b": np.bool_,
        "e": np.float32,
    }
    assert tensors_of({"instances": [[1, 2]]}, ())["input"].shape == (1, 2)


def test_parameters_reach_the_request() -> None:
    request, _ = decode_v1({"instances": [[1, 2, 3, 4]], "parameters": {"top_k": 3}}, MATRIX)
    assert request.parameters == {"top_k": 3}


@pytest.mark.parametrize(
    ("payload", "specs", "message"),
    [
        ({}, MATRIX, 'either "instances"'),
        ({"instances": [], "inputs": []}, MATRIX, 'either "instances"'),
        ([1], MATRIX, r"got \[1\]"),
        (b"{", MATRIX, "not JSON"),
        ({"instances": 5}, MATRIX, "'instances' must be a list of rows, got 5"),
        ({"instances": [[1, 2, 3]]}, MATRIX, r"input 'x' must have shape \[-1, 4\].* got \[1, 3\]"),
        ({"instances": [[1, 2, 3, 4], [1, 2]]}, MATRIX, "input 'x'"),
        ({"instances": [["a", 2, 3, 4]]}, MATRIX, "input 'x': element 0 must be a number"),
        ({"instances": [{"y": [1, 2, 3, 4]}]}, MATRIX, "input 'x' is missing"),
        ({"inputs": {"x": [[1, 2, 3, 4]], "y": 1}}, MATRIX, "unknown input 'y'"),
        ({"instances": [[1, 2]]}, PAIR, "the model has the inputs 'a', 'b'"),
        ({"inputs": [1, 2]}, PAIR, "the model has the inputs 'a', 'b'"),
        ({"instances": [{"a": 1, "b": [1, 2]}, {"a": 1}]}, PAIR, "row 1"),
        ({"instances": [{"a": 1, "b": [1, 2]}, 5]}, PAIR, "row 1"),
        ({"instances": [{"a": 1.5, "b": [1, 2]}]}, PAIR, "input 'a': element 0 must be an integer"),
        ({"instances": [{"b64": "%%%"}]}, TEXT, "input 'text': 'b64' must hold text in base64"),
        ({"instances": [5]}, TEXT, "input 'text': element 0 must be a string, got 5"),
        (
            {"instances": [[1, 2, 3, 4]], "parameters": 5},
            MATRIX,
            "'parameters' of the request must be an object",
        ),
        ({"instances": [1, "a"]}, (), "only one of these"),
    ],
)
def test_bad_payloads_are_refused_with_what_is_wrong(payload: Any, specs: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        decode_v1(payload, specs)


def answer(outputs: dict[str, Any], rows: bool) -> dict[str, Any]:
    _, shape = decode_v1({"instances": [1]} if rows else {"inputs": [1]}, ())
    return encode_v1(
        InferenceResponse({k: Tensor.from_numpy(np.asarray(v)) for k, v in outputs.items()}), shape
    )


def test_answers_take_the_form_of_the_request() -> None:
    one = {"y": np.array([[1, 2], [3, 4]], np.int32)}
    assert answer(one, rows=True) == {"predictions": [[1, 2], [3, 4]]}
    assert answer(one, rows=False) == {"outputs": [[1, 2], [3, 4]]}
    two = one | {"label": np.array([b"a", b"\xff"], dtype=object)}
    assert answer(two, rows=True) == {
        "predictions": [{"y": [1, 2], "label": "a"}, {"y": [3, 4], "label": {"b64": "/w=="}}]
    }
    assert answer(two, rows=False) == {"outputs": {"y": [[1, 2], [3, 4]], "label": ["a", {"b64": "/w=="}]}}


def test_outputs_without_common_rows_need_columns() -> None:
    for uneven in ({"a": [1, 2], "b": [1]}, {"a": [1, 2], "b": 1}, {"a": 1, "b": 2}):
        with pytest.raises(InvalidRequest, match="send the request in columns"):
            answer(uneven, rows=True)
        assert answer(uneven, rows=False) == {"outputs": uneven}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "b64", "x"]), inner)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["instances", "inputs", "parameters"]), JSON),
    st.sampled_from([MATRIX, PAIR, TEXT, ()]),
)
def test_any_payload_is_read_or_refused(payload: Any, specs: Any) -> None:
    try:
        request, shape = decode_v1(payload, specs)
    except InvalidRequest:
        pass
    else:
        outputs = encode_v1(InferenceResponse(dict(request.inputs)), type(shape)(rows=False))
        assert set(outputs) == {"outputs"}


@pytest.mark.parametrize("specs", [(), MATRIX], ids=["any input", "a matrix"])
@pytest.mark.parametrize("before", ["", "1, "])
@pytest.mark.parametrize("depth", [33, 500, 1000])
def test_lists_that_lie_deeper_than_any_tensor_are_refused(
    specs: tuple[TensorSpec, ...], before: str, depth: int
) -> None:
    # The outermost list is the one whose first element hides how deep the second is.
    body = '{"inputs": [' + before + "[" * (depth - 1) + "]" * (depth - 1) + "]}"
    with pytest.raises(InvalidRequest, match="more than 32 dimensions"):
        decode_v1(body, specs)


def test_the_deepest_tensor_is_read() -> None:
    (x,) = tensors_of('{"inputs": ' + "[" * 32 + "7" + "]" * 32 + "}", ()).values()
    assert x.shape == (1,) * 32
    assert x.item() == 7
