"""From ``--ray_address`` to executors: connect, and deploy them where none are."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException

from kserve_wasm.batching.open import OpenScheduler
from ray_app.executor import MAX_GRAPHS, GraphExecutor
from ray_app.pool import ExecutorPool
from ray_app.scheduler import open_on

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0

APPLICATION = "kserve-wasm"
"""The Serve application that a server looks for executors in, and deploys them as."""

DEPLOYMENT = "GraphExecutor"
"""The executors' deployment in it."""

MAX_ONGOING_REQUESTS = 512
"""Computations that one executor takes at a time. Ray's default of 5 would be the largest batch there could be."""


def executors(
    *,
    gpu: bool = False,
    num_cpus: float = 1.0,
    num_gpus: float | None = None,
    min_replicas: int = 1,
    max_replicas: int = 4,
    max_graphs: int = MAX_GRAPHS,
    max_queued_requests: int = -1,
) -> Any:
    """A deployment of executors, as a Serve application.

    Args:
        gpu: they run graphs on a GPU: each reserves one, unless ``num_gpus`` says how much of one.
        num_cpus: CPUs that each reserves.
        num_gpus: GPUs, or parts of one, that each reserves.
        min_replicas: how many there are at least, from 1: without any, servers are not ready, and cause no load.
        max_replicas: how many there are at most, under load.
        max_graphs: graphs that each keeps open.
        max_queued_requests: computations that one caller lets wait for an executor; -1 for any number.
    """
    reserved = (1.0 if gpu else 0.0) if num_gpus is None else num_gpus
    deployment = serve.deployment(
        GraphExecutor,
        name=DEPLOYMENT,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=max_queued_requests,
        # Of a replica that died the controller hears when it next asks.
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=20,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": reserved},
        autoscaling_config=AutoscalingConfig(
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            # A replica that has work for two full batches or so could do with help.
            target_ongoing_requests=64,
        ),
    )
    return deployment.bind(max_graphs)


def connect(address: str, *, gpu: bool = False) -> OpenScheduler:
    """Connects this process to Ray, finds or deploys executors there, and returns what opens graphs on them.

    :func:`ray_app.environment.prepare` has to be called before this module is imported.

    Ray enables :mod:`faulthandler`. After the first Wasm engine was made, that would end the process at a guest's first
    access out of bounds: this comes before.

    Args:
        address: ``auto``: the Ray node that runs on this machine. ``HOST:PORT``: a cluster that this machine joins,
            with a node that takes no work. ``local``: a Ray of this process's own.
        gpu: the executors, where they are deployed here, run graphs on a GPU.

    Raises:
        ConnectionError: there is no Ray at ``address``.
    """
    options: dict[str, Any] = {}
    if address != "local":
        _check(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
    if address == "local":
        options = {"include_dashboard": False}
    elif address != "auto":
        _join(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)
    except (ConnectionError, RuntimeError) as error:
        raise ConnectionError(f"cannot connect to Ray at '{address}': {error}") from error
    return partial(open_on, find_or_deploy(gpu=gpu))


def find_or_deploy(*, gpu: bool = False) -> ExecutorPool:
    """The executors of this cluster; deploys some where there are none."""
    handle = _find()
    if handle is None:
        logger.info("deploying executors as Ray Serve application '%s'", APPLICATION)
        # Their callers are servers like this one: they need no port.
        serve.start(proxy_location="Disabled")
        serve.run(executors(gpu=gpu), name=APPLICATION, route_prefix=None)
        handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
    return ExecutorPool(handle, APPLICATION)


def _find() -> Any:
    try:
        return serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
    except RayServeException:
        return None


def _check(address: str) -> None:
    """Raises ConnectionError where nothing listens at ``address``: Ray itself would try for five minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            raise ConnectionError(
                f"cannot connect to Ray at '{address}': {error.strerror or error}"
            ) from None


def _join(address: str) -> None:
    """Makes this machine a node of the cluster at ``address``, for as long as this process lives.

    Ray's client protocol (``ray://``) would need no node; but it sends all data through one process of the cluster, and
    Serve's handles do not cancel over it.
    """
    command = [
        os.path.join(os.path.dirname(sys.executable), "ray"),
        "start",
        f"--address={address}",
        "--num-cpus=0",
        "--num-gpus=0",
        "--block",
    ]
    node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603
    atexit.register(_leave, node)


def _leave(node: subprocess.Popen[bytes]) -> None:
    node.send_signal(signal.SIGTERM)
    try:
        node.wait(10)
    except subprocess.TimeoutExpired:
        node.kill()
