"""A Ray cluster of one node on 127.0.0.1, small enough for a machine of two cores."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from tests.support import require

ROOT = Path(__file__).parents[2]
START_SECONDS = 120.0
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Without it, whoever reaches a port of the cluster could run code as the tests' user."""
EXECUTOR = b"ray::ServeReplica:kserve-wasm:GraphExecutor"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_ray() -> None:
    require(find_spec("ray"), "ray is not installed: hack/env ray test")


class Cluster:
    """``ray start --head``, until :meth:`stop`. Its processes see this checkout's packages.

    Attributes:
        address: of the cluster, as ``--ray_address`` takes it.
        environment: what processes need to find it, as ``auto``.
        dashboard: the address of its HTTP API, or "".
    """

    def __init__(self, cpus: int = 2, *, dashboard: bool = False) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        # Short: the paths of Ray's sockets in it must stay below 108 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
        options = [f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={self._folder.name}"]
        self.dashboard = ""
        if dashboard:
            web, agent = free_port(), free_port()
            self.dashboard = f"http://127.0.0.1:{web}"
            options += [f"--dashboard-port={web}", f"--dashboard-agent-listen-port={agent}"]
        self.log = Path(self._folder.name, "start.log")
        self.environment = {
            "PYTHONPATH": str(ROOT),
            "RAY_ADDRESS": self.address,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            **AUTHENTICATION,
        }
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *ray_command("start"),
                    "--head",
                    "--block",
                    "--node-ip-address=127.0.0.1",
                    f"--include-dashboard={str(dashboard).lower()}",
                    f"--ray-client-server-port={free_port()}",
                    "--object-store-memory=160000000",
                    *options,
                ],
                env=os.environ | self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in self.log.read_bytes():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends all of its processes, at once, and no other Ray's."""
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(30)
        self._folder.cleanup()

    def executors(self) -> list[int]:
        """The processes of its executors."""
        return [pid for pid, title in self._processes().items() if title.startswith(EXECUTOR)]

    def _processes(self) -> dict[int, bytes]:
        """Its processes' titles. All have its address and token in their environment, and no others on this machine."""
        wanted = {f"{name}={self.environment[name]}".encode() for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                if wanted <= set((process / "environ").read_bytes().split(b"\0")):
                    found[int(process.name)] = (process / "cmdline").read_bytes()
        return found


def ray_command(*arguments: str) -> list[str]:
    """The command line of Ray that belongs to this interpreter."""
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]
