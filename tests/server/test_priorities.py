"""A request's priority: who of those that wait for a worker is next, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.backends import models as onnx_models
from tests.server import models

WAITING = """
import asyncio, sys, threading
from pathlib import Path

import numpy as np

from kserve_wasm.artifact import load_model_dir
from kserve_wasm.guest.pool import GuestPool
from kserve_wasm.model import WasmModel
from kserve_wasm.request import InferenceRequest
from kserve_wasm.tensors import Tensor


async def main():
    pool, gate = GuestPool(1), threading.Event()
    model = WasmModel(load_model_dir(Path(sys.argv[1]), "m")[0], pool)
    model.load()
    x = Tensor.from_numpy(np.zeros((1, 4), np.float32))
    pool.run(gate.wait)
    order = []

    async def ask(name, parameters):
        await model.infer(InferenceRequest({"x": x}, parameters=parameters))
        order.append(name)

    asked = []
    for name, parameters in [
        ("first", {"priority": 3}),  # it is next for the thread already
        ("low", {"priority": 3}),
        ("default", {}),
        ("zero", {"priority": 0}),
        ("high", {"priority": 1}),
        ("other", {"timeout": 30_000_000}),
    ]:
        asked.append(asyncio.ensure_future(ask(name, parameters)))
        await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*asked)
    model.stop()
    print(*order)


asyncio.run(main())
"""


@pytest.mark.parametrize("levels", ["priority_levels: 3", "graphs: {default: {priority_levels: 3}}"])
def test_the_most_urgent_of_those_that_wait_for_a_worker_is_next(tmp_path, levels):
    directory = models.write_onnx(onnx_models.mlp(), tmp_path / "m")
    (directory / "model.yaml").write_text(f"batching: {{{levels}}}\ninstances: {{inline: false}}\n")
    command = [sys.executable, "-c", WAITING, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["first", "high", "default", "zero", "other", "low"]


def test_tritons_clients_may_name_a_priority_that_the_model_knows_and_no_other(start_server, tmp_path):
    for name, batching in (("levels", "{priority_levels: 3}"), ("plain", "{}")):
        directory = models.write_onnx(onnx_models.mlp(), tmp_path / "models" / name)
        (directory / "model.yaml").write_text(f"batching: {batching}\n")
    server = start_server(f"--model_dir={tmp_path / 'models'}")
    server.wait_ready()
    with (
        triton_http.InferenceServerClient(f"127.0.0.1:{server.http_port}") as http,
        triton_grpc.InferenceServerClient(server.grpc) as grpc,
    ):
        for triton, client in ((triton_http, http), (triton_grpc, grpc)):
            item = triton.InferInput("x", [1, 4], "FP32")
            item.set_data_from_numpy(np.zeros((1, 4), np.float32))
            for priority in (1, 3):
                client.infer("levels", [item], priority=priority, timeout=10_000_000)
            with pytest.raises(
                InferenceServerException, match="'priority' must be an integer from 1"
            ) as caught:
                client.infer("levels", [item], priority=4)
            assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
            client.infer("plain", [item], priority=4)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
    body["parameters"] = {"priority": "high"}
    answers = {
        name: requests.post(f"{server.http}/v2/models/{name}/infer", json=body, timeout=10)
        for name in ("levels", "plain")
    }
    assert {name: answer.status_code for name, answer in answers.items()} == {"levels": 400, "plain": 200}
    assert "got 'high'" in answers["levels"].json()["error"]
