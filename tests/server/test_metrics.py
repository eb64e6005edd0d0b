"""The series on /metrics, read as Prometheus reads them, and the statistics object."""

from __future__ import annotations

import gc
import gzip
import json
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton
from prometheus_client import REGISTRY
from tritonclient.utils import InferenceServerException

from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.statistics import Statistics
from tests.backends import models as onnx_models
from tests.server import models
from tests.server.process import Server


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory):
    """A server of its own: its counts are those of this module alone."""
    root = tmp_path_factory.mktemp("metered")
    models.write_onnx(onnx_models.mlp(), root / "models" / "mlp")
    models.write_guest(models.TRAP, root / "models" / "trap")
    server = Server(
        root / "log", f"--model_dir={root / 'models'}", f"--cache_dir={root / 'cache'}", "--drain_seconds=0"
    )
    try:
        server.wait_ready()
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log
    finally:
        server.process.kill()
        server.wait()


def infer(client: triton.InferenceServerClient, model: str = "mlp", rows: int = 1) -> None:
    item = triton.InferInput("x", [rows, 4], "FP32")
    item.set_data_from_numpy(np.zeros((rows, 4), np.float32))
    client.infer(model, [item])


def value(server: Server, name: str, **labels: str) -> float:
    return server.metrics().get((name, frozenset(labels.items())), 0.0)


MLP = {"model": "mlp", "version": "1"}


def test_requests_are_counted_by_model_version_protocol_and_code(metered: Server):
    # A load tries an instance.
    before = value(metered, "kserve_wasm_instances_started_total", **MLP)
    with triton.InferenceServerClient(metered.grpc) as client:
        for _ in range(3):
            infer(client)
        for model in ("invented-1", "invented-2", "trap"):
            with pytest.raises(InferenceServerException):
                infer(client, model)
        with pytest.raises(InferenceServerException):
            client.infer("mlp", [])
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
    for _ in range(2):
        assert requests.post(f"{metered.http}/v2/models/mlp/infer", json=body, timeout=10).ok

    assert requests.post(
        f"{metered.http}/v1/models/mlp:predict", json={"instances": [[0, 0, 0, 0]]}, timeout=10
    ).ok
    assert (
        requests.post(f"{metered.http}/v1/models/mlp:predict", json={"instances": 3}, timeout=10).status_code
        == 400
    )

    assert requests.post(f"{metered.http}/v1/models/mlp:predict", data=b"{", timeout=10).status_code == 400

    def count(**labels: str) -> float:
        return value(metered, "kserve_wasm_requests_total", **labels)

    assert count(**MLP, protocol="v2-grpc", code="OK") == 3
    assert count(**MLP, protocol="v2-grpc", code="INVALID_ARGUMENT") == 1
    assert count(**MLP, protocol="v2-rest", code="200") == 2
    assert count(**MLP, protocol="v1", code="200") == 1
    assert count(**MLP, protocol="v1", code="400") == 2
    # A client's inventions must not become series.
    assert count(model="", version="", protocol="v2-grpc", code="NOT_FOUND") == 2
    assert not [labels for name, labels in metered.metrics() if ("model", "invented-1") in labels]
    assert count(model="trap", version="1", protocol="v2-grpc", code="INTERNAL") == 1
    assert (
        value(metered, "kserve_wasm_instances_trapped_total", model="trap", version="1", reason="unreachable")
        == 1
    )

    assert value(metered, "kserve_wasm_request_seconds_count", **MLP, protocol="v2-grpc") == 4
    assert value(metered, "kserve_wasm_instances_started_total", **MLP) - before == 6
    assert value(metered, "kserve_wasm_compute_seconds_count", **MLP, graph="default") == 6
    assert value(metered, "kserve_wasm_queue_seconds_count", **MLP) == 6
    assert value(metered, "kserve_wasm_model_load_seconds_count", **MLP) == 1
    assert value(metered, "kserve_wasm_requests_in_flight", **MLP) == 0
    assert value(metered, "kserve_wasm_queue_depth", **MLP) == 0
    # KServe's own, which its dashboards read, counts every protocol; of V1 only what reached the model.
    assert value(metered, "request_predict_seconds_count", model_name="mlp") == 7


