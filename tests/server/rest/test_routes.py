"""The V2 routes around inference, with tritonclient and as KServe's clients read them."""

from __future__ import annotations

import gzip
import http.client
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import requests
import wasmtime
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from tests.server.process import Server
from tests.server.rest.conftest import CHECKED, ECHO, TRAP, http_client, write_model


def call(server: Server, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, orjson.loads(response.read() or b"null")
    finally:
        connection.close()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The model directory of :func:`own_server`."""
    write_model(tmp_path / "models" / "a", ECHO)
    return tmp_path / "models"


@pytest.fixture
def own_server(models: Path, start_server: Callable[..., Server]) -> Server:
    """A server whose models a test may change."""
    server = start_server(f"--model_dir={models}")
    server.wait_ready()
    return server


def ask(client: InferenceServerClient, model: str, **options: Any) -> None:
    client.infer(model, [InferInput("x", [1], "FP32").set_data_from_numpy(np.ones(1, np.float32))], **options)


def status_of(failure: Any) -> str:
    with pytest.raises(InferenceServerException) as caught:
        failure()
    return str(caught.value.status())


def test_health_and_server_metadata(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert {"name", "version", "extensions"} <= metadata.keys()
    assert {"binary_tensor_data", "model_repository", "model_configuration", "statistics"} <= set(
        metadata["extensions"]
    )


def test_model_metadata_and_readiness(client: InferenceServerClient) -> None:
    assert client.is_model_ready("checked")
    assert client.is_model_ready("numbered", "7")
    assert not client.is_model_ready("numbered", "9")
    assert not client.is_model_ready("nobody")
    metadata = client.get_model_metadata("checked")
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("checked", ["1"], "wasm")
    assert metadata["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "n", "datatype": "INT32", "shape": []},
    ]
    assert client.get_model_metadata("numbered", "7")["name"] == "numbered"
    assert status_of(lambda: client.get_model_metadata("numbered", "9")) == "404"
    assert status_of(lambda: client.get_model_metadata("nobody")) == "404"


def test_model_config(client: InferenceServerClient) -> None:
    config = client.get_model_config("checked")
    assert config["name"] == "checked"
    assert config["max_batch_size"] == 0
    assert config["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]},
        {"name": "n", "data_type": "TYPE_INT32", "dims": []},
    ]
    # Of the code alone, which the file's own digest is not.
    assert config["parameters"]["code_digest"]["string_value"].startswith("sha256:")
    assert config["parameters"]["device"]["string_value"] == "cpu"
    assert client.get_model_config("numbered", "7")["name"] == "numbered"
    assert status_of(lambda: client.get_model_config("nobody")) == "404"


def test_statistics_count_requests(own_server: Server) -> None:
    with http_client(own_server) as client:
        before = client.get_inference_statistics("a")["model_stats"][0]
        for _ in range(3):
            ask(client, "a")
        (stats,) = client.get_inference_statistics("a")["model_stats"]
        assert (stats["name"], stats["version"]) == ("a", "1")
        assert stats["inference_count"] == before["inference_count"] + 3
        assert (
            stats["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 3
        )
        assert client.get_inference_statistics("a", "1")["model_stats"] == [stats]
        assert client.get_inference_statistics()["model_stats"] == [stats]
        assert status_of(lambda: client.get_inference_statistics("nobody")) == "404"


def test_the_index_lists_every_model(client: InferenceServerClient) -> None:
    rows = {row["name"]: row for row in client.get_model_repository_index()}
    assert rows["numbered"] == {"name": "numbered", "version": "7", "state": "READY", "reason": ""}
    assert {"echo", "checked", "slow"} <= rows.keys()


def test_load_and_unload(own_server: Server, models: Path) -> None:
    with http_client(own_server) as client:
        write_model(models / "b", ECHO, CHECKED)
        assert status_of(lambda: ask(client, "b")) == "503"
        client.load_model("b")
        assert client.is_model_ready("b")
        assert client.get_model_metadata("b")["inputs"][0]["name"] == "x"
        client.unload_model("b")
        assert not client.is_model_ready("b")
        assert status_of(lambda: ask(client, "b")) == "503"
        ask(client, "a")

        assert call(own_server, "POST", "/v2/repository/models/b/load") == (200, {"name": "b", "load": True})
        assert call(own_server, "POST", "/v2/repository/models/b/unload") == (
            200,
            {"name": "b", "unload": True},
        )
        for path in ("nobody", "..%2Fa", "%2e%2e"):
            assert call(own_server, "POST", f"/v2/repository/models/{path}/load")[0] == 404
            assert call(own_server, "POST", f"/v2/repository/models/{path}/unload")[0] == 404
        assert status_of(lambda: client.load_model("a", config="{}")) == "400"
        ask(client, "a")


def test_a_model_that_fails_to_load_is_named_with_its_reason(own_server: Server, models: Path) -> None:
    broken = models / "broken"
    broken.mkdir()
    (broken / "model.wasm").write_bytes(b"\0asm\1\0\0\0junk")
    with http_client(own_server) as client:
        # 503 would tell clients to try again, which mends nothing.
        assert status_of(lambda: client.load_model("broken")) == "500"
        (row,) = [row for row in client.get_model_repository_index() if row["name"] == "broken"]
        assert row["state"] == "UNAVAILABLE"
        assert row["reason"]
        assert str(models) not in row["reason"]
        assert [
            row["name"] for row in call(own_server, "POST", "/v2/repository/index", b'{"ready": true}')[1]
        ] == ["a"]
        client.unload_model("broken")
        assert row in client.get_model_repository_index(), "unloading what never loaded does not explain it"
        assert own_server.log.count("ERROR") == 1, own_server.log
        assert f"broken did not load from {broken}: " in own_server.log
        assert call(own_server, "POST", "/v2/repository/index", b'{"ready": 1}')[0] == 400
        assert call(own_server, "POST", "/v2/repository/index", b"[")[0] == 400


def test_a_reload_that_fails_is_told_at_the_version_that_serves_on(own_server: Server, models: Path) -> None:
    (models / "a" / "model.yaml").write_text("limitz: {}\n")
    with http_client(own_server) as client:
        assert status_of(lambda: client.load_model("a")) == "500"
        (row,) = client.get_model_repository_index()
        assert (row["version"], row["state"]) == ("1", "READY")
        assert "limitz" in row["reason"]
        ask(client, "a")


def test_a_version_policy_that_cannot_be_followed_names_its_file(own_server: Server, models: Path) -> None:
    (models / "a" / "model.yaml").write_text("version_policy: newest\n")
    status, answer = call(own_server, "POST", "/v2/repository/models/a/load")
    assert status == 500
    assert answer["error"].startswith("model.yaml: version_policy must be")


def test_requests_to_a_model_that_is_not_loaded_leave_no_line_each(own_server: Server) -> None:
    with http_client(own_server) as client:
        client.unload_model("a")
        for _ in range(3):
            assert status_of(lambda: ask(client, "a")) == "503"
    assert "model a is unloaded" in own_server.log
    assert "ERROR" not in own_server.log


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/v2/nothing/here", 404, "Not Found: GET /v2/nothing/here"),
        ("POST", "/nothing", 404, "Not Found: POST /nothing"),
        ("GET", "/v2/models/echo/infer", 405, "Method Not Allowed: GET /v2/models/echo/infer"),
        ("DELETE", "/v1/models/echo", 405, "Method Not Allowed: DELETE /v1/models/echo"),
    ],
)
def test_what_is_no_route_has_the_form_of_every_error(
    server: Server, method: str, path: str, status: int, error: str
) -> None:
    assert call(server, method, path) == (status, {"error": error})


def test_tritonclient_reads_the_answer_of_an_extension_that_is_not_there(
    client: InferenceServerClient,
) -> None:
    assert status_of(client.get_system_shared_memory_status) == "404"


def test_a_version_that_is_not_served_says_what_is_and_what_decides(own_server: Server, models: Path) -> None:
    for version in ("1", "2"):
        write_model(models / "numbered" / version, ECHO)
    with http_client(own_server) as client:
        client.load_model("numbered")
    status, answer = call(own_server, "GET", "/v2/models/numbered/versions/1")
    assert status == 404
    assert "served: 2 (version_policy in model.yaml" in answer["error"]


def test_a_server_that_is_not_ready_says_why(models: Path, start_server: Callable[..., Server]) -> None:
    (models / "bad").mkdir()
    (models / "bad" / "model.wasm").write_bytes(b"no wasm")
    server = start_server(f"--model_dir={models}")
    server.wait_listening()
    server.wait_for_log("not ready: model 'bad'")
    status, answer = call(server, "GET", "/v2/health/ready")
    assert (status, answer["ready"]) == (503, False)
    assert answer["reason"].startswith("model 'bad': ")
    assert "WebAssembly" in answer["reason"]


def test_a_reload_takes_the_new_module_without_a_pause(own_server: Server, models: Path) -> None:
    with http_client(own_server) as client:
        ask(client, "a")
        (models / "a" / "model.wasm").write_bytes(wasmtime.wat2wasm(TRAP))
        client.load_model("a")
        assert status_of(lambda: ask(client, "a")) == "500"


V1_ROWS = {"instances": [[1, 2], [3, 4.5]]}


@pytest.mark.parametrize(
    ("model", "payload", "expected"),
    [
        ("single", V1_ROWS, {"predictions": [[1.0, 2.0], [3.0, 4.5]]}),
        ("single", {"instances": [{"x": [1, 2]}]}, {"predictions": [[1.0, 2.0]]}),
        ("single", {"inputs": [[1, 2]]}, {"outputs": [[1.0, 2.0]]}),
        ("single", {"inputs": {"x": [[1, 2]]}}, {"outputs": [[1.0, 2.0]]}),
        (
            "echo",
            {"instances": [{"a": 1, "t": "é"}, {"a": 2, "t": {"b64": "/w=="}}]},
            {"predictions": [{"a": 1, "t": "é"}, {"a": 2, "t": {"b64": "/w=="}}]},
        ),
        ("echo", {"inputs": {"a": [1, 2], "b": [0.5]}}, {"outputs": {"a": [1, 2], "b": [0.5]}}),
    ],
)
def test_v1_predict(server: Server, model: str, payload: Any, expected: Any) -> None:
    assert call(server, "POST", f"/v1/models/{model}:predict", orjson.dumps(payload)) == (200, expected)


@pytest.mark.parametrize(
    ("model", "payload", "status", "message"),
    [
        (
            "single",
            {"instances": [[1, 2, 3]]},
            400,
            "input 'x' must have shape [-1, 2] (-1: any size), got [1, 3]",
        ),
        ("single", {"instances": [["a", 2]]}, 400, "input 'x': element 0 must be a number"),
        (
            "single",
            {},
            400,
            'either "instances" (a list of rows) or "inputs" (columns by input name), got an empty',
        ),
        ("single", {"instance": []}, 400, "got one with ['instance']"),
        ("single", {"instances": 5}, 400, "instances"),
        ("checked", V1_ROWS, 400, "the model has the inputs 'x', 'n'"),
        ("nobody", V1_ROWS, 404, "nobody"),
        ("reject", V1_ROWS, 422, "the picture is upside down"),
        ("trap", V1_ROWS, 500, "trap"),
        ("endless", V1_ROWS, 504, "deadline"),
    ],
)
def test_v1_errors(server: Server, model: str, payload: Any, status: int, message: str) -> None:
    found, answer = call(server, "POST", f"/v1/models/{model}:predict", orjson.dumps(payload))
    assert found == status
    assert message in answer["error"]


@pytest.mark.parametrize("path", ["/v2/models/single/infer", "/v1/models/single:predict"])
def test_gzip_without_its_header_is_recognised(server: Server, path: str) -> None:
    status, answer = call(server, "POST", path, gzip.compress(orjson.dumps(V1_ROWS)))
    assert status == 400
    assert "it is gzip: that needs the header Content-Encoding: gzip" in answer["error"]


def test_v1_explain_is_refused_calmly(own_server: Server) -> None:
    status, answer = call(own_server, "POST", "/v1/models/a:explain", orjson.dumps(V1_ROWS))
    assert status == 501
    assert "no explainer" in answer["error"]
    assert call(own_server, "POST", "/v1/models/nobody:explain", b"{}")[0] == 404
    assert "Traceback" not in own_server.log
    assert "ERROR" not in own_server.log


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_v1_takes_compressed_bodies(server: Server, coding: str, pack: Any) -> None:
    answer = requests.post(
        f"{server.http}/v1/models/single:predict",
        data=pack(orjson.dumps(V1_ROWS)),
        headers={"Content-Encoding": coding},
        timeout=30,
    )
    assert (answer.status_code, answer.json()) == (200, {"predictions": [[1.0, 2.0], [3.0, 4.5]]})


def test_v1_refuses_a_body_that_is_too_large_compressed_or_not(server: Server) -> None:
    """The server's limit holds for the SDK's routes too; a few compressed bytes may hold gigabytes."""
    zeros = zlib.compressobj(9, wbits=31)
    bomb = b"".join(zeros.compress(bytes(1 << 24)) for _ in range(20)) + zeros.flush()
    url = f"{server.http}/v1/models/single:predict"
    answer = requests.post(url, data=bomb, headers={"Content-Encoding": "gzip"}, timeout=60)
    assert answer.status_code == 413
    with socket.create_connection(("127.0.0.1", server.http_port)) as client:
        client.sendall(
            b"POST /v1/models/single:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_v1_readiness(server: Server) -> None:
    assert call(server, "GET", "/v1/models/echo") == (200, {"name": "echo", "ready": True})
    assert call(server, "GET", "/v1/models/nobody")[0] == 404
    assert "echo" in call(server, "GET", "/v1/models")[1]["models"]
