"""A server in a process of its own, with models made of a few lines of WebAssembly text."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import wasmtime
from tritonclient.http import InferenceServerClient

ECHO = """(module
  (import "kserve_wasm" "input_count" (func $count (param i32) (result i32)))
  (import "kserve_wasm" "input_name" (func $name (param i32 i32 i32 i32) (result i32)))
  (import "kserve_wasm" "input_by_index" (func $input (param i32 i32) (result i32)))
  (import "kserve_wasm" "output_set" (func $output (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "infer") (result i32) (local $i i32)
    (drop (call $count (i32.const 0)))
    (block $end (loop $next
      (br_if $end (i32.ge_u (local.get $i) (i32.load (i32.const 0))))
      (drop (call $name (local.get $i) (i32.const 64) (i32.const 4096) (i32.const 4)))
      (drop (call $input (local.get $i) (i32.const 8)))
      (drop (call $output (i32.const 64) (i32.load (i32.const 4)) (i32.load (i32.const 8))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (i32.const 0)))"""
"""Answers each input as an output of the same name."""

SLOW = ECHO.replace("(local $i i32)", "(local $i i32) (local $n i64)").replace(
    "(drop (call $count (i32.const 0)))",
    """(drop (call $count (i32.const 0)))
    (loop $spin
      (local.set $n (i64.add (local.get $n) (i64.const 1)))
      (br_if $spin (i64.lt_u (local.get $n) (i64.const 1000000000))))""",
)
"""The same, after a while (a few tenths of a second)."""

ENDLESS = '(module (memory (export "memory") 1) (func (export "infer") (result i32) (loop $l (br $l)) (i32.const 0)))'
TRAP = '(module (memory (export "memory") 1) (func (export "infer") (result i32) unreachable))'
REJECT = """(module
  (import "kserve_wasm" "fail" (func $fail (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "the picture is upside down")
  (func (export "infer") (result i32) (drop (call $fail (i32.const 0) (i32.const 0) (i32.const 26))) (i32.const 1)))"""

CHECKED = """
inputs:
  - {name: x, datatype: FP32, shape: [-1, 4]}
  - {name: n, datatype: INT32, shape: []}
outputs:
  - {name: x, datatype: FP32, shape: [-1, 4]}
  - {name: n, datatype: INT32, shape: []}
"""
MODELS = {
    "echo": (ECHO, ""),
    "checked": (ECHO, CHECKED),
    "single": (ECHO, "inputs: [{name: x, datatype: FP32, shape: [-1, 2]}]"),
    "slow": (SLOW, ""),
    "narrow": (SLOW, "instances: {workers: 1, queue: 1}"),
    "endless": (ENDLESS, "limits: {timeout: 0.3}"),
    "trap": (TRAP, ""),
    "reject": (REJECT, ""),
}
MAX_REQUEST_BYTES = 120_000_000


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    models: Path

    def client(self) -> InferenceServerClient:
        return InferenceServerClient(
            f"127.0.0.1:{self.port}", connection_timeout=60, network_timeout=60, concurrency=4
        )


def write_model(directory: Path, wat: str, settings: str = "") -> None:
    directory.mkdir(parents=True)
    (directory / "model.wasm").write_bytes(wasmtime.wat2wasm(wat))
    if settings:
        (directory / "model.yaml").write_text(settings)


def start_server(models: Path, log: Path, *flags: str) -> Server:
    """Start a server over every model of a directory and wait until it is ready."""
    command = [sys.executable, "-m", "kserve_wasm", "--model_dir", str(models), "--host", "127.0.0.1"]
    command += [
        "--http_port",
        "0",
        "--enable_grpc",
        "false",
        "--cache_dir",
        str(log.parent / "cache"),
        *flags,
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MODEL_", "KSERVE_"))}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        server = Server(process, 0, log, models)
        give_up = time.monotonic() + 60
        while True:
            found = re.search(r"HTTP port (\d+)", log.read_text())
            if found and not server.port:
                server.port = int(found[1])
            if server.port and server.client().is_server_ready():
                return server
            assert process.poll() is None, f"the server ended:\n{log.read_text()}"
            assert time.monotonic() < give_up, f"the server did not get ready:\n{log.read_text()}"
            time.sleep(0.05)
    except BaseException:
        process.kill()
        process.wait()
        raise


def stop_server(server: Server) -> int:
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGINT)
    try:
        return server.process.wait(30)
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all these tests; it must be alive and well after the last of them."""
    models = tmp_path_factory.mktemp("models")
    for name, (wat, settings) in MODELS.items():
        write_model(models / name, wat, settings)
    for version in ("1", "7"):
        write_model(models / "numbered" / version, ECHO)
    log = tmp_path_factory.mktemp("server") / "log"
    server = start_server(
        models, log, "--max_request_bytes", str(MAX_REQUEST_BYTES), "--log_requests", "true"
    )
    try:
        yield server
        assert server.client().is_server_live()
    finally:
        status = stop_server(server)
    assert status == 0


@pytest.fixture
def client(server: Server) -> Iterator[InferenceServerClient]:
    with server.client() as client:
        yield client
