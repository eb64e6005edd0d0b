"""From a graph's source and a model's configuration to its scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from kserve_wasm.artifact.config import ModelConfig
from kserve_wasm.backends import Graph, GraphSource, open_graph
from kserve_wasm.backends.cpus import available_cpus
from kserve_wasm.batching.base import GraphScheduler
from kserve_wasm.batching.scheduler import BatchScheduler
from kserve_wasm.metrics import ModelMetrics

OpenScheduler: TypeAlias = Callable[[GraphSource, ModelConfig, ModelMetrics], GraphScheduler]
"""Opens one graph of a model. Raises WasmServingError."""


def open_in_process(source: GraphSource, config: ModelConfig, metrics: ModelMetrics) -> GraphScheduler:
    """Opens a graph in this process, whose computations are merged there.

    Raises:
        ModelLoadError: an option, or the batching that is configured, is not one for this graph.
        BackendError, DeviceUnavailable: the graph cannot be opened.
    """
    graph = open_graph(source, config.device)
    try:
        batching = config.batching_of(source.name)
        slots = alone = batching.max_concurrent_batches
        if not slots:
            slots, alone = _slots(graph, source)
        counted = metrics.graph(source.name, first=source in config.graphs[:1])
        return BatchScheduler(graph, batching, slots, counted, alone)
    except BaseException:
        graph.close()
        raise


def _slots(graph: Graph, source: GraphSource) -> tuple[int, int]:
    """Runs at a time: of merged ones as many as the CPUs have room for, of others enough that no CPU waits for one."""
    cpus = available_cpus()
    if graph.device == "gpu":
        return 2, 2 * cpus
    threads = source.options.get("intra_op_threads") or cpus
    return max(1, cpus // threads), 2 * cpus