@pytest.mark.parametrize("coding", ["plain", "gzip", "chunked"])
def test_bytes_of_v1_are_those_on_the_wire(metered: Server, coding: str):
    names = ("kserve_wasm_received_bytes_total", "kserve_wasm_sent_bytes_total")
    labels = {**MLP, "protocol": "v1"}
    body = json.dumps({"instances": [[0, 0, 0, 0]] * 100}).encode()
    if coding == "gzip":
        body = gzip.compress(body)
    before = [value(metered, name, **labels) for name in names]
    answer = requests.post(
        f"{metered.http}/v1/models/mlp:predict",
        data=iter([body[:100], body[100:]]) if coding == "chunked" else body,
        headers={"Content-Encoding": "gzip"} if coding == "gzip" else {},
        timeout=10,
    )
    assert answer.status_code == 200
    received, sent = (value(metered, name, **labels) - b for name, b in zip(names, before, strict=True))
    assert (received, sent) == (len(body), len(answer.content))


def test_v1_requests_for_no_model_are_counted(metered: Server):
    labels = {"model": "", "version": "", "protocol": "v1", "code": "404"}
    before = value(metered, "kserve_wasm_requests_total", **labels)
    answer = requests.post(f"{metered.http}/v1/models/nobody:predict", data=b"{}", timeout=10)
    assert answer.status_code == 404
    assert value(metered, "kserve_wasm_requests_total", **labels) == before + 1


def test_bytes_in_and_out_are_those_of_the_messages(metered: Server):
    names = ("kserve_wasm_received_bytes_total", "kserve_wasm_sent_bytes_total")
    labels = {**MLP, "protocol": "v2-grpc"}
    with triton.InferenceServerClient(metered.grpc) as client:
        before = [value(metered, name, **labels) for name in names]
        infer(client, rows=1000)
        received, sent = (value(metered, name, **labels) - b for name, b in zip(names, before, strict=True))
    # FP32 [1000, 4] in and [1000, 3] out, and some names around them.
    assert 16_000 < received < 16_200
    assert 12_000 < sent < 12_200


def test_the_series_of_an_unloaded_model_go_and_a_reloads_stay(metered: Server):
    with triton.InferenceServerClient(metered.grpc) as client:
        infer(client)
        before = value(metered, "kserve_wasm_requests_total", **MLP, protocol="v2-grpc", code="OK")
        client.load_model("mlp")
        infer(client)
        after = value(metered, "kserve_wasm_requests_total", **MLP, protocol="v2-grpc", code="OK")
        assert after == before + 1
        client.unload_model("mlp")
    left = {name for name, labels in metered.metrics() if ("model", "mlp") in labels}
    assert left == set()


def test_statistics_add_up_over_threads():
    statistics = Statistics()

    def many(_: int) -> None:
        for _ in range(1000):
            statistics.succeeded(100, 10, 20, 30, 40)
            statistics.failed(7)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(many, range(8)))
    snapshot = statistics.snapshot()
    assert snapshot["inference_count"] == snapshot["execution_count"] == 8000
    assert snapshot["inference_stats"] == {
        "success": {"count": 8000, "ns": 800_000},
        "fail": {"count": 8000, "ns": 56_000},
        "queue": {"count": 8000, "ns": 80_000},
        "compute_input": {"count": 8000, "ns": 160_000},
        "compute_infer": {"count": 8000, "ns": 240_000},
        "compute_output": {"count": 8000, "ns": 320_000},
    }
    assert [batch["batch_size"] for batch in snapshot["batch_stats"]] == [1]


def test_a_batch_is_one_execution_of_many_inferences():
    metrics = ModelMetrics("batched", "1")
    first, second = metrics.graph("first", first=True), metrics.graph("second")
    for _ in range(4):
        metrics.statistics.succeeded(1000, 100, 10, 20, 30)
    first.executed(3, (0, 50, 40), 1, 200, 2)
    first.executed(1, (0,), 0, 100, 0)
    first.executed(0, (0,), 0, 7, 0)
    second.executed(9, (0,), 5, 5, 5)
    first.failed(1)
    snapshot = metrics.statistics.snapshot()
    assert (snapshot["inference_count"], snapshot["execution_count"]) == (3 + 1 + 1, 3)
    assert snapshot["batch_stats"] == [
        {
            "batch_size": 1,
            "compute_input": {"count": 2, "ns": 0},
            "compute_infer": {"count": 2, "ns": 107},
            "compute_output": {"count": 2, "ns": 0},
        },
        {
            "batch_size": 3,
            "compute_input": {"count": 1, "ns": 1},
            "compute_infer": {"count": 1, "ns": 200},
            "compute_output": {"count": 1, "ns": 2},
        },
    ]
    assert snapshot["inference_stats"]["compute_infer"] == {"count": 4, "ns": 80}
    assert snapshot["inference_stats"]["queue"] == {"count": 4, "ns": 400}
    metrics.remove()


