"""One Ray cluster for all tests of this folder, with executors on it, and this process connected to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from kserve_wasm.batching import OpenScheduler
from tests.backends import models
from tests.ray_app.cluster import AUTHENTICATION, Cluster, require_ray
from tests.server import models as served
from tests.server.process import Server

os.environ |= AUTHENTICATION  # which Ray reads once, when it is imported

OUT_OF_BOUNDS = """(module
  (memory (export "memory") 1)
  (func (export "infer") (result i32) (i32.load (i32.const 0x7ffffff0))))"""


def cnn() -> onnx.ModelProto:
    """A model that is at work when something happens to its executor."""
    return models.cnn(side=64)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster."""
    require_ray()
    cluster = Cluster(cpus=4)  # of work that waits most of the time
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def open_on_ray(cluster: Cluster) -> Iterator[OpenScheduler]:
    """Opens graphs on the cluster's executors, from this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        import ray

        from ray_app.cluster import connect

        # pytest has enabled faulthandler before any test made an engine: it does not matter when Ray connects.
        yield connect("auto")
        ray.shutdown()


@pytest.fixture(scope="session")
def server(
    cluster: Cluster, open_on_ray: OpenScheduler, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A KServe server of some models, whose graphs run on the cluster."""
    del open_on_ray  # it has deployed the executors
    root = tmp_path_factory.mktemp("models")
    served.write_onnx(models.mlp(), root / "mlp")
    served.write_onnx(models.add_and_subtract(), root / "sums")
    served.write_onnx(cnn(), root / "cnn")
    served.write_guest(OUT_OF_BOUNDS, root / "stray")
    folder = tmp_path_factory.mktemp("server")
    server = start_server(cluster, folder, root, "--ray_address=auto")
    try:
        yield server
        assert server.process.poll() is None, f"the server ended during the tests:\n{server.log}"
        assert server.stop() == 0, server.log
        assert "Traceback" not in server.log, server.log
    finally:
        server.process.kill()
        server.wait()


def start_server(
    cluster: Cluster, folder: Path, models: Path, *flags: str, environment: dict[str, str] | None = None
) -> Server:
    """A server with ``--scheduler ray``, when it is ready; in the cluster's environment, unless another is given."""
    server = Server(
        folder / "log",
        f"--model_dir={models}",
        f"--cache_dir={folder / 'cache'}",
        "--drain_seconds=0",
        "--scheduler=ray",
        *flags,
        environment=cluster.environment if environment is None else environment,
    )
    try:
        server.wait_ready()
    except BaseException:
        server.process.kill()
        raise
    return server
