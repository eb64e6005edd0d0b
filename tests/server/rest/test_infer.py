"""V2 REST inference against a server in its own process: tritonclient, and bodies it would not send."""

from __future__ import annotations

import gzip
import http.client
import select
import threading
import time
import zlib
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from kserve_wasm.server.rest.codec import MAX_JSON_BYTES
from tests.server.process import Server
from tests.server.rest.conftest import MAX_REQUEST_BYTES
from tests.support.counts import count

NUMERIC = (
    np.bool_, np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64,
    np.float16, ml_dtypes.bfloat16, np.float32, np.float64,
)  # fmt: skip
SHAPES = ((), (0,), (0, 4), (1,), (3, 0, 2), (2, 3, 4))


def infer(
    client: InferenceServerClient,
    array: Any,
    model: str = "echo",
    binary: bool = True,
    binary_output: bool | None = True,
    **options: Any,
) -> Any:
    """Send ``array`` as input x and give back output x."""
    item = InferInput("x", list(array.shape), np_to_triton_dtype(array.dtype))
    item.set_data_from_numpy(array, binary_data=binary)
    outputs = None if binary_output is None else [InferRequestedOutput("x", binary_data=binary_output)]
    return client.infer(model, [item], outputs=outputs, **options)


def post(
    server: Server, path: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, Any, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.request("POST", path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def request_of(**change: Any) -> bytes:
    item = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2.5]} | change
    return orjson.dumps({"inputs": [item]})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda d: np.dtype(d).name)
def test_every_type_and_shape_comes_back_equal(client: InferenceServerClient, dtype: Any, shape: Any) -> None:
    array = np.random.default_rng(7).integers(0, 2, shape).astype(dtype)
    bf16 = dtype is ml_dtypes.bfloat16
    for binary in (True, False):
        for binary_output in (True, False, None):
            if bf16 and not binary:
                continue  # tritonclient refuses to send BF16 as JSON
            if bf16 and binary_output is False:
                continue  # and cannot read it; the codec's own tests do
            found = infer(client, array, binary=binary, binary_output=binary_output).as_numpy("x")
            assert found.dtype == array.dtype
            assert found.shape == array.shape
            np.testing.assert_array_equal(found, array)


def test_bf16_is_numbers_in_json(server: Server) -> None:
    body = request_of(datatype="BF16", data=[1.5, 3.14159])
    status, _, answer = post(server, "/v2/models/echo/infer", body)
    assert status == 200
    (output,) = orjson.loads(answer)["outputs"]
    expected = np.array([1.5, 3.14159]).astype(ml_dtypes.bfloat16).astype(np.float32).tolist()
    assert (output["datatype"], output["data"]) == ("BF16", expected)


def test_bytes_that_are_not_utf8_come_back_equal(client: InferenceServerClient) -> None:
    array = np.array([[b"\x00\xff\xfe", b""], ["é".encode(), b"plain"]], dtype=object)
    assert infer(client, array).as_numpy("x").tolist() == array.tolist()
    with pytest.raises(InferenceServerException, match=r"output 'x' .*not UTF-8.*binary_data") as caught:
        infer(client, array, binary_output=False)
    assert caught.value.status() == "400"


def test_twelve_megabytes_come_back_equal(client: InferenceServerClient) -> None:
    array = np.random.default_rng(7).random((3, 1000, 1000), np.float32)
    np.testing.assert_array_equal(infer(client, array).as_numpy("x"), array)
    np.testing.assert_array_equal(
        infer(client, array[0], binary=False, binary_output=False).as_numpy("x"), array[0]
    )


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests_and_answers(client: InferenceServerClient, coding: str) -> None:
    for array in (np.arange(50_000, dtype=np.int64), np.arange(3, dtype=np.int64)):
        result = infer(
            client, array, request_compression_algorithm=coding, response_compression_algorithm=coding
        )
        np.testing.assert_array_equal(result.as_numpy("x"), array)


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", lambda data: zlib.compress(data)[2:-4]),
        ("identity", bytes),
    ],
)
def test_other_forms_of_the_codings(server: Server, coding: str, compress: Any) -> None:
    body = compress(request_of())
    status, _, answer = post(server, "/v2/models/echo/infer", body, {"Content-Encoding": coding})
    assert (status, orjson.loads(answer)["outputs"][0]["data"]) == (200, [1, 2.5])


