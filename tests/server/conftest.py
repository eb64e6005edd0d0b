"""Servers for the tests: one with many models for the whole run, and a way to start more."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from tests.server import models
from tests.server.process import Server


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of many models; only to be read."""
    return models.write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with every model of the repository. It must end well, whatever the tests asked of it."""
    folder = tmp_path_factory.mktemp("server")
    server = Server(
        folder / "log", f"--model_dir={repository}", f"--cache_dir={folder / 'cache'}", "--drain_seconds=0"
    )
    try:
        server.wait_ready()
        yield server
        assert server.process.poll() is None, f"the server ended during the tests:\n{server.log}"
        assert server.stop() == 0, server.log
        assert "Traceback" not in server.log, server.log
    finally:
        server.process.kill()
        server.wait()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server with flags of the test's own; what still runs at the end is stopped, and must end well."""
    servers: list[Server] = []

    def start(*flags: str, environment: dict[str, str] | None = None) -> Server:
        log = tmp_path / f"server-{len(servers)}.log"
        servers.append(
            Server(
                log,
                f"--cache_dir={tmp_path / 'cache'}",
                "--drain_seconds=0",
                *flags,
                environment=environment,
            )
        )
        return servers[-1]

    try:
        yield start
        for server in servers:
            if server.process.poll() is None:
                server.signal(signal.SIGTERM)
                assert server.wait() == 0, server.log
            assert "Traceback" not in server.log, server.log
    finally:
        for server in servers:
            server.process.kill()
            server.wait()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    """A tritonclient for the server of many models."""
    with triton.InferenceServerClient(server.grpc) as client:
        yield client
