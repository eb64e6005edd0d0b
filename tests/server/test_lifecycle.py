"""Start, readiness, drain and stop."""

from __future__ import annotations

import datetime
import ipaddress
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue

import grpc
import numpy as np
import pytest
import requests
import tritonclient.grpc as triton
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tritonclient.utils import InferenceServerException

from tests.backends import models as onnx_models
from tests.backends.models import mlp_oracle
from tests.server import models
from tests.server.process import START_SECONDS, Server

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0]}]}
MLP_BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}


def infer(client: triton.InferenceServerClient, model: str, shape=(1, 4), **options):
    item = triton.InferInput("x", list(shape), "FP32")
    item.set_data_from_numpy(np.ones(shape, np.float32))
    return client.infer(model, [item], **options)


def start_infer(client: triton.InferenceServerClient, model: str, answers: SimpleQueue):
    """Ask without waiting; ``answers`` gets the error that the answer is, or None."""

    def done(result, error) -> None:
        del result
        answers.put(error)

    item = triton.InferInput("x", [1, 1], "FP32")
    item.set_data_from_numpy(np.ones((1, 1), np.float32))
    return client.async_infer(model, [item], done)


def wait_for(server: Server, name: str, expected: float, **labels: str) -> None:
    end = time.monotonic() + START_SECONDS
    while server.metrics().get((name, frozenset(labels.items()))) != expected:
        assert time.monotonic() < end, f"{name}{labels} never became {expected}:\n{server.log}"
        time.sleep(0.02)


def wait_in_flight(server: Server, model: str, count: int) -> None:
    wait_for(server, "kserve_wasm_requests_in_flight", count, model=model, version="1")


