"""V1 beside the event loop, and for clients that go away. What it computes: ``test_routes.py``."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import requests

from tests.backends.models import mlp_oracle
from tests.server import models
from tests.server.process import START_SECONDS, Server

TURNS = """
import asyncio, sys
from pathlib import Path

from kserve_wasm.artifact import load_model_dir
from kserve_wasm.errors import InvalidRequest
from kserve_wasm.guest.pool import GuestPool
from kserve_wasm.model import WasmModel


async def main():
    model = WasmModel(load_model_dir(Path(sys.argv[1]), "m")[0], GuestPool(1))
    model.load()
    turns = 0

    async def count():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    try:
        await model.predict({"instances": [[1, 2, 3]] * 50_000 + ["x"]}, {"content-length": "1000000"})
    except InvalidRequest:
        assert turns > 0
    counting.cancel()
    model.stop()


asyncio.run(main())
"""


def test_the_event_loop_goes_on_while_much_is_decoded(tmp_path: Path) -> None:
    """The payload is refused when it was read to its end: without a thread it never lets go of the loop."""
    directory = models.write_guest(models.ECHO, tmp_path / "m")
    command = [sys.executable, "-c", TURNS, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_large_compressed_payload_is_answered_in_full(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    models.write_onnx(models.models.mlp(), tmp_path / "m")
    server = start_server("--model_name=m", f"--model_dir={tmp_path / 'm'}")
    server.wait_ready()
    x = np.random.default_rng(5).standard_normal((20_000, 4)).astype(np.float32)
    answer = requests.post(
        f"{server.http}/v1/models/m:predict",
        data=gzip.compress(json.dumps({"instances": x.tolist()}).encode()),
        headers={"Content-Encoding": "gzip"},
        timeout=60,
    )
    np.testing.assert_allclose(answer.json()["predictions"], mlp_oracle(x), rtol=1e-5, atol=1e-6)


def test_waiting_requests_of_clients_that_went_away_are_given_up(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    models.write_guest(models.FOREVER, tmp_path / "m", "limits: {timeout: 600}\ninstances: {workers: 1}\n")
    server = start_server("--model_name=m", f"--model_dir={tmp_path / 'm'}", "--grace_period=0.5")
    server.wait_ready()

    def hold_the_worker() -> None:
        with suppress(requests.ConnectionError):
            requests.post(f"{server.http}/v2/models/m/infer", json={"inputs": []}, timeout=120)

    def wait_for(name: str, count: int) -> None:
        end = time.monotonic() + START_SECONDS
        key = (name, frozenset({"model": "m", "version": "1"}.items()))
        while server.metrics()[key] != count:
            assert time.monotonic() < end, f"{name} never became {count}"
            time.sleep(0.02)

    holding = threading.Thread(target=hold_the_worker)
    holding.start()
    wait_for("kserve_wasm_requests_in_flight", 1)
    clients = []
    for _ in range(4):
        client = socket.create_connection(("127.0.0.1", server.http_port))
        body = b'{"instances": [1]}'
        client.sendall(
            b"POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        clients.append(client)
    wait_for("kserve_wasm_queue_depth", 4)
    for client in clients:
        client.close()
    wait_for("kserve_wasm_queue_depth", 0)
    assert server.stop() == 0
    holding.join()
