"""Graphs on their way to executors, and many of them on a few."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from kserve_wasm.artifact.config import ModelConfig
from kserve_wasm.backends import GraphSource
from kserve_wasm.batching import Caller, GraphScheduler, OpenScheduler
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.tensors import Tensor
from tests.backends import models
from tests.ray_app.cluster import ROOT, Cluster

WIDTH = 256


@pytest.fixture
def opened(open_on_ray: OpenScheduler) -> Iterator[ExitStack]:
    """Closes what is put into it."""
    del open_on_ray
    with ExitStack() as opened:
        yield opened


def schedule(opened: ExitStack, open_scheduler: OpenScheduler, source: GraphSource) -> GraphScheduler:
    metrics = ModelMetrics("delivery", "1")
    opened.callback(metrics.remove)
    config = ModelConfig("delivery", "1", Path(), 0, "", graphs=(source,))
    scheduler = open_scheduler(source, config, metrics)
    opened.callback(scheduler.close)
    return scheduler


def ask(scheduler: GraphScheduler, x: np.ndarray) -> np.ndarray:
    caller = Caller(time.monotonic() + 60)
    return scheduler.compute({"x": Tensor.from_numpy(x)}, caller)["y"].numpy()


@pytest.mark.parametrize("shared", [True, False])
def test_weights_reach_an_executor_with_and_without_the_same_files(
    open_on_ray: OpenScheduler, opened: ExitStack, tmp_path: Path, shared: bool
) -> None:
    """What this process calls ``/proc/self/fd/…`` is another file, or none, in the executor's."""
    weights = tmp_path / "model.wasm"
    layers = 2 if shared else 3
    data = models.external_mlp(weights, "model.wasm", layers, WIDTH)
    if not shared:
        file = opened.enter_context(weights.open("rb"))
        weights = Path(f"/proc/self/fd/{file.fileno()}")
    scheduler = schedule(opened, open_on_ray, GraphSource("g", "onnx", data=data, weights=weights))
    x = np.random.default_rng(0).random((3, WIDTH), np.float32)
    mean = np.repeat(x.mean(axis=1, keepdims=True), WIDTH, axis=1)
    np.testing.assert_allclose(ask(scheduler, x), (layers + 1) * mean, rtol=1e-4)


def test_many_graphs_share_executors_that_keep_only_some_open(cluster: Cluster, opened: ExitStack) -> None:
    from functools import partial

    from ray import serve

    from ray_app.pool import ExecutorPool
    from ray_app.scheduler import open_on

    deploy = """
from ray import serve
from ray_app.cluster import executors
serve.run(executors(num_cpus=0.5, max_replicas=1, max_graphs=2), name="narrow", route_prefix=None)
"""
    environment = os.environ | cluster.environment | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", deploy], env=environment, check=True)
    opened.callback(serve.delete, "narrow")
    pool = ExecutorPool(serve.get_deployment_handle("GraphExecutor", "narrow"), "narrow")
    schedulers = [
        schedule(
            opened,
            partial(open_on, pool),
            GraphSource("g", "onnx", data=models.mlp(seed).SerializeToString()),
        )
        for seed in range(5)
    ]
    x = np.random.default_rng(0).standard_normal((2, 4), np.float32)
    for _ in range(3):
        for seed, scheduler in enumerate(schedulers):
            np.testing.assert_allclose(ask(scheduler, x), models.mlp_oracle(x, seed), rtol=1e-4, atol=1e-5)
