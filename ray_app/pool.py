"""The executors that this process sends computations to, and whether there are any."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How often the controller is asked for running replicas."""

STALE_SECONDS = 15.0
"""After so long without an answer of the controller there is no executor, as far as this process knows."""


class ExecutorPool:
    """One deployment of executors.

    Args:
        handle: Ray's handle for the deployment.
        application: the name of the Serve application that it belongs to.

    Attributes:
        compute: the executors' method of that name,
        describe: and of that name.
    """

    def __init__(self, handle: DeploymentHandle[Any], application: str) -> None:
        self.compute = handle.options(method_name="compute")
        self.describe = handle.options(method_name="describe")
        self._application = application
        self._deployment = handle.deployment_name
        self._running = 1  # nothing speaks against it yet
        self._seen = time.monotonic()
        self._wake = threading.Event()
        self._ended = False
        self._watcher = threading.Thread(target=self._watch, name="executors", daemon=True)
        self._watcher.start()
        # Functions that were registered later are called first: before Ray's own end.
        atexit.register(self._end)

    @property
    def ready(self) -> bool:
        """Whether there is a running executor."""
        return self._running > 0 and time.monotonic() - self._seen < STALE_SECONDS

    def look(self) -> None:
        """Asks the controller now."""
        self._wake.set()

    def _end(self) -> None:
        """Ends the watching: Serve's API would start a Ray of its own after a shutdown."""
        self._ended = True
        self._wake.set()
        self._watcher.join(10)

    def _watch(self) -> None:
        while ray.is_initialized() and not self._ended:
            try:
                running = self._count()
            except Exception as error:
                logger.warning("Ray Serve's controller does not answer: %s", error)
            else:
                if bool(running) != bool(self._running):
                    logger.warning("executors are back" if running else "there is no executor left")
                self._running = running
                self._seen = time.monotonic()
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _count(self) -> int:
        application = serve.status().applications.get(self._application)
        deployment = application and application.deployments.get(self._deployment)
        return deployment.replica_states.get(ReplicaState.RUNNING, 0) if deployment else 0
