"""What Triton's statistics extension tells of a model version."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

_KEPT_SIZES = 256
"""Sizes whose statistics are kept apart."""


@dataclass(slots=True)
class Duration:
    """How often something happened, and how many nanoseconds it took together."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one occurrence of ``ns`` nanoseconds."""
        self.count += 1
        self.ns += ns

    def snapshot(self) -> dict[str, int]:
        """Triton's ``duration_stat``."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class _Compute:
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add(self, input_ns: int, infer_ns: int, output_ns: int) -> None:
        self.compute_input.add(input_ns)
        self.compute_infer.add(infer_ns)
        self.compute_output.add(output_ns)

    def snapshot(self) -> dict[str, Any]:
        return {
            "compute_input": self.compute_input.snapshot(),
            "compute_infer": self.compute_infer.snapshot(),
            "compute_output": self.compute_output.snapshot(),
        }


class Statistics:
    """A model version's statistics with the meaning of Triton's statistics extension; thread-safe.

    ``success`` and ``fail`` cover a request from arrival to answer, ``queue`` its waits for a worker and for the runs
    of graphs, ``compute_input`` the preparation of the sandbox and its inputs, ``compute_infer`` the guest,
    ``compute_output`` the taking of its outputs.

    Executions are the runs of one graph, the model's first; inferences the entries along the first dimension that
    they had, so that inferences over executions is the mean size of a batch. ``batch_stats`` has them by size, with
    the time to put the inputs together, to run the graph, and to take its outputs apart. Of a model without graphs,
    each request is an execution of one inference.

    Attributes:
        counts_runs: whether :meth:`executed` tells the executions, and not each request.
    """

    def __init__(self) -> None:
        self.counts_runs = False
        self._lock = threading.Lock()
        self._last_inference_ms = 0
        self._inference_count = 0
        self._execution_count = 0
        self._success = Duration()
        self._fail = Duration()
        self._queue = Duration()
        self._compute = _Compute()
        self._batches: dict[int, _Compute] = {}

    def succeeded(
        self,
        total_ns: int,
        queue_ns: int,
        compute_input_ns: int,
        compute_infer_ns: int,
        compute_output_ns: int,
    ) -> None:
        """Count a request that was answered."""
        with self._lock:
            self._last_inference_ms = time.time_ns() // 1_000_000
            self._success.add(total_ns)
            self._queue.add(queue_ns)
            self._compute.add(compute_input_ns, compute_infer_ns, compute_output_ns)
            if not self.counts_runs:
                self._executed(1, compute_input_ns, compute_infer_ns, compute_output_ns)

    def executed(self, batch_size: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count a run that succeeded, of ``batch_size`` entries along the first dimension; none count as one."""
        with self._lock:
            self._executed(max(1, batch_size), input_ns, infer_ns, output_ns)

    def _executed(self, batch_size: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        self._inference_count += batch_size
        self._execution_count += 1
        batch = self._batches.get(batch_size)
        if batch is None:
            if (
                len(self._batches) >= _KEPT_SIZES
            ):  # clients choose them; the rest are classed by powers of two
                batch_size = 1 << batch_size.bit_length() - 1
            batch = self._batches.setdefault(batch_size, _Compute())
        batch.add(input_ns, infer_ns, output_ns)

    def failed(self, total_ns: int) -> None:
        """Count a request that ended with an error."""
        with self._lock:
            self._fail.add(total_ns)

    def snapshot(self) -> dict[str, Any]:
        """Triton's JSON without name and version; ``last_inference`` is in ms since 1970."""
        with self._lock:
            return {
                "last_inference": self._last_inference_ms,
                "inference_count": self._inference_count,
                "execution_count": self._execution_count,
                "inference_stats": {
                    "success": self._success.snapshot(),
                    "fail": self._fail.snapshot(),
                    "queue": self._queue.snapshot(),
                    **self._compute.snapshot(),
                },
                "batch_stats": [
                    {"batch_size": size, **batch.snapshot()} for size, batch in sorted(self._batches.items())
                ],
            }


def add_statistics(snapshots: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum snapshots of one version that several processes counted; the latest ``last_inference`` counts."""
    total = dict(snapshots[0])
    for key, value in total.items():
        values = [snapshot[key] for snapshot in snapshots]
        if isinstance(value, dict):
            total[key] = add_statistics(values)
        elif key == "batch_stats":
            batches: dict[int, list[dict[str, Any]]] = {}
            for batch in chain.from_iterable(values):
                batches.setdefault(batch["batch_size"], []).append(batch)
            total[key] = [{**add_statistics(batches[size]), "batch_size": size} for size in sorted(batches)]
        elif isinstance(value, int):
            total[key] = max(values) if key == "last_inference" else sum(values)
    return total
