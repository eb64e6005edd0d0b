"""V2 REST bodies against the protocol's text, NumPy, and tritonclient's own encoder and decoder."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from kserve_wasm.errors import InvalidRequest, NotSupported
from kserve_wasm.request import InferenceResponse
from kserve_wasm.server.rest.answer import Answer
from kserve_wasm.server.rest.codec import JSON_LENGTH, decode_request, encode_response
from kserve_wasm.tensors import DTYPES, Tensor
from tests.support.counts import count

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = DTYPES[draw(st.sampled_from(list(DTYPES)))]
    shape = draw(SHAPES)
    count = math.prod(shape)
    if dtype.name == "BYTES":
        array = np.empty(count, dtype=object)
        for i in range(count):
            array[i] = draw(st.binary(max_size=6))
        return Tensor.from_numpy(array.reshape(shape))
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    return Tensor.from_buffer(dtype, shape, bytes(b & 1 for b in raw) if dtype.name == "BOOL" else raw)


def body_of(
    inputs: list[dict[str, Any]], raw: bytes = b"", **fields: Any
) -> tuple[bytes, dict[bytes, bytes]]:
    text = orjson.dumps({"inputs": inputs, **fields})
    return text + raw, {JSON_LENGTH: str(len(text)).encode()} if raw else {}


def joined(answer: Answer) -> bytes:
    return b"".join(answer.body)


@given(st.dictionaries(st.text(min_size=1, max_size=5), tensors(), max_size=3))
def test_tritonclient_requests_are_read_as_they_were_meant(values: dict[str, Tensor]) -> None:
    inputs = []
    for name, tensor in values.items():
        item = InferInput(name, list(tensor.shape), tensor.dtype.name)
        item.set_data_from_numpy(tensor.numpy())
        inputs.append(item)
    body, split = InferenceServerClient.generate_request_body(inputs, request_id="r1")
    headers = {} if split is None else {JSON_LENGTH: str(split).encode()}
    request, wanted = decode_request(body, headers)
    assert wanted.binary
    assert wanted.outputs is None
    assert request.id == "r1"
    assert request.parameters == {}
    assert list(request.inputs) == list(values)
    for name, tensor in values.items():
        found = request.inputs[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert bytes(found.buffer()) == bytes(tensor.buffer())
        assert found.numpy().flags.aligned


@given(st.dictionaries(st.text(min_size=1, max_size=5), tensors(), max_size=3))
def test_binary_answers_are_read_by_tritonclient_as_they_were_meant(values: dict[str, Tensor]) -> None:
    inputs: list[dict[str, Any]] = []
    _, wanted = decode_request(*body_of(inputs, parameters={"binary_data_output": True}))
    answer = encode_response(InferenceResponse(values), wanted, "m", "3", "r1")
    split = dict(answer.headers).get(JSON_LENGTH)
    assert (split is None) == (not values)
    result = InferenceServerClient.parse_response_body(
        joined(answer), header_length=None if split is None else int(split)
    )
    head = result.get_response()
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "3", "r1")
    for name, tensor in values.items():
        found = result.as_numpy(name)
        assert found.dtype == tensor.dtype.numpy
        assert found.shape == tensor.shape
        if tensor.dtype.name == "BYTES":
            assert found.tolist() == tensor.numpy().tolist()
        else:
            assert found.tobytes() == tensor.numpy().tobytes()


def test_large_binary_tensors_are_views_of_the_body() -> None:
    array = np.arange(100_000, dtype=np.int32)
    item = {
        "name": "x",
        "datatype": "INT32",
        "shape": [100_000],
        "parameters": {"binary_data_size": array.nbytes},
    }
    text = orjson.dumps({"inputs": [item]})
    text += b" " * (-len(text) % 64)
    room = np.empty(len(text) + array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    body = room[start : start + len(text) + array.nbytes]
    body[: len(text)] = np.frombuffer(text, np.uint8)
    body[len(text) :] = array.view(np.uint8)
    request, _ = decode_request(body.data, {JSON_LENGTH: b"%d" % len(text)})
    assert np.shares_memory(request.inputs["x"].numpy(), body)
    np.testing.assert_array_equal(request.inputs["x"].numpy(), array)


def test_outputs_come_as_asked_for() -> None:
    response = InferenceResponse(
        {
            "a": Tensor.from_numpy(np.array([1, 2], np.int32)),
            "b": Tensor.from_numpy(np.array([0.5], np.float32)),
        },
        {"note": "x"},
    )
    asked = [{"name": "b", "parameters": {"binary_data": True}}]
    _, wanted = decode_request(*body_of([], outputs=asked))
    answer = encode_response(response, wanted, "m", "1", "r")
    split = int(dict(answer.headers)[JSON_LENGTH])
    assert orjson.loads(joined(answer)[:split]) == {
        "model_name": "m",
        "model_version": "1",
        "id": "r",
        "parameters": {"note": "x"},
        "outputs": [{"name": "b", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}],
    }
    assert joined(answer)[split:] == np.array([0.5], np.float32).tobytes()

    # An output's own wish goes before the request's.
    asked = [{"name": "b", "parameters": {"binary_data": False}}, {"name": "a"}]
    _, wanted = decode_request(*body_of([], outputs=asked, parameters={"binary_data_output": True}))
    answer = encode_response(response, wanted, "m", "1", "r")
    split = int(dict(answer.headers)[JSON_LENGTH])
    outputs = orjson.loads(joined(answer)[:split])["outputs"]
    assert outputs == [
        {"name": "b", "shape": [1], "datatype": "FP32", "data": [0.5]},
        {"name": "a", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}},
    ]

    _, wanted = decode_request(*body_of([], outputs=[{"name": "c"}]))
    with pytest.raises(InvalidRequest, match="no output 'c'; it gave 'a', 'b'"):
        encode_response(response, wanted, "m", "1", "r")


def test_requests_without_an_id_get_one_each() -> None:
    _, wanted = decode_request(*body_of([]))
    ids = {
        orjson.loads(joined(encode_response(InferenceResponse({}), wanted, "m", "1", "")))["id"]
        for _ in range(9)
    }
    assert len(ids) == 9


def test_parameters_and_timeout() -> None:
    parameters = {"a": 1, "b": "x", "c": True, "d": 0.5, "timeout": 1500, "binary_data_output": False}
    request, wanted = decode_request(*body_of([], parameters=parameters))
    assert request.parameters == {"a": 1, "b": "x", "c": True, "d": 0.5, "timeout": 1500}
    assert wanted.timeout == 0.0015


X = {"name": "x", "datatype": "FP32", "shape": [2]}
BINARY = {**X, "parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"", {}, "not JSON"),
        (b"\x00\x01", {}, "Inference-Header-Content-Length"),
        (b"[]", {}, "must be a JSON object"),
        (b"{}", {}, "'inputs' must be a list, got null"),
        (*body_of([5]), "element 0 has 5"),  # type: ignore[list-item]
        (*body_of([{}]), "element 0 has 'name': null"),
        (
            *body_of([{**X, "datatype": "FLOAT"}]),
            r"input 'x': 'datatype' must be one of BOOL, .* got 'FLOAT'",
        ),
        (*body_of([{**X, "shape": None}]), "input 'x': 'shape' must be a list"),
        (*body_of([{**X, "shape": [-1]}]), "input 'x': 'shape' must hold integers of 0 or more, got -1"),
        (*body_of([{**X, "shape": [True]}]), "got true"),
        (*body_of([{**X, "shape": [1 << 40, 1 << 40]}]), "larger than any request"),
        (*body_of([{**X, "shape": [1 << 62, 0]}]), "larger than any request"),
        (*body_of([{**X, "shape": [1] * 33}]), "33 dimensions"),
        (*body_of([X]), "input 'x' has neither 'data' nor"),
        (*body_of([{**X, "data": [1, 2, 3]}]), r"input 'x' has shape \[2\].* 'data' holds 3"),
        (*body_of([{**X, "data": [1, 2]}, {**X, "data": [1, 2]}]), "input 'x' is given twice"),
        (*body_of([{**BINARY, "data": [1, 2]}], b"12345678"), "both 'data' and 'binary_data_size'"),
        (*body_of([BINARY], b"1234567"), "says it has 8 bytes of binary data, but only 7 are left"),
        (*body_of([BINARY], b"123456789"), "1 bytes follow the last input"),
        (*body_of([{**X, "data": [1, 2]}], b"1"), "1 bytes follow the last input"),
        (
            *body_of([{**BINARY, "shape": [3]}], b"12345678"),
            r"input 'x': FP32 with shape \[3\] needs 12 bytes, got 8",
        ),
        (
            *body_of([{**X, "parameters": {"binary_data_size": -1}}]),
            "'binary_data_size' must be 0 or more, got -1",
        ),
        (*body_of([{**X, "parameters": {"binary_data_size": 8.0}}]), "must be 0 or more, got 8.0"),
        (*body_of([{**X, "parameters": []}]), "'parameters' of input 'x' must be an object"),
        (
            *body_of([{**BINARY, "datatype": "BYTES"}], b"\x09\0\0\0ABCD"),
            "input 'x': BYTES element 0 says it has 9",
        ),
        (
            *body_of([{**BINARY, "datatype": "BYTES", "shape": [1 << 39]}], b"12345678"),
            "needs 549755813888 elements",
        ),
        (*body_of([], parameters=[]), "'parameters' of the request must be an object"),
        (*body_of([], parameters={"a": {}}), "parameter 'a' of the request must be"),
        (*body_of([], parameters={"binary_data_output": 1}), "must be true or false, got 1"),
        (*body_of([], parameters={"timeout": -1}), "'timeout' must be microseconds"),
        (*body_of([], outputs={}), "'outputs' must be a list"),
        (*body_of([], outputs=[{"name": "y"}, {"name": "y"}]), "output 'y' is asked for twice"),
        (
            *body_of([], outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]),
            "output 'y': 'binary_data'",
        ),
        (*body_of([], id=5), "'id' must be a string, got 5"),
        (b"{}", {JSON_LENGTH: b"3"}, "at most the body's 2 bytes, got '3'"),
        (b"{}", {JSON_LENGTH: b"-1"}, "got '-1'"),
        (b"{}", {JSON_LENGTH: b"9" * 5000}, "Inference-Header-Content-Length must be a number"),
    ],
)
def test_bad_requests_are_refused_with_what_is_wrong(body: bytes, headers: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        decode_request(body, headers)
    assert len(str(caught.value)) < 400


def test_classification_and_shared_memory_are_not_supported() -> None:
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    for body in (
        body_of([], outputs=[{"name": "y", "parameters": {"classification": 3}}]),
        body_of([], outputs=[{"name": "y", "parameters": region}]),
        body_of([{**X, "parameters": region}]),
    ):
        with pytest.raises(NotSupported):
            decode_request(*body)


def test_unknown_fields_are_left_alone() -> None:
    request, _ = decode_request(*body_of([{**X, "data": [1, 2], "comment": {}}], unknown=[1]))
    assert request.inputs["x"].numpy().tolist() == [1, 2]


def test_bytes_outputs_that_are_not_utf8_must_be_binary() -> None:
    response = InferenceResponse({"y": Tensor.from_numpy(np.array([b"\xff"], dtype=object))})
    _, wanted = decode_request(*body_of([]))
    with pytest.raises(InvalidRequest, match=r"output 'y' .*binary_data"):
        encode_response(response, wanted, "m", "1", "")


def test_requested_output_objects_of_tritonclient_are_understood() -> None:
    body, _ = InferenceServerClient.generate_request_body(
        [], outputs=[InferRequestedOutput("a", binary_data=False), InferRequestedOutput("b")]
    )
    _, wanted = decode_request(body, {})
    assert wanted.outputs == {"a": False, "b": True}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
DIMS = st.lists(st.integers(-1, 4) | st.sampled_from([2**31, 2**63, 2**64 - 1]), max_size=4)
INPUTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y", ""]) | VALUES,
        "datatype": st.sampled_from(list(DTYPES)) | VALUES,
        "shape": DIMS | VALUES,
        "data": st.lists(st.integers(0, 1) | st.floats(-2, 2) | st.text(max_size=2), max_size=5) | VALUES,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40) | VALUES}) | VALUES,
    },
)
VALID = st.one_of(
    [
        st.builds(
            lambda dims, dtype=dtype: {
                "name": "x",
                "datatype": dtype,
                "shape": dims,
                "data": ["1" if dtype == "BYTES" else 1] * math.prod(dims),
            },
            st.lists(st.integers(0, 3), max_size=3),
        )
        for dtype in DTYPES
    ]
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(INPUTS, max_size=3) | VALUES},
    optional={
        "id": VALUES,
        "outputs": st.lists(st.fixed_dictionaries({"name": VALUES}, optional={"parameters": VALUES}))
        | VALUES,
        "parameters": st.dictionaries(st.sampled_from(["timeout", "binary_data_output", "a"]), VALUES)
        | VALUES,
    },
)


@settings(max_examples=1000)
@given(
    st.one_of(
        st.binary(max_size=60),
        REQUESTS.map(orjson.dumps),
        st.builds(lambda item, change: orjson.dumps({"inputs": [{**item, **change}]}), VALID, INPUTS),
        st.builds(lambda item, request: orjson.dumps({**request, "inputs": [item]}), VALID, REQUESTS),
        VALID.map(lambda item: orjson.dumps({"inputs": [item]})),
    ),
    st.just(b"") | st.binary(max_size=40),
    st.none() | st.just("json") | st.integers(-2, 60) | st.binary(max_size=4),
)
def test_any_body_is_read_or_refused_as_an_error_of_ours(text: bytes, raw: bytes, split: Any) -> None:
    headers = {}
    if split is not None:
        value = len(text) if split == "json" else split
        headers[JSON_LENGTH] = value if isinstance(value, bytes) else str(value).encode()
    try:
        request, wanted = decode_request(text + raw, headers)
    except (InvalidRequest, NotSupported) as error:
        count("V2 bodies that were refused")
        if len(str(error)) >= 1000:
            pytest.fail(f"refused at length: {error}")
        return
    count("V2 bodies that were read")
    wanted.outputs = None
    # What is not UTF-8 is the one thing that JSON cannot carry.
    with contextlib.suppress(InvalidRequest):
        encode_response(InferenceResponse(dict(request.inputs)), wanted, "m", "1", request.id)
