from pathlib import Path

import numpy as np

from kserve_wasm.artifact.config import ModelConfig
from kserve_wasm.backends import GraphSource
from kserve_wasm.batching import Caller, open_in_process
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.tensors import Tensor
from tests.backends import models


def test_runs_of_the_first_graph_are_the_executions_and_their_rows_the_inferences() -> None:
    data = models.mlp().SerializeToString()
    sources = tuple(GraphSource(name, "onnx", data=data) for name in ("first", "second"))
    config = ModelConfig("open", "1", Path("model.wasm"), 0, "", graphs=sources)
    metrics = ModelMetrics("open", "1")
    for source in sources:
        scheduler = open_in_process(source, config, metrics)
        for rows in (3, 1):
            scheduler.compute({"x": Tensor.from_numpy(np.ones((rows, 4), np.float32))}, Caller())
        scheduler.close()
    snapshot = metrics.statistics.snapshot()
    metrics.remove()
    assert (snapshot["inference_count"], snapshot["execution_count"]) == (4, 2)
    assert [(b["batch_size"], b["compute_infer"]["count"]) for b in snapshot["batch_stats"]] == [
        (1, 1),
        (3, 1),
    ]
