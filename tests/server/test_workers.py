"""``--workers``: several processes that a client cannot tell from one."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from kserve_wasm.server.settings import count_workers
from kserve_wasm.server.workers import reserve
from kserve_wasm.statistics import Statistics, add_statistics
from tests.backends import models as onnx_models
from tests.backends.models import mlp_oracle
from tests.server import models
from tests.server.process import START_SECONDS, Server

MANY = 30
"""Fresh connections: that the kernel gives all of them to one of two workers happens once in 2**29 times."""
ONES = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}
EMPTY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0]}]}
MLP = {"model": "mlp", "version": "1"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two workers. It must end well, whatever the tests asked of it."""
    root = tmp_path_factory.mktemp("two")
    models.write_onnx(onnx_models.mlp(), root / "models" / "mlp")
    models.write_onnx(onnx_models.mlp(), root / "models" / "spare")
    models.write_guest(models.SLOW, root / "models" / "slow", "instances: {workers: 4}\n")
    server = Server(
        root / "log",
        f"--model_dir={root / 'models'}",
        f"--cache_dir={root / 'cache'}",
        "--drain_seconds=0",
        "--workers=2",
        "--log_requests",
    )
    try:
        server.wait_ready()
        yield server
        assert server.process.poll() is None, f"the server ended during the tests:\n{server.log}"
        assert server.stop() == 0, server.log
        assert "Traceback" not in server.log, server.log
        assert server.log.count("listening:") == 1
    finally:
        server.process.kill()
        server.wait()


def directory(server: Server) -> Path:
    return server.log_file.parent / "models"


def workers(server: Server) -> set[int]:
    """The process ids of the supervisor's children."""
    pid = server.process.pid
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def ask(server: Server, model: str = "mlp", body: object = ONES) -> requests.Response:
    """Infer over a connection of its own."""
    return requests.post(f"{server.http}/v2/models/{model}/infer", json=body, timeout=60)


def ask_grpc(server: Server) -> None:
    """Infer over a connection of its own: gRPC would share one between channels."""
    message = service_pb2.ModelInferRequest(model_name="mlp")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    message.raw_input_contents.append(np.ones(4, np.float32).tobytes())
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=60)


def statuses(server: Server, path: str) -> set[int]:
    """What many fresh connections are answered."""
    return {requests.get(f"{server.http}{path}", timeout=10).status_code for _ in range(MANY)}


def until(condition: Callable[[], object], server: Server) -> None:
    end = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < end, server.log
        time.sleep(0.02)


def value(server: Server, name: str, **labels: str) -> float:
    return server.metrics().get((name, frozenset(labels.items())), 0.0)


def answered(server: Server) -> float:
    """The requests over REST that the server has counted."""
    return value(server, "kserve_wasm_requests_total", **MLP, protocol="v2-rest", code="200")


def inferences(server: Server) -> int:
    """The requests to mlp in its statistics."""
    (row,) = requests.get(f"{server.http}/v2/models/mlp/stats", timeout=10).json()["model_stats"]
    assert row["inference_count"] == row["inference_stats"]["success"]["count"]
    return int(row["inference_count"])


def test_every_worker_answers_both_protocols_and_all_are_counted_once(two: Server):
    expected = mlp_oracle(np.ones((1, 4), np.float32)).ravel()
    for _ in range(MANY):
        answer = ask(two).json()
        np.testing.assert_allclose(answer["outputs"][0]["data"], expected, rtol=1e-5, atol=1e-6)
        ask_grpc(two)
    log = two.log
    assert {int(pid) for pid in re.findall(r" (\d+) \S+ INFO \[.*ModelInfer OK", log)} == workers(two)
    assert {int(pid) for pid in re.findall(r' (\d+) - "POST /v2/models/mlp/infer', log)} == workers(two)

    # A request is counted when its answer is out.
    until(lambda: inferences(two) == 2 * MANY, two)
    until(lambda: value(two, "request_predict_seconds_count", model_name="mlp") == 2 * MANY, two)
    for _ in range(10):  # whichever worker is asked
        assert value(two, "kserve_wasm_requests_total", **MLP, protocol="v2-rest", code="200") == MANY
        assert value(two, "kserve_wasm_requests_total", **MLP, protocol="v2-grpc", code="OK") == MANY
        assert value(two, "kserve_wasm_request_seconds_count", **MLP, protocol="v2-grpc") == MANY
        assert value(two, "request_predict_seconds_count", model_name="mlp") == 2 * MANY
        assert value(two, "kserve_wasm_model_load_seconds_count", **MLP) == 2
        assert inferences(two) == 2 * MANY
    with triton.InferenceServerClient(two.grpc) as client:
        (row,) = client.get_inference_statistics("mlp", as_json=True)["model_stats"]
        assert int(row["inference_count"]) == 2 * MANY