@pytest.fixture
def slow_and_quick(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    models.write_guest(models.SLOW, root / "slow", "instances: {workers: 4}\n")
    models.write_onnx(onnx_models.mlp(), root / "mlp")
    return root


def test_sigterm_drains_then_lets_running_requests_of_both_protocols_end(start_server, slow_and_quick):
    server = start_server(f"--model_dir={slow_and_quick}", "--drain_seconds=5", "--grace_period=50")
    server.wait_ready()
    with (
        ThreadPoolExecutor(1) as pool,
        requests.Session() as session,
        triton.InferenceServerClient(server.grpc) as client,
    ):
        over_rest = pool.submit(requests.post, f"{server.http}/v2/models/slow/infer", json=BODY, timeout=60)
        errors: SimpleQueue = SimpleQueue()
        start_infer(client, "slow", errors)
        wait_in_flight(server, "slow", 2)

        watching = grpc.insecure_channel(server.grpc)
        watch = watching.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert next(watch) == b"\x08\x01"  # SERVING

        server.signal(signal.SIGTERM)
        server.wait_for_log("draining")
        assert list(watch) == [b"\x08\x02"]  # NOT_SERVING, and the stream ends
        watching.close()
        assert session.get(f"{server.http}/v2/health/ready", timeout=10).status_code == 503
        assert session.get(f"{server.http}/v2/health/live", timeout=10).status_code == 200
        assert not client.is_server_ready()
        assert client.is_server_live()
        with grpc.insecure_channel(server.grpc) as channel:
            assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x02"  # NOT_SERVING
        # Whoever has not heard of it yet is still answered, and told not to use the connection again.
        v1_body = {"instances": [[1, 1, 1, 1]]}
        for path, body in (("v2/models/mlp/infer", MLP_BODY), ("v1/models/mlp:predict", v1_body)):
            answer = requests.post(f"{server.http}/{path}", json=body, timeout=10)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close"), path
        np.testing.assert_allclose(
            infer(client, "mlp").as_numpy("y"), mlp_oracle(np.ones((1, 4), np.float32)), rtol=1e-5, atol=1e-6
        )

        assert over_rest.result().status_code == 200
        assert errors.get(timeout=START_SECONDS) is None
        assert server.wait() == 0


def test_a_second_signal_stops_at_once(start_server, slow_and_quick):
    server = start_server(f"--model_dir={slow_and_quick}", "--drain_seconds=600")
    server.wait_ready()
    server.signal(signal.SIGTERM)
    server.wait_for_log("draining")
    server.signal(signal.SIGTERM)
    assert server.wait() == 128 + signal.SIGTERM


def test_ctrl_c_does_not_wait_for_load_balancers(start_server, slow_and_quick):
    server = start_server(f"--model_dir={slow_and_quick}", "--drain_seconds=600")
    server.wait_ready()
    server.signal(signal.SIGINT)
    assert server.wait() == 0


def test_the_grace_period_ends_a_guest_that_does_not(start_server, tmp_path):
    models.write_guest(models.FOREVER, tmp_path / "m", "limits: {timeout: 600}\n")
    server = start_server("--model_name=m", f"--model_dir={tmp_path / 'm'}", "--grace_period=0.5")
    server.wait_ready()
    with triton.InferenceServerClient(server.grpc) as client:
        errors: SimpleQueue = SimpleQueue()
        start_infer(client, "m", errors)
        wait_in_flight(server, "m", 1)
        assert server.stop() == 0


def test_the_one_model_that_does_not_load_ends_the_process_with_the_reason(start_server, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.wasm").write_bytes(b"not wasm")
    server = start_server("--model_name=m", f"--model_dir={tmp_path / 'm'}")
    assert server.wait() == 1
    listening, line = server.log.splitlines()
    assert "listening" in listening
    assert "ERROR" in line
    assert f"model m did not load from {tmp_path / 'm'}: " in line


def test_a_model_directory_that_is_not_there_ends_the_process_with_the_reason(start_server, tmp_path):
    server = start_server("--model_name=m", f"--model_dir={tmp_path / 'nowhere'}")
    assert server.wait() == 1
    (line,) = [line for line in server.log.splitlines() if "ERROR" in line]
    assert "does not exist" in line


def test_one_broken_model_of_many_makes_the_server_live_not_ready_and_says_why(start_server, tmp_path):
    root = tmp_path / "models"
    models.write_onnx(onnx_models.mlp(), root / "mlp")
    (root / "broken").mkdir()
    (root / "broken" / "model.wasm").write_bytes(b"not wasm")
    server = start_server(f"--model_dir={root}")
    server.wait_listening()
    server.wait_for_log("model mlp serves version 1")
    assert requests.get(f"{server.http}/v2/health/live", timeout=10).status_code == 200
    assert requests.get(f"{server.http}/v2/health/ready", timeout=10).status_code == 503
    with triton.InferenceServerClient(server.grpc) as client:
        assert not client.is_server_ready()
        assert client.is_model_ready("mlp")
        assert infer(client, "mlp").as_numpy("y").shape == (1, 3)
        with pytest.raises(InferenceServerException) as raised:
            infer(client, "broken")
        assert raised.value.status() == "StatusCode.UNAVAILABLE"
        (row,) = [row for row in client.get_model_repository_index().models if row.name == "broken"]
        assert row.state == "UNAVAILABLE"
        assert "expected a WebAssembly module" in row.reason

        # Mended and loaded again, the server is ready.
        (root / "broken" / "model.wasm").unlink()
        models.write_guest(models.ECHO, root / "mended")
        (root / "mended" / "model.wasm").rename(root / "broken" / "model.wasm")
        client.load_model("broken")
        assert client.is_server_ready()


def test_a_typo_in_a_flag_ends_the_process_and_is_named(start_server):
    server = start_server("--model_nam=m")
    assert server.wait() == 2
    assert "unrecognized arguments: --model_nam=m" in server.log


WRONG_FLAGS = {
    "--workers=0": "must be 1 or more",
    "--workers=two": "invalid int value",
    "--drain=1": "unrecognized arguments: --drain=1",
    "--grace_period=-1": "expected 0 or more",
    "--drain_seconds=soon": "expected a number",
    "--max_request_bytes=0": "expected more than 0",
    "--gpu=perhaps": "expected true or false",
    "--model_dir=/nowhere/at/all": "is not a directory",
    "--http_port=80000": "--http_port: expected a port from 0 (takes a free one) to 65535, got '80000'",
    "--grpc_port=-1": "--grpc_port: expected a port",
    "--http_port=abc": "--http_port: expected a port",
    "--model_name=x y/z": "--model_name: expected letters, digits",
}


def test_wrong_flags_are_named():
    # One process for all of them: importing kserve is what takes time.
    script = """
import contextlib, io, json, sys
from kserve_wasm.server.main import main
outcomes = {}
for flag in json.loads(sys.argv.pop()):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main([flag])
        except SystemExit as end:
            outcomes[flag] = (end.code, said.getvalue())
print(json.dumps(outcomes))
"""
    command = [sys.executable, "-c", script, json.dumps(list(WRONG_FLAGS))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=True)
    outcomes = json.loads(done.stdout)
    for flag, words in WRONG_FLAGS.items():
        status, said = outcomes[flag]
        assert status == 2, flag
        assert words in said, flag
        # The one line that counts, without the usage of thirty others.
        assert said.count("\n") == 1, said


def test_a_port_that_is_taken_ends_the_process_and_is_named(start_server, slow_and_quick):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flag in ("--http_port", "--grpc_port"):
            server = start_server(f"--model_dir={slow_and_quick}", f"{flag}={port}")
            assert server.wait() == 1
            (line,) = server.log.splitlines()
            assert f"cannot listen: {flag} {port} on --host 127.0.0.1: Address already in use; choose" in line


def test_help_shows_the_flags_that_have_an_effect():
    command = [sys.executable, "-m", "kserve_wasm", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=True).stdout
    assert "--http_port" in shown
    assert "--grace_period" in shown
    for flag in ("--predictor_", "--protocol", "--enable_latency_logging", "--max_threads"):
        assert flag not in shown


def test_without_flags_the_directory_is_what_is_missing():
    command = [sys.executable, "-m", "kserve_wasm"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False).stderr
    assert "--model_dir is missing, and its default /mnt/models is not a directory" in said


def test_a_name_for_many_models_has_no_effect_and_the_log_says_so(start_server, slow_and_quick):
    server = start_server(
        f"--model_dir={slow_and_quick}", "--model_name=m", "--predictor_host=x", "--enable_docs_url=true"
    )
    server.wait_ready()
    assert "--model_name m has no effect" in server.log
    assert requests.post(f"{server.http}/v2/models/mlp/infer", json=MLP_BODY, timeout=10).ok
    assert "swagger" in requests.get(f"{server.http}/docs", timeout=10).text


def test_the_environment_gives_the_defaults(start_server, slow_and_quick):
    server = start_server(
        environment={"MODEL_NAME": "named", "MODEL_PATH": str(slow_and_quick / "mlp"), "ENABLE_GRPC": "false"}
    )
    server.wait_ready()
    assert server.grpc_port == 0
    assert requests.get(f"{server.http}/v2/models/named", timeout=10).json()["name"] == "named"


def test_what_kubernetes_sets_for_services_is_no_port(start_server, slow_and_quick):
    """Beside a Service named http every container finds HTTP_PORT=tcp://10.0.0.1:80."""
    server = start_server(
        f"--model_dir={slow_and_quick}",
        environment={"HTTP_PORT": "tcp://10.0.0.1:80", "GRPC_PORT": "tcp://10.0.0.1:81"},
    )
    server.wait_ready()


def test_a_model_image_that_is_mounted_late_is_waited_for(start_server, slow_and_quick, tmp_path):
    late = tmp_path / "late"
    server = start_server(f"--model_dir={late}", "--model_name=mlp", environment={"MODEL_INIT_MODE": "async"})
    server.wait_for_log("waiting for")
    assert server.process.poll() is None
    late.symlink_to(slow_and_quick / "mlp")
    server.wait_ready()
    assert requests.post(f"{server.http}/v2/models/mlp/infer", json=MLP_BODY, timeout=10).ok


def test_a_certificate_secures_both_protocols(start_server, slow_and_quick, tmp_path):
    key, certificate = self_signed(tmp_path)
    server = start_server(
        "--model_name=m",
        f"--model_dir={slow_and_quick / 'mlp'}",
        f"--ssl_keyfile={key}",
        f"--ssl_certfile={certificate}",
    )
    server.wait_for_log("model m serves version 1")
    server.wait_listening()
    ready = f"https://127.0.0.1:{server.http_port}/v2/health/ready"
    assert requests.get(ready, verify=str(certificate), timeout=10).ok
    with triton.InferenceServerClient(server.grpc, ssl=True, root_certificates=str(certificate)) as client:
        assert infer(client, "m").as_numpy("y").shape == (1, 3)
    with triton.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException):
        client.is_server_live()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return folder / "key.pem", folder / "cert.pem"


def test_the_log_holds_what_an_operator_can_use(start_server, slow_and_quick):
    server = start_server("--model_name=m", f"--model_dir={slow_and_quick / 'mlp'}")
    server.wait_ready()
    v1 = f"{server.http}/v1/models/m:predict"
    assert requests.post(v1, json={"instances": [[1, 1, 1, 1]]}, timeout=10).ok
    assert requests.get(f"{server.http}/v1/models", timeout=10).ok
    server.stop()
    said = [line.split("] ")[-1].split(":")[0].split(" version")[0] for line in server.log.splitlines()]
    assert said == ["listening", "model m serves", "draining", "stopped"], server.log


def test_requests_are_not_logged_unless_asked_for(start_server, slow_and_quick):
    logs = []
    for flags in ([], ["--log_requests"]):
        server = start_server("--model_name=m", f"--model_dir={slow_and_quick / 'mlp'}", *flags)
        server.wait_ready()
        with triton.InferenceServerClient(server.grpc) as client:
            infer(client, "m")
        assert requests.post(f"{server.http}/v2/models/m/infer", json=MLP_BODY, timeout=10).ok
        v1 = f"{server.http}/v1/models/m:predict"
        assert requests.post(v1, json={"instances": [[1, 1, 1, 1]]}, timeout=10).ok
        server.stop()
        logs.append(server.log)
    assert "ModelInfer" not in logs[0]
    assert "/v2/models/m/infer" not in logs[0]
    assert logs[1].count("ModelInfer OK") == 1
    assert logs[1].count("/v2/models/m/infer") == 1
    assert logs[1].count("/v1/models/m%3Apredict") == 1
    assert "kserve.io" not in logs[1]
    assert "requestId" not in logs[1]


def test_an_access_log_of_the_users_format_needs_its_package_and_has_a_line_for_each_request(
    start_server, slow_and_quick
):
    server = start_server(
        "--model_name=m", f"--model_dir={slow_and_quick / 'mlp'}", "--access_log_format=%(r)s gave %(s)s"
    )
    if find_spec("asgi_logger") is None:
        assert server.wait() == 2
        assert "needs a package that is not installed: asgi-logger" in server.log
        return
    server.wait_ready()
    assert requests.post(f"{server.http}/v2/models/m/infer", json=MLP_BODY, timeout=10).ok
    server.stop()
    assert server.log.count("POST /v2/models/m/infer HTTP/1.1 gave 200") == 1, server.log
    assert "kserve.io" not in server.log


def test_a_client_that_goes_away_is_counted_as_cancelled(start_server, slow_and_quick):
    server = start_server(f"--model_dir={slow_and_quick}")
    server.wait_ready()
    with triton.InferenceServerClient(server.grpc) as client:
        call = start_infer(client, "slow", SimpleQueue())
        wait_in_flight(server, "slow", 1)
        call.cancel()
        labels = {"model": "slow", "version": "1", "protocol": "v2-grpc", "code": "CANCELLED"}
        wait_for(server, "kserve_wasm_requests_total", 1, **labels)
        assert infer(client, "mlp").as_numpy("y").shape == (1, 3)


def test_a_full_queue_refuses_and_says_when_to_come_back(start_server, tmp_path):
    models.write_guest(models.SLOW, tmp_path / "m", "instances: {workers: 1, queue: 1}\n")
    server = start_server("--model_name=m", f"--model_dir={tmp_path / 'm'}", "--grace_period=50")
    server.wait_ready()
    with triton.InferenceServerClient(server.grpc) as client:
        errors: SimpleQueue = SimpleQueue()
        for _ in range(2):
            start_infer(client, "m", errors)
        wait_in_flight(server, "m", 2)
        with grpc.insecure_channel(server.grpc) as channel:
            with pytest.raises(grpc.RpcError) as raised:
                channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\x0a\x01m")
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert int(dict(raised.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        answer = requests.post(f"{server.http}/v2/models/m/infer", json=BODY, timeout=10)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert [errors.get(timeout=START_SECONDS) for _ in range(2)] == [None, None]


def test_a_reload_under_load_loses_no_request(start_server, slow_and_quick):
    server = start_server(f"--model_dir={slow_and_quick}")
    server.wait_ready()
    expected = mlp_oracle(np.ones((1, 4), np.float32))

    def ask(_: int) -> int:
        with triton.InferenceServerClient(server.grpc) as client:
            for asked in range(1000):
                np.testing.assert_allclose(infer(client, "mlp").as_numpy("y"), expected, rtol=1e-5, atol=1e-6)
                if reloaded.done():
                    return asked
        return asked

    def reload() -> None:
        with triton.InferenceServerClient(server.grpc) as client:
            for _ in range(10):
                client.load_model("mlp")

    with ThreadPoolExecutor(4) as pool:
        reloaded = pool.submit(reload)
        assert sum(pool.map(ask, range(3))) > 0
        reloaded.result()


@pytest.mark.parametrize("path", ["v1/models/mlp:predict", "v2/models/mlp/infer"])
def test_a_reload_loses_no_request_that_is_still_being_read(start_server, slow_and_quick, path):
    server = start_server(f"--model_dir={slow_and_quick}")
    server.wait_ready()
    rows = np.random.default_rng(1).standard_normal((50_000, 4)).astype(np.float32)
    data = rows.tolist()
    item = {"name": "x", "datatype": "FP32", "shape": rows.shape, "data": data}
    body = json.dumps({"instances": data} if path.startswith("v1") else {"inputs": [item]}).encode()

    def ask(_: int) -> set[tuple[int, str]]:
        ends = set()
        with requests.Session() as session:
            while True:
                answer = session.post(f"{server.http}/{path}", body, timeout=60)
                ends.add((answer.status_code, "" if answer.ok else answer.text))
                if reloaded.done():
                    return ends

    def reload() -> None:
        with triton.InferenceServerClient(server.grpc) as client:
            for _ in range(10):
                client.load_model("mlp")

    with ThreadPoolExecutor(4) as pool:
        reloaded = pool.submit(reload)
        assert set().union(*pool.map(ask, range(3))) == {(200, "")}
        reloaded.result()


def test_an_empty_directory_is_ready_when_it_was_looked_at(start_server, tmp_path):
    (tmp_path / "models").mkdir()
    server = start_server(f"--model_dir={tmp_path / 'models'}")
    server.wait_ready()
    models.write_onnx(onnx_models.mlp(), tmp_path / "models" / "mlp")
    with triton.InferenceServerClient(server.grpc) as client:
        client.load_model("mlp")
        assert client.is_server_ready()


def test_a_server_is_not_ready_before_its_first_load():
    script = """
from pathlib import Path
import asyncio
from kserve_wasm.server.repository import WasmModelRepository

repository = WasmModelRepository(Path("/nowhere"), None, None)
assert not repository.ready
assert repository.not_ready_reason
asyncio.run(repository.load_models())
assert repository.ready
assert not repository.not_ready_reason
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=START_SECONDS
    )
    assert done.returncode == 0, done.stderr
