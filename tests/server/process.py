"""A server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

START_SECONDS = 60.0
_LISTENING = re.compile(r"listening: HTTP port (\d+), gRPC port (\d+|none)")


class Server:
    """``python -m kserve_wasm`` with the given flags, on free ports of 127.0.0.1.

    Args:
        log: the file that takes its output.
        flags: beside ``--host`` and the ports.
        environment: added to this process's.
    """

    def __init__(self, log: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.log_file = log
        command = [
            sys.executable,
            "-m",
            "kserve_wasm",
            "--host=127.0.0.1",
            "--http_port=0",
            "--grpc_port=0",
            *flags,
        ]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | (environment or {})
            )
        self.http_port = 0
        self.grpc_port = 0

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def wait_listening(self) -> None:
        found = _wait(lambda: _LISTENING.search(self.log), self)
        self.http_port = int(found[1])
        self.grpc_port = 0 if found[2] == "none" else int(found[2])

    def wait_ready(self) -> None:
        self.wait_listening()
        _wait(lambda: requests.get(f"{self.http}/v2/health/ready", timeout=10).ok, self)

    def wait_for_log(self, text: str) -> None:
        _wait(lambda: text in self.log, self)

    def signal(self, sig: int) -> None:
        self.process.send_signal(sig)

    def wait(self, seconds: float = START_SECONDS) -> int:
        return self.process.wait(seconds)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """The samples of /metrics by name and labels."""
        from prometheus_client.parser import text_string_to_metric_families as parse

        text = requests.get(f"{self.http}/metrics", timeout=10).text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in parse(text)
            for sample in family.samples
        }


def _wait(condition, server: Server):
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if (value := condition()) or server.process.poll() is not None:
            assert value, f"the server ended with {server.process.returncode}:\n{server.log}"
            return value
        time.sleep(0.02)
    raise AssertionError(f"gave up waiting for the server:\n{server.log}")