def test_requests_in_flight_are_those_of_every_worker(two: Server):
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, two, "slow", EMPTY) for _ in range(4)]
        until(
            lambda: value(two, "kserve_wasm_requests_in_flight", model="slow", version="1") == 4,
            two,
        )
        assert [answer.result().status_code for answer in answers] == [200] * 4
    until(lambda: value(two, "kserve_wasm_requests_in_flight", model="slow", version="1") == 0, two)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_load_and_an_unload_reach_every_worker_before_they_are_answered(two: Server, protocol: str):
    def change(what: str) -> None:
        if protocol == "rest":
            url = f"{two.http}/v2/repository/models/spare/{what}"
            assert requests.post(url, timeout=60).ok
        else:
            with triton.InferenceServerClient(two.grpc) as client:
                (client.load_model if what == "load" else client.unload_model)("spare")

    change("unload")
    assert statuses(two, "/v2/models/spare/ready") == {503}
    # What counters' files still hold of it is not shown. KServe's own series has no version and stays.
    assert not [labels for _, labels in two.metrics() if ("model", "spare") in labels]
    change("load")
    assert statuses(two, "/v2/models/spare/ready") == {200}
    assert value(two, "kserve_wasm_requests_in_flight", model="spare", version="1") == 0

    # Another model in its place.
    seed = 3 if protocol == "rest" else 4
    shutil.rmtree(directory(two) / "spare")
    models.write_onnx(onnx_models.mlp(seed=seed), directory(two) / "spare")
    change("load")
    expected = mlp_oracle(np.ones((1, 4), np.float32), seed=seed).ravel()
    for _ in range(MANY):
        answer = ask(two, "spare").json()["outputs"][0]["data"]
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)


def test_a_load_that_fails_says_why_and_changes_no_worker(two: Server):
    file = directory(two) / "spare" / "model.wasm"
    whole = file.read_bytes()
    file.unlink()  # those that serve have it mapped
    file.write_bytes(b"\0asm\1\0\0\0\x7f")
    try:
        answer = requests.post(f"{two.http}/v2/repository/models/spare/load", timeout=60)
        assert answer.status_code == 500
        assert "the file is damaged" in answer.json()["error"]
        with triton.InferenceServerClient(two.grpc) as client:
            with pytest.raises(InferenceServerException, match="the file is damaged"):
                client.load_model("spare")
            with pytest.raises(InferenceServerException, match="there is no model 'nobody'"):
                client.load_model("nobody")
        assert {ask(two, "spare").status_code for _ in range(MANY)} == {200}
    finally:
        file.write_bytes(whole)
    assert requests.post(f"{two.http}/v2/repository/models/spare/load", timeout=60).ok


def test_a_killed_worker_costs_its_own_connections_only_and_comes_back_as_it_was(two: Server):
    # In the directory, but not what the others serve: neither may the new worker.
    shutil.copytree(directory(two) / "mlp", directory(two) / "late")
    assert requests.post(f"{two.http}/v2/repository/models/spare/unload", timeout=60).ok
    before = workers(two)
    counted = answered(two)
    connections = [http.client.HTTPConnection("127.0.0.1", two.http_port, timeout=60) for _ in range(MANY)]
    for connection in connections:
        connection.request("POST", "/v2/models/mlp/infer", json.dumps(ONES))
        assert connection.getresponse().read()
    # A request is counted when its answer is out, and what is killed before that counts no more.
    until(lambda: answered(two) == counted + MANY, two)

    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    two.wait_for_log(f"worker {victim} ended with status 137")

    alive = 0
    for connection in connections:
        connection.auto_open = 0
        try:
            connection.request("POST", "/v2/models/mlp/infer", json.dumps(ONES))
            answer = connection.getresponse()
            assert answer.read()
        except ConnectionError:
            continue
        assert answer.status == 200
        alive += 1
    assert 0 < alive < MANY
    assert {ask(two).status_code for _ in range(MANY)} == {200}

    until(lambda: len(workers(two) - before) == 1, two)
    (new,) = workers(two) - before
    # Its requests are the sign that it listens.
    until(lambda: ask(two).ok and re.search(rf' {new} - "POST /v2/models/mlp/infer', two.log), two)
    assert workers(two) == before - {victim} | {new}
    assert statuses(two, "/v2/models/spare/ready") == {503}
    assert statuses(two, "/v2/models/late/ready") == {503}
    assert statuses(two, "/v2/health/ready") == {200}
    # The dead worker's counts are not lost.
    asked = len(re.findall(r'"POST /v2/models/mlp/infer HTTP/1.1" 200', two.log))
    assert asked >= counted + 2 * MANY + alive
    until(lambda: answered(two) == asked, two)
    assert value(two, "kserve_wasm_requests_in_flight", **MLP) == 0
    assert requests.post(f"{two.http}/v2/repository/models/spare/load", timeout=60).ok


