"""A server in a process of its own, with models made of a few lines of WebAssembly text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime
from tritonclient.http import InferenceServerClient

from tests.server.process import Server

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


def write_model(directory: Path, wat: str, settings: str = "") -> None:
    directory.mkdir(parents=True)
    (directory / "model.wasm").write_bytes(wasmtime.wat2wasm(wat))
    if settings:
        (directory / "model.yaml").write_text(settings)


def http_client(server: Server) -> InferenceServerClient:
    return InferenceServerClient(
        f"127.0.0.1:{server.http_port}", connection_timeout=60, network_timeout=60, concurrency=4
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests here; it must be alive after the last of them, and have met nothing unexpected."""
    models = tmp_path_factory.mktemp("models")
    for name, (wat, settings) in MODELS.items():
        write_model(models / name, wat, settings)
    for version in ("1", "7"):
        write_model(models / "numbered" / version, ECHO)
    folder = tmp_path_factory.mktemp("rest")
    server = Server(
        folder / "log",
        f"--model_dir={models}",
        f"--cache_dir={folder / 'cache'}",
        f"--max_request_bytes={MAX_REQUEST_BYTES}",
        "--drain_seconds=0",
        "--log_requests",
    )
    try:
        server.wait_ready()
        yield server
        assert server.process.poll() is None, f"the server ended during the tests:\n{server.log[-3000:]}"
        assert server.stop() == 0
        assert "unexpected error" not in server.log
        assert "Traceback" not in server.log, server.log[server.log.index("Traceback") :][:3000]
    finally:
        server.process.kill()
        server.wait()


@pytest.fixture
def client(server: Server) -> Iterator[InferenceServerClient]:
    with http_client(server) as client:
        yield client
