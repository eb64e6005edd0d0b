"""The seam between WASI-NN's ``compute`` and the graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from kserve_wasm.backends.base import Graph
from kserve_wasm.tensors import Tensor


class GraphScheduler(Protocol):
    """Decides when, and together with whom, a computation on one graph runs."""

    @property
    def graph(self) -> Graph:
        """The graph it schedules."""

    def compute(self, inputs: Mapping[str, Tensor], deadline: float) -> Mapping[str, Tensor]:
        """Runs the graph on ``inputs``; blocks the calling thread until the answer is there.

        The input tensors' memory is the caller's and stays unchanged until this returns.

        Args:
            inputs: the tensors by name.
            deadline: ``time.monotonic()`` seconds.

        Raises:
            InvalidRequest, QueueFull, DeadlineExceeded, BackendError: see :mod:`kserve_wasm.errors`.
        """

    def close(self) -> None:
        """Stops taking work, waits for what runs, and closes the graph."""
