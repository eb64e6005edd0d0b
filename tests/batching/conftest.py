"""What tests of batching share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kserve_wasm.artifact.config import Batching
from kserve_wasm.backends.base import Graph
from kserve_wasm.batching import BatchScheduler
from kserve_wasm.metrics import ModelMetrics

Schedule = Callable[..., BatchScheduler]
_NAMES = itertools.count()


@pytest.fixture
def metrics() -> Iterator[ModelMetrics]:
    """What a model of its own counts."""
    counted = ModelMetrics(f"batching-{next(_NAMES)}", "1")
    yield counted
    counted.remove()


@pytest.fixture
def schedule(metrics: ModelMetrics) -> Schedule:
    """Makes the scheduler of a graph; options of ``batching:`` by name. Nothing is compared or adapted."""

    def make(graph: Graph, slots: int = 1, **options: Any) -> BatchScheduler:
        batching = Batching(**{"declared": True, "adaptive": False, **options})
        return BatchScheduler(graph, batching, slots, metrics.graph("g", first=True))

    return make