def test_sigterm_lets_the_running_requests_of_every_worker_end(start_server, tmp_path):
    models.write_guest(models.SLOW, tmp_path / "m", "instances: {workers: 4}\n")
    server = start_server(
        "--model_name=m", f"--model_dir={tmp_path / 'm'}", "--workers=2", "--grace_period=50"
    )
    server.wait_ready()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, server, "m", EMPTY) for _ in range(4)]
        until(lambda: value(server, "kserve_wasm_requests_in_flight", model="m", version="1") == 4, server)
        children = workers(server)
        assert server.stop() == 0, server.log
        assert [answer.result().status_code for answer in answers] == [200] * 4
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_a_second_signal_stops_every_worker_at_once(start_server, tmp_path):
    models.write_guest(models.FOREVER, tmp_path / "m", "limits: {timeout: 600}\n")
    server = start_server(
        "--model_name=m", f"--model_dir={tmp_path / 'm'}", "--workers=2", "--grace_period=500"
    )
    server.wait_ready()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, server, "m", EMPTY)
        until(lambda: value(server, "kserve_wasm_requests_in_flight", model="m", version="1") == 1, server)
        children = workers(server)
        server.signal(signal.SIGTERM)
        server.wait_for_log("draining")
        server.signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
        with pytest.raises(requests.ConnectionError):
            answer.result()
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_workers_end_when_their_supervisor_is_gone(start_server, tmp_path):
    models.write_onnx(onnx_models.mlp(), tmp_path / "m")
    server = start_server(
        "--model_name=m",
        f"--model_dir={tmp_path / 'm'}",
        "--workers=2",
        environment={"TMPDIR": str(tmp_path)},  # what it cannot remove any more stays here
    )
    server.wait_ready()
    children = workers(server)
    server.process.kill()
    server.wait()
    until(lambda: not [pid for pid in children if alive(pid)], server)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_model_that_does_not_load_ends_all_and_says_why_once(start_server, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.wasm").write_bytes(b"\0asm\1\0\0\0\x7f")
    server = start_server("--model_name=m", f"--model_dir={tmp_path / 'm'}", "--workers=2")
    assert server.wait() == 1
    assert server.log.count("unknown section id 127 at offset 8: the file is damaged") == 1
    assert "listening" not in server.log


def test_a_wrong_flag_ends_all_and_is_named_once(start_server):
    server = start_server("--workers=2", "--model_nam=m")
    assert server.wait() == 2
    assert server.log.count("unrecognized arguments: --model_nam=m") == 1


def test_a_port_that_is_taken_ends_all(start_server, tmp_path):
    models.write_onnx(onnx_models.mlp(), tmp_path / "m")
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        server = start_server(f"--model_dir={tmp_path}", "--workers=2", f"--http_port={port}")
        assert server.wait() == 1
    assert "cannot listen" in server.log


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_reserved_port_is_for_those_who_share_it(host: str):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with reserve(host, 0) as reserved:
        port = reserved.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            socket.create_server((host, port), family=family)
        with socket.create_server((host, port), family=family, reuse_port=True):
            # Another server that shares ports does not get in unseen.
            with pytest.raises(OSError, match="in use"):
                reserve(host, port)
            with socket.create_connection((host, port), timeout=10):
                pass


@pytest.mark.parametrize(
    ("argv", "environment", "count"),
    [
        ([], {}, 1),
        (["--workers", "3", "--model_name=x"], {}, 3),
        (["--workers=3", "--workers=2"], {"WORKERS": "4"}, 2),
        (["--http_port", "80"], {"WORKERS": "4"}, 4),
        (["--workers=two"], {}, 1),
        ([], {"WORKERS": "two"}, 1),
        (["--workers"], {}, 1),
    ],
)
def test_how_many_workers(argv: list[str], environment: dict[str, str], count: int):
    assert count_workers(argv, environment) == count


def test_statistics_of_several_processes_add_up():
    first, second, both = Statistics(), Statistics(), Statistics()
    for part, batch_size in ((first, 1), (first, 4), (second, 4), (second, 2)):
        for statistics in (part, both):
            statistics.counts_runs = True
            statistics.succeeded(100, 10, 20, 30, 40)
            statistics.executed(batch_size, 20, 30, 40)
    for statistics in (second, both):
        statistics.failed(7)
    snapshots = [{"name": "m", "version": "1", **each.snapshot()} for each in (first, second)]
    latest = max(snapshot["last_inference"] for snapshot in snapshots)
    assert add_statistics(snapshots) == {
        "name": "m", "version": "1", **both.snapshot(), "last_inference": latest
    }  # fmt: skip