def test_each_request_of_a_model_without_graphs_is_an_execution():
    statistics = ModelMetrics("no graph", "1").statistics
    statistics.succeeded(1000, 100, 10, 20, 30)
    snapshot = statistics.snapshot()
    assert (snapshot["inference_count"], snapshot["execution_count"]) == (1, 1)
    assert snapshot["batch_stats"] == [
        {
            "batch_size": 1,
            "compute_input": {"count": 1, "ns": 10},
            "compute_infer": {"count": 1, "ns": 20},
            "compute_output": {"count": 1, "ns": 30},
        }
    ]


def test_the_runs_of_each_graph_have_series():
    metrics = ModelMetrics("with graphs", "7")
    graph, other = metrics.graph("g"), metrics.graph("other")
    graph.executed(3, (0, 2_000_000, 3_000_000), 1000, 4_000_000, 1000)
    graph.executed(1, (0,), 0, 4_000_000, 0)
    graph.failed(5_000_000)
    graph.retried(3)
    graph.rejected("queue_full")
    graph.rejected("timeout")
    graph.rejected("timeout")
    other.executed(300, (0,), 0, 1, 0)
    waiting = [5]
    graph.watch(lambda: waiting[0])
    labels = {"model": "with graphs", "version": "7", "graph": "g"}

    def sample(name: str, **more: str) -> float | None:
        return REGISTRY.get_sample_value(f"kserve_wasm_{name}", {**labels, **more})

    assert (sample("batch_size_count"), sample("batch_size_sum")) == (2, 4)
    assert (sample("batch_size_bucket", le="2.0"), sample("batch_size_bucket", le="4.0")) == (1, 2)
    assert (sample("batch_queue_seconds_count"), sample("batch_queue_seconds_sum")) == (
        4,
        pytest.approx(5e-3),
    )
    assert (sample("compute_seconds_count"), sample("compute_seconds_sum")) == (3, pytest.approx(13e-3))
    assert sample("batch_retries_total") == 3
    assert sample("batch_rejected_total", reason="queue_full") == 1
    assert sample("batch_rejected_total", reason="timeout") == 2
    assert sample("batch_queue_depth") == 5
    waiting[0] = 2
    assert sample("batch_queue_depth") == 2
    labels["graph"] = "other"
    assert (sample("batch_size_bucket", le="256.0"), sample("batch_size_bucket", le="+Inf")) == (0, 1)
    metrics.remove()
    families = [m for m in REGISTRY.collect() if m.name.startswith("kserve_wasm_")]
    assert len(families) > 10
    assert not [s for m in families for s in m.samples if s.labels.get("model") == "with graphs"]


def test_removing_twice_does_not_take_anothers_series():
    labels = {"model": "held twice", "version": "1"}
    old, new = ModelMetrics("held twice", "1"), ModelMetrics("held twice", "1")
    new.instance_started()
    old.remove()
    old.remove()
    assert REGISTRY.get_sample_value("kserve_wasm_instances_started_total", labels) == 1
    new.remove()
    assert REGISTRY.get_sample_value("kserve_wasm_instances_started_total", labels) is None


def test_a_model_that_is_replaced_is_not_asked_any_more():
    def depth(graph: str) -> float | None:
        labels = {"model": "replaced", "version": "1", "graph": graph}
        return REGISTRY.get_sample_value("kserve_wasm_batch_queue_depth", labels)

    old = ModelMetrics("replaced", "1")
    waits = {"kept": lambda: 3.0, "gone": lambda: 4.0}
    for graph, wait in waits.items():
        old.graph(graph).watch(wait)
    asked = [weakref.ref(wait) for wait in waits.values()]
    del waits, wait
    new = ModelMetrics("replaced", "1")
    new.graph("kept").watch(lambda: 5.0)
    assert (depth("kept"), depth("gone")) == (5, 4)
    old.remove()
    del old
    assert (depth("kept"), depth("gone")) == (5, 0)
    gc.collect()
    assert [wait() for wait in asked] == [None, None]
    new.remove()
    assert (depth("kept"), depth("gone")) == (None, None)
