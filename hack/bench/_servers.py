"""Servers under test: each in its own process on one CPU, with the client on another, gone when the block ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU, CLIENT_CPU = CPUS[0], CPUS[-1]
MLSERVER = "1.7.1"


@dataclass
class Server:
    """A running server: its name in tables, ports, process, and seconds from its start to readiness."""

    name: str
    http: int
    grpc: int
    process: subprocess.Popen[bytes]
    ready_after: float

    def rss_mb(self) -> float:
        """Resident memory in MB, and of that what is not backed by a file."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def _serve(
    name: str, command: list[str], ready: str, python: str | Path = sys.executable
) -> Iterator[Server]:
    http, grpc = free_port(), free_port()
    started = time.monotonic()
    process = subprocess.Popen(
        [
            "taskset",
            "-c",
            str(SERVER_CPU),
            python,
            *command,
            f"--http_port={http}",
            f"--grpc_port={grpc}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{http}{ready}", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, f"{name} ended with {process.returncode}"
                assert time.monotonic() < started + 60, f"{name} is not ready"
                time.sleep(0.01)
        yield Server(name, http, grpc, process, time.monotonic() - started)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def ours(
    model_dir: Path, model: str, *flags: str, name: str = "kserve_wasm"
) -> contextlib.AbstractContextManager[Server]:
    """Serve with this project: a fresh sandbox for every request."""
    command = [
        "-m",
        "kserve_wasm",
        "--model_dir",
        str(model_dir),
        "--model_name",
        model,
        "--host=127.0.0.1",
        *flags,
    ]
    return _serve(name, command, f"/v2/models/{model}/ready")


def plain(onnx: Path, model: str, *, logs: bool = True) -> contextlib.AbstractContextManager[Server]:
    """A plain ``kserve.Model`` on the same ONNX; with ``logs=False`` without its log lines per request."""
    quiet = [] if logs else ["--enable_latency_logging=false", f"--log_config_file={HERE / 'quiet.yaml'}"]
    command = [str(HERE / "plain.py"), str(onnx), "--model_name", model, *quiet]
    return _serve("kserve.Model" + ("" if logs else ", logs off"), command, f"/v2/models/{model}/ready")


def mlserver(onnx: Path, model: str) -> contextlib.AbstractContextManager[Server]:
    """MLServer with adaptive batching on the same ONNX, from an environment of its own: its dependencies clash."""
    home = ROOT / ".cache" / f"mlserver-{MLSERVER}"
    python = home / "bin" / "python"
    packages = [f"mlserver=={MLSERVER}", f"onnxruntime=={onnxruntime.__version__}"]
    if (
        subprocess.run([python, "-c", "import mlserver, onnxruntime"], check=False).returncode
        if python.exists()
        else 1
    ):
        venv.create(home, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", *packages], check=True)
    command = [str(HERE / "adaptive.py"), str(onnx), "--model_name", model]
    return _serve("MLServer", command, f"/v2/models/{model}/ready", python)
