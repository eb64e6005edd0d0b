"""Batches under load, over the protocols: everybody's own answer, and executions fewer than inferences."""

from __future__ import annotations

import threading
import time

import numpy as np
import onnxruntime as ort
import pytest
import requests
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from tests.backends import models as onnx_models
from tests.server import models
from tests.server.process import Server
from tests.support.counts import count

DEEP = [64] * 101
CLIENTS, TURNS = 12, 60


@pytest.fixture(scope="module")
def deep() -> ort.InferenceSession:
    """The oracle: a graph of 200 small nodes, of which a run costs about as much for many rows as for one."""
    return ort.InferenceSession(onnx_models.dense(DEEP).SerializeToString())


def ask_all(server: Server, deep: ort.InferenceSession, protocol: str, rows: tuple[int, ...]) -> list[str]:
    """Many clients at once with data of their own; what was wrong."""
    wrong: list[str] = []

    def client(number: int) -> None:
        rng = np.random.default_rng(number)
        library, address = (
            (triton_grpc, server.grpc)
            if protocol == "gRPC"
            else (triton_http, server.http.partition("//")[2])
        )
        with library.InferenceServerClient(address) as triton:
            for _ in range(TURNS):
                x = rng.standard_normal((int(rng.choice(rows)), 64), np.float32)
                item = library.InferInput("x", list(x.shape), "FP32")
                item.set_data_from_numpy(x)
                try:
                    y = triton.infer("deep", [item]).as_numpy("y")
                    np.testing.assert_allclose(y, deep.run(None, {"x": x})[0], rtol=1e-4, atol=1e-6)
                except Exception as error:
                    wrong.append(str(error))
                count("requests of clients whose requests are batched")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.parametrize("options", ["", "batching: {max_queue_delay: 5ms}\n"], ids=["defaults", "delay"])
def test_clients_whose_requests_are_batched_get_their_own_answers(start_server, tmp_path, deep, options):
    """Single rows are quick and run on the event loop, larger ones do not; they meet in the same batches."""
    directory = models.write_onnx(onnx_models.dense(DEEP), tmp_path / "models" / "deep")
    (directory / "model.yaml").write_text("limits: {timeout: 60}\n" + options)
    server = start_server(f"--model_dir={tmp_path / 'models'}")
    server.wait_ready()
    for protocol in ("REST", "gRPC"):
        for rows in ((1,), (1, 1, 1, 20)):
            assert ask_all(server, deep, protocol, rows) == []
    (stats,) = requests.get(f"{server.http}/v2/models/deep/stats", timeout=30).json()["model_stats"]
    assert stats["inference_stats"]["success"]["count"] == 4 * CLIENTS * TURNS
    assert stats["execution_count"] < 4 * CLIENTS * TURNS
    assert max(batch["batch_size"] for batch in stats["batch_stats"]) > 20


def test_clients_that_leave_and_deadlines_that_pass_leave_nothing_behind(start_server, tmp_path, deep):
    models.write_onnx(onnx_models.dense(DEEP), tmp_path / "models" / "deep")
    server = start_server(f"--model_dir={tmp_path / 'models'}")
    server.wait_ready()
    assert ask_all(server, deep, "gRPC", (1,)) == []

    ended: set[str] = set()

    def hasty(number: int) -> None:
        x = np.zeros((1 + number % 20, 64), np.float32)
        item = triton_grpc.InferInput("x", list(x.shape), "FP32")
        item.set_data_from_numpy(x)
        with triton_grpc.InferenceServerClient(server.grpc) as triton:
            for _ in range(TURNS):
                triton.async_infer("deep", [item], lambda result, error: None).cancel()  # noqa: ARG005
                with pytest.raises(triton_grpc.InferenceServerException) as failure:
                    triton.infer("deep", [item], timeout=1)  # µs
                ended.add(str(failure.value.status()))

    threads = [threading.Thread(target=hasty, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    assert ask_all(server, deep, "REST", (1, 7)) == []
    for thread in threads:
        thread.join()
    assert ended == {"StatusCode.DEADLINE_EXCEEDED"}
    labels = frozenset({"model": "deep", "version": "1"}.items())
    end = time.monotonic() + 30
    while server.metrics()["kserve_wasm_requests_in_flight", labels]:
        assert time.monotonic() < end, "requests are in flight that nobody waits for"
        time.sleep(0.05)
