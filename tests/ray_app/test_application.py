"""The Serve application, started with Ray's own commands and the config file of the folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton
import yaml
from tritonclient.utils import InferenceServerException

from tests.backends import models
from tests.ray_app.cluster import ROOT, Cluster, free_port, require_ray
from tests.ray_app.conftest import OUT_OF_BOUNDS
from tests.ray_app.test_server import ask_grpc, floats
from tests.server import models as served

CONFIG = ROOT / "ray_app" / "config.yaml"
SERVE = str(Path(sys.executable).with_name("serve"))


class Application:
    """The config file with ports that are free, and models of the test's own."""

    def __init__(self, folder: Path) -> None:
        root = folder / "models"
        served.write_onnx(models.mlp(), root / "mlp")
        served.write_guest(OUT_OF_BOUNDS, root / "stray")
        config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        config["http_options"] |= {"host": "127.0.0.1", "port": free_port()}
        config["grpc_options"]["port"] = free_port()
        (application,) = config["applications"]
        application["args"] |= {
            "model_dir": str(root),
            "cache_dir": str(folder / "cache"),
            "executors": {"num_cpus": 0.5, "max_replicas": 1},
            "ingress": {"num_cpus": 0.5, "max_replicas": 1},
        }
        self.file = folder / "config.yaml"
        self.file.write_text(yaml.safe_dump(config))
        self.http = f"http://127.0.0.1:{config['http_options']['port']}"
        self.grpc = f"127.0.0.1:{config['grpc_options']['port']}"

    def wait_ready(self, log: Path) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                if requests.get(f"{self.http}/v2/health/ready", timeout=10).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.2)
        raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """``serve run config.yaml``, on a cluster of its own: Serve's ports are those that it was first started with."""
    require_ray()
    folder = tmp_path_factory.mktemp("application")
    application = Application(folder)
    cluster = Cluster(cpus=4)
    try:
        with (folder / "log").open("wb") as output:
            process = subprocess.Popen(
                [SERVE, "run", str(application.file)],
                env=os.environ | cluster.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            application.wait_ready(folder / "log")
            yield application
            assert process.poll() is None, (folder / "log").read_text()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    finally:
        cluster.stop()


def test_it_answers_over_grpc(application: Application) -> None:
    inputs = [floats(1 + i % 5, seed=i) for i in range(60)]
    with triton.InferenceServerClient(application.grpc) as client, ThreadPoolExecutor(8) as pool:
        for x, y in zip(inputs, pool.map(lambda x: ask_grpc(client, x), inputs), strict=True):
            np.testing.assert_allclose(y, models.mlp_oracle(x), rtol=1e-4, atol=1e-5)
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("mlp")
        assert client.get_model_metadata("mlp").outputs[0].name == "y"
        assert {model.name for model in client.get_model_repository_index().models} == {"mlp", "stray"}


def test_it_answers_over_rest(application: Application) -> None:
    x = floats(3)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3, 4], "data": x.reshape(-1).tolist()}]}
    answer = requests.post(f"{application.http}/v2/models/mlp/infer", json=body, timeout=30)
    y = np.array(answer.json()["outputs"][0]["data"], np.float32).reshape(3, 3)
    np.testing.assert_allclose(y, models.mlp_oracle(x), rtol=1e-4, atol=1e-5)
    assert requests.get(f"{application.http}/v2/models/mlp", timeout=30).json()["platform"] == "wasm"


def test_errors_have_the_servers_status_and_words(application: Application) -> None:
    answer = requests.post(f"{application.http}/v2/models/stray/infer", json={"inputs": []}, timeout=30)
    assert (answer.status_code, "out of bounds" in answer.text) == (500, True)
    assert requests.get(f"{application.http}/v2/models/absent", timeout=30).status_code == 404
    with triton.InferenceServerClient(application.grpc) as client:
        for model, status, words in (
            ("absent", "NOT_FOUND", "there is no model 'absent'"),
            ("stray", "INTERNAL", "out of bounds"),
        ):
            with pytest.raises(InferenceServerException, match=words) as caught:
                client.infer(model, [])
            assert caught.value.status() == f"StatusCode.{status}"
            assert "Traceback" not in caught.value.message()


def test_a_stream_of_requests_is_answered_in_order(application: Application) -> None:
    inputs = [floats(rows, seed=rows) for rows in (1, 4, 2)]
    answers: list[Any] = []
    with triton.InferenceServerClient(application.grpc) as client:
        client.start_stream(lambda result, error: answers.append(error or result))
        for x in inputs:
            tensor = triton.InferInput("x", list(x.shape), "FP32")
            tensor.set_data_from_numpy(x)
            client.async_stream_infer("mlp", [tensor])
        client.stop_stream()
    assert len(answers) == len(inputs)
    for x, answer in zip(inputs, answers, strict=True):
        np.testing.assert_allclose(answer.as_numpy("y"), models.mlp_oracle(x), rtol=1e-4, atol=1e-5)


def test_serve_build_writes_what_serve_deploy_takes(tmp_path: Path) -> None:
    require_ray()
    built = tmp_path / "built.yaml"
    subprocess.run(
        [SERVE, "build", "ray_app.defaults:app", "-o", str(built)],
        check=True,
        cwd=ROOT,
        env=os.environ,
        timeout=120,
    )
    (application,) = yaml.safe_load(built.read_text())["applications"]
    assert application["import_path"] == "ray_app.defaults:app"
    assert {deployment["name"] for deployment in application["deployments"]} == {
        "GraphExecutor",
        "WasmIngress",
    }
    for deployment in application["deployments"]:
        assert deployment["max_ongoing_requests"] > 100  # Ray's default would be the largest batch


def test_a_misspelt_argument_is_refused() -> None:
    require_ray()
    run = subprocess.run(
        [SERVE, "run", "ray_app:app", "model_dri=/models"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode != 0
    assert "model_dri" in run.stderr


@pytest.mark.slow
def test_serve_deploy_deploys_it(tmp_path: Path) -> None:
    require_ray()
    application = Application(tmp_path)
    cluster = Cluster(cpus=4, dashboard=True)
    try:
        subprocess.run(
            [SERVE, "deploy", str(application.file), "-a", cluster.dashboard],
            check=True,
            env=os.environ | cluster.environment,
            timeout=120,
        )
        application.wait_ready(cluster.log)
        x = floats(2)
        with triton.InferenceServerClient(application.grpc) as client:
            np.testing.assert_allclose(ask_grpc(client, x), models.mlp_oracle(x), rtol=1e-4, atol=1e-5)
    finally:
        cluster.stop()
