"""A KServe server whose graphs run on a Ray cluster, and real clients."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import requests
import tritonclient.grpc as triton
import tritonclient.http as triton_http

from tests.backends import models
from tests.ray_app.cluster import Cluster
from tests.ray_app.conftest import start_server
from tests.server import models as served
from tests.server.process import Server


def floats(rows: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, 4), np.float32)


def ask_grpc(client: triton.InferenceServerClient, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    tensor = triton.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    y: npt.NDArray[np.float32] = client.infer("mlp", [tensor]).as_numpy("y")
    return y


def test_grpc_clients_get_their_own_answers_from_shared_runs(server: Server) -> None:
    inputs = [floats(1 + i % 5, seed=i) for i in range(100)]
    with triton.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(16) as pool:
        for x, y in zip(inputs, pool.map(lambda x: ask_grpc(client, x), inputs), strict=True):
            np.testing.assert_allclose(y, models.mlp_oracle(x), rtol=1e-4, atol=1e-5)
    labels = frozenset({"model": "mlp", "version": "1", "graph": "default"}.items())
    metrics = server.metrics()
    assert metrics["kserve_wasm_batch_size_sum", labels] >= sum(len(x) for x in inputs)
    assert metrics["kserve_wasm_batch_size_count", labels] < metrics["kserve_wasm_batch_size_sum", labels]


@pytest.mark.parametrize("binary", [True, False])
def test_rest_clients_get_answers(server: Server, binary: bool) -> None:
    x = floats(3)
    with triton_http.InferenceServerClient(f"127.0.0.1:{server.http_port}") as client:
        tensor = triton_http.InferInput("x", [3, 4], "FP32")
        tensor.set_data_from_numpy(x, binary_data=binary)
        y = client.infer("mlp", [tensor]).as_numpy("y")
    np.testing.assert_allclose(y, models.mlp_oracle(x), rtol=1e-4, atol=1e-5)


def test_an_answer_of_megabytes_comes_back(server: Server) -> None:
    """Ray passes small values with the message, and large ones through shared memory."""
    a = np.random.default_rng(0).standard_normal((200_000, 3), np.float32)
    inputs = []
    for name, value in (("a", a), ("b", a[::-1])):
        inputs.append(triton.InferInput(name, list(a.shape), "FP32"))
        inputs[-1].set_data_from_numpy(np.ascontiguousarray(value))
    with triton.InferenceServerClient(server.grpc) as client:
        answer = client.infer("sums", inputs)
    np.testing.assert_array_equal(answer.as_numpy("sum"), a + a[::-1])
    np.testing.assert_array_equal(answer.as_numpy("difference"), a - a[::-1])


def test_a_graphs_refusal_is_the_clients_400(server: Server) -> None:
    body = {
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [2, 3], "data": list(range(6))},
            {"name": "b", "datatype": "FP32", "shape": [3, 3], "data": list(range(9))},
        ]
    }
    answer = requests.post(f"{server.http}/v2/models/sums/infer", json=body, timeout=30)
    assert answer.status_code == 400
    assert "'n' is 2 in 'a' and 3 in 'b'" in answer.json()["error"]


def test_a_guest_that_strays_out_of_its_memory_is_one_failed_request(server: Server) -> None:
    """Ray enables faulthandler. Had it done so after the engine was made, this would end the process."""
    for _ in range(3):
        answer = requests.post(f"{server.http}/v2/models/stray/infer", json={"inputs": []}, timeout=30)
        assert answer.status_code == 500
        assert "out of bounds" in answer.json()["error"]
    assert server.process.poll() is None
    assert requests.get(f"{server.http}/v2/health/ready", timeout=30).ok


def test_reloading_a_model_keeps_it_answering(server: Server) -> None:
    assert requests.post(f"{server.http}/v2/repository/models/mlp/load", timeout=60).ok
    x = floats(2)
    with triton.InferenceServerClient(server.grpc) as client:
        np.testing.assert_allclose(ask_grpc(client, x), models.mlp_oracle(x), rtol=1e-4, atol=1e-5)


def test_without_ray_at_its_address_the_server_says_so_and_ends(server: Server, tmp_path: Path) -> None:
    del server  # only so that this is not run where there is no Ray
    lost = Server(
        tmp_path / "log",
        f"--model_dir={tmp_path}",
        "--scheduler=ray",
        environment={"RAY_ADDRESS": "127.0.0.1:9", "RAY_AUTH_MODE": "disabled"},
    )
    assert lost.wait() == 1
    assert "cannot connect to Ray at '127.0.0.1:9'" in lost.log


@pytest.mark.slow
@pytest.mark.parametrize("address", ["local", "HOST:PORT"])
def test_a_server_may_start_a_ray_of_its_own_or_join_a_cluster(
    cluster: Cluster, tmp_path: Path, address: str
) -> None:
    served.write_onnx(models.mlp(), tmp_path / "models" / "mlp")
    server = start_server(
        cluster,
        tmp_path,
        tmp_path / "models",
        f"--ray_address={address.replace('HOST:PORT', cluster.address)}",
        # A Ray of the server's own needs nothing that somebody prepared.
        environment={} if address == "local" else None,
    )
    try:
        x = floats(2)
        with triton.InferenceServerClient(server.grpc) as client:
            np.testing.assert_allclose(ask_grpc(client, x), models.mlp_oracle(x), rtol=1e-4, atol=1e-5)
        assert server.stop() == 0, server.log
    finally:
        server.process.kill()
        server.wait()