def test_answers_are_compressed_when_one_coding_is_asked_for(server: Server) -> None:
    large = request_of(shape=[1000], data=[1] * 1000)
    for accept, coding in (("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate", None), (None, None)):
        status, headers, body = post(
            server, "/v2/models/echo/infer", large, {"Accept-Encoding": accept} if accept else {}
        )
        assert (status, headers["content-encoding"]) == (200, coding)
        plain = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[coding](body)
        assert len(orjson.loads(plain)["outputs"][0]["data"]) == 1000
    _, headers, _ = post(server, "/v2/models/echo/infer", request_of(), {"Accept-Encoding": "gzip"})
    assert headers["content-encoding"] is None


@pytest.mark.parametrize(
    ("coding", "body", "status", "message"),
    [
        ("gzip", b"not gzip", 400, "not valid gzip"),
        ("gzip", gzip.compress(request_of())[:-9], 400, "ends inside"),
        ("gzip", gzip.compress(request_of()) + b"rest", 400, "4 bytes follow"),
        ("deflate", zlib.compress(request_of()) + b"rest", 400, "4 bytes follow"),
        ("br", b"", 400, "'br' is not supported"),
        ("gzip", gzip.compress(bytes(MAX_REQUEST_BYTES + 1), 1), 413, "larger than the limit"),
    ],
)
def test_bad_compressed_bodies_are_refused(
    server: Server, coding: str, body: bytes, status: int, message: str
) -> None:
    found, _, answer = post(server, "/v2/models/echo/infer", body, {"Content-Encoding": coding})
    assert found == status
    assert message in orjson.loads(answer)["error"]


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "application/json; charset=utf-8", "application/octet-stream", "text/plain"],
)
@pytest.mark.parametrize(
    "path", ["/v2/models/echo/infer", "/v2/models/echo/infer?x=1", "/v2/models/ec%68o/infer"]
)
def test_the_content_type_does_not_matter(server: Server, content_type: str | None, path: str) -> None:
    status, headers, answer = post(
        server, path, request_of(), {"Content-Type": content_type} if content_type else {}
    )
    assert (status, headers["content-type"]) == (200, "application/json")
    assert orjson.loads(answer)["outputs"][0]["data"] == [1, 2.5]


def test_ids_parameters_and_requested_outputs(client: InferenceServerClient) -> None:
    array = np.ones(2, np.float32)
    answer = infer(client, array, request_id="my id").get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("my id", "echo", "1")
    assert infer(client, array).get_response()["id"] != infer(client, array).get_response()["id"]
    assert infer(client, array, parameters={"a": 1, "b": "c", "d": True}).as_numpy("x").tolist() == [1, 1]

    inputs = [InferInput(name, [2], "FP32").set_data_from_numpy(array) for name in ("a", "b")]
    assert [o["name"] for o in client.infer("echo", inputs).get_response()["outputs"]] == ["a", "b"]
    only = client.infer("echo", inputs, outputs=[InferRequestedOutput("b")]).get_response()
    assert [o["name"] for o in only["outputs"]] == ["b"]
    with pytest.raises(InferenceServerException, match="output 'c'"):
        client.infer("echo", inputs, outputs=[InferRequestedOutput("c")])


def test_versions(client: InferenceServerClient) -> None:
    array = np.ones(2, np.float32)
    for version in ("", "7"):
        assert infer(client, array, "numbered", model_version=version).get_response()["model_version"] == "7"
    with pytest.raises(InferenceServerException, match="version '9'") as caught:
        infer(client, array, "numbered", model_version="9")
    assert caught.value.status() == "404"


def checked(**change: Any) -> bytes:
    inputs = {
        "x": {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]},
        "n": {"name": "n", "datatype": "INT32", "shape": [], "data": [1]},
    }
    for name, update in change.items():
        inputs[name] = inputs.get(name, {}) | update
    return orjson.dumps({"inputs": [item for item in inputs.values() if item.get("name")]})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (checked(n={"name": None}), "input 'n' is missing; the model takes 'n', 'x', got 'x'"),
        (checked(y={"name": "y", "datatype": "INT8", "shape": [0], "data": []}), "unknown input 'y'"),
        (checked(x={"datatype": "FP64"}), "input 'x' must be FP32, got FP64"),
        (checked(x={"shape": [4]}), "input 'x' must have shape [-1, 4] (-1: any size), got [4]"),
        (
            checked(x={"data": [1, 2]}),
            "input 'x' has shape [1, 4], that is 4 elements, but its 'data' holds 2",
        ),
        (checked(n={"data": [2**31]}), "input 'n': element 0 must be within INT32"),
        (checked(n={"data": [1.5]}), "input 'n': element 0 must be an integer (INT32), got 1.5"),
    ],
)
def test_inputs_that_the_model_does_not_take(server: Server, body: bytes, message: str) -> None:
    status, _, answer = post(server, "/v2/models/checked/infer", body)
    assert status == 400
    assert message in orjson.loads(answer)["error"]


