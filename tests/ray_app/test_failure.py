"""Executors that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import onnxruntime
import pytest
import requests
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from kserve_wasm.batching import OpenScheduler
from tests.backends import models
from tests.ray_app.cluster import ROOT, Cluster
from tests.ray_app.conftest import cnn
from tests.ray_app.test_server import ask_grpc, floats
from tests.server.process import Server

DEPLOY = """
from ray import serve
from ray_app.cluster import APPLICATION, executors
serve.run(executors(min_replicas={number}, max_replicas={number}), name=APPLICATION, route_prefix=None)
"""


@pytest.fixture
def two_executors(cluster: Cluster, open_on_ray: OpenScheduler) -> Iterator[list[int]]:
    """Has the cluster run two, and afterwards one again; gives their processes."""
    del open_on_ray
    environment = os.environ | cluster.environment | {"PYTHONPATH": str(ROOT)}

    def deploy(number: int) -> None:
        # In a process of its own: of Ray Serve's API, not even serve.status, which this process's pool asks for all the
        # time, may run in two threads at once (2.60: "not registered for pickle by value").
        subprocess.run([sys.executable, "-c", DEPLOY.format(number=number)], env=environment, check=True)

    before = set(cluster.executors())  # each deployment replaces them, and lets those before end in peace

    def replaced() -> list[int]:
        now = cluster.executors()
        return now if len(now) == 2 and before.isdisjoint(now) else []

    deploy(2)
    yield wait_for(replaced)
    deploy(1)


def wait_for(condition: Callable[[], object], seconds: float = 90.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("gave up waiting")


def retries(server: Server) -> float:
    labels = frozenset({"model": "cnn", "version": "1", "graph": "default"}.items())
    return server.metrics().get(("kserve_wasm_ray_retries_total", labels), 0.0)


def ready(server: Server) -> bool:
    return requests.get(f"{server.http}/v2/health/ready", timeout=30).status_code == 200


def test_an_executor_killed_under_load_costs_no_request(server: Server, two_executors: list[int]) -> None:
    wait_for(lambda: ready(server))
    before = retries(server)
    stop = threading.Event()
    failures: list[BaseException] = []
    answered = [0] * 12

    session = onnxruntime.InferenceSession(cnn().SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((len(answered), 1, 3, 64, 64), np.float32)
    expected = [session.run(["y"], {"x": image})[0] for image in images]

    def load(me: int) -> None:
        tensor = triton.InferInput("x", list(images[me].shape), "FP32")
        tensor.set_data_from_numpy(images[me])
        try:
            with triton.InferenceServerClient(server.grpc) as client:
                while not stop.is_set():
                    y = client.infer("cnn", [tensor]).as_numpy("y")
                    np.testing.assert_allclose(y, expected[me], rtol=1e-3, atol=1e-4)
                    answered[me] += 1
        except BaseException as error:  # whatever it is, the test names it
            failures.append(error)

    threads = [threading.Thread(target=load, args=(i,)) for i in range(len(answered))]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: min(answered) >= 20 or failures)
        os.kill(two_executors[0], signal.SIGKILL)
        wait_for(lambda: retries(server) > before or failures)
        so_far = list(answered)
        wait_for(
            lambda: all(now >= then + 20 for now, then in zip(answered, so_far, strict=True)) or failures
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert retries(server) > before


def test_without_executors_the_server_is_not_ready_and_recovers_by_itself(
    server: Server, cluster: Cluster
) -> None:
    wait_for(lambda: ready(server))
    with triton.InferenceServerClient(server.grpc) as client:
        killed: set[int] = set()

        def kill() -> None:
            for pid in cluster.executors():
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)

        def gone() -> bool:
            kill()
            return not ready(server)

        wait_for(gone)
        reason = requests.get(f"{server.http}/v2/health/ready", timeout=30).json()["reason"]
        assert "model 'mlp'" in reason
        assert not client.is_server_ready()
        assert not client.is_model_ready("mlp")
        # The model without a graph needs no executor.
        assert client.is_model_ready("stray")
        answer = requests.post(f"{server.http}/v2/models/mlp/infer", json={"inputs": []}, timeout=30)
        assert answer.status_code == 503
        with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            ask_grpc(client, floats(1))

        wait_for(lambda: ready(server))
        x = floats(2)
        np.testing.assert_allclose(ask_grpc(client, x), models.mlp_oracle(x), rtol=1e-4, atol=1e-5)
        assert killed.isdisjoint(cluster.executors())