def test_unknown_outputs_are_refused_before_the_model_runs(server: Server) -> None:
    body = orjson.loads(checked()) | {"outputs": [{"name": "z"}]}
    status, _, answer = post(server, "/v2/models/checked/infer", orjson.dumps(body))
    assert (status, orjson.loads(answer)["error"]) == (400, "unknown output 'z'; the model has 'n', 'x'")


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        ("reject", 422, "the picture is upside down"),
        ("trap", 500, "trap"),
        ("endless", 504, "deadline"),
        ("nobody", 404, "nobody"),
    ],
)
@pytest.mark.parametrize("query", ["", "?"])
def test_failures_have_their_status_and_say_what_happened(
    server: Server, model: str, status: int, message: str, query: str
) -> None:
    found, headers, answer = post(server, f"/v2/models/{model}/infer{query}", request_of())
    assert (found, headers["content-type"]) == (status, "application/json")
    error = orjson.loads(answer)["error"]
    assert message in error
    assert "/" not in error
    assert "Traceback" not in error


def test_the_clients_own_timeout_counts(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        infer(client, np.ones(2, np.float32), "slow", timeout=20_000)
    assert caught.value.status() == "504"


@pytest.mark.parametrize("datatype", ['"BYTES"', r'"B\u0059TES"'])
def test_many_strings_do_not_hold_up_other_clients(server: Server, datatype: str) -> None:
    count = 4_000_000
    text = (
        f'{{"inputs": [{{"name": "x", "datatype": {datatype}, "shape": [{count}], '
        f'"parameters": {{"binary_data_size": {4 * count}}}}}], "parameters": {{"binary_data_output": true}}}}'
    ).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=120)
    try:
        connection.request(
            "POST",
            "/v2/models/checked/infer",
            text + bytes(4 * count),
            {"Inference-Header-Content-Length": str(len(text))},
        )
        # Sent: what is left of it in the sockets' buffers is read in no time.
        time.sleep(0.2)
        assert requests.get(f"{server.http}/v2/health/live", timeout=120).ok
        assert not select.select([connection.sock], [], [], 0)[0], "the strings were read first"
        assert connection.getresponse().status == 400
    finally:
        connection.close()


def test_json_has_a_limit_of_its_own(server: Server) -> None:
    large = b" " * MAX_JSON_BYTES + request_of()
    for body, headers in ((large, {}), (gzip.compress(large, 1), {"Content-Encoding": "gzip"})):
        status, _, answer = post(server, "/v2/models/echo/infer", body, headers)
        assert status == 413
        assert "binary_data_size" in orjson.loads(answer)["error"]
    status, _, _ = post(server, "/v2/models/echo/infer", large[len(request_of()) :])
    assert status == 200


def test_a_full_queue_says_when_to_come_back(server: Server) -> None:
    answers: list[tuple[int, Any, Any]] = []

    def ask() -> None:
        answers.append(post(server, "/v2/models/narrow/infer", request_of()))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _, _ in answers) == [200, 200, 429, 429]
    for status, headers, _ in answers:
        assert (headers["retry-after"] is not None) == (status == 429)
        assert status != 429 or int(headers["retry-after"]) >= 1


@settings(max_examples=200)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.builds(lambda a, b: request_of()[:a] + b, st.integers(0, 70), st.binary(max_size=9)),
    ),
    st.dictionaries(
        st.sampled_from(
            ["Content-Type", "Inference-Header-Content-Length", "Content-Encoding", "Accept-Encoding"]
        ),
        st.text("0123456789gzip, deflate;q=*/", max_size=12).map(str.strip),
    ),
)
def test_no_body_is_a_server_error(server: Server, body: bytes, headers: dict[str, str]) -> None:
    status, _, answer = post(server, "/v2/models/echo/infer", body, headers)
    count(f"V2 requests of random bytes that ended with {status}")
    assert status in (200, 400, 413, 501)
    assert (status == 200) != (
        "error" in orjson.loads(answer) if not headers.get("Accept-Encoding") else status != 200
    )
