"""Everything over gRPC but inference: health, metadata, repository, configuration, statistics, reflection."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.backends import models as onnx_models
from tests.backends.models import mlp_oracle
from tests.server import models
from tests.server.process import Server

METHOD = "/inference.GRPCInferenceService/"


def ask_mlp(client: triton.InferenceServerClient, seed: int, model: str = "mlp") -> str:
    """Ask, check the answer against NumPy, and give the version that answered."""
    x = np.random.default_rng(5).standard_normal((2, 4), dtype=np.float32)
    item = triton.InferInput("x", [2, 4], "FP32")
    item.set_data_from_numpy(x)
    result = client.infer(model, [item])
    np.testing.assert_allclose(result.as_numpy("y"), mlp_oracle(x, seed=seed), rtol=1e-5, atol=1e-6)
    return result.get_response().model_version


def index(client: triton.InferenceServerClient) -> dict[tuple[str, str], tuple[str, str]]:
    return {(m.name, m.version): (m.state, m.reason) for m in client.get_model_repository_index().models}


def code_of(call, *arguments, **options) -> str:
    with pytest.raises(InferenceServerException) as raised:
        call(*arguments, **options)
    return raised.value.status()


def test_server_and_models_say_that_they_are_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp")
    assert client.is_model_ready("versioned", "2")
    assert not client.is_model_ready("versioned", "3")
    assert not client.is_model_ready("nobody")


def test_server_metadata_names_the_extensions(client):
    metadata = client.get_server_metadata()
    assert metadata.name == "kserve_wasm"
    assert {"model_repository", "model_configuration", "statistics"} <= set(metadata.extensions)


def test_model_metadata_is_what_the_graph_says(client):
    metadata = client.get_model_metadata("sums")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("a", "FP32", [-1, 3]),
        ("b", "FP32", [-1, 3]),
    ]
    assert [t.name for t in metadata.outputs] == ["sum", "difference"]
    assert list(client.get_model_metadata("versioned").versions) == ["1", "2", "10"]


def test_metadata_of_an_unknown_model_or_version_is_not_found(client):
    assert code_of(client.get_model_metadata, "nobody") == "StatusCode.NOT_FOUND"
    assert code_of(client.get_model_metadata, "versioned", "3") == "StatusCode.NOT_FOUND"
    assert code_of(client.get_model_config, "nobody") == "StatusCode.NOT_FOUND"
    assert code_of(client.get_inference_statistics, "nobody") == "StatusCode.NOT_FOUND"


def test_the_configuration_has_tritons_shape(client):
    config = client.get_model_config("mlp").config
    assert (config.name, config.max_batch_size, config.default_model_filename) == ("mlp", 32, "model.wasm")
    # 11 is TYPE_FP32; the batch dimension is left out.
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("x", 11, [4])]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [("y", 11, [3])]
    assert config.parameters["graph_devices"].string_value == "default (cpu)"


def test_the_configuration_tells_how_requests_are_batched(start_server, tmp_path):
    models.write_onnx(onnx_models.mlp(), tmp_path / "models" / "mlp")
    (tmp_path / "models" / "mlp" / "model.yaml").write_text(
        """
batching:
  max_batch_size: 16
  dynamic_batching: {preferred_batch_size: [4, 8], max_queue_delay_microseconds: 1500}
  queue_timeout: 250ms
  max_queue_size: 99
  priority_levels: 3
"""
    )
    models.write_onnx(onnx_models.mlp(), tmp_path / "models" / "off")
    (tmp_path / "models" / "off" / "model.yaml").write_text("batching: {enabled: false}\n")
    server = start_server(f"--model_dir={tmp_path / 'models'}")
    server.wait_ready()
    with triton.InferenceServerClient(server.grpc) as client:
        config = client.get_model_config("mlp").config
        assert (config.max_batch_size, list(config.input[0].dims)) == (16, [4])
        batching = config.dynamic_batching
        assert list(batching.preferred_batch_size) == [4, 8]
        assert (batching.max_queue_delay_microseconds, batching.preserve_ordering) == (1500, False)
        assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
        policy = batching.default_queue_policy
        assert (policy.timeout_action, policy.allow_timeout_override) == (0, True)
        assert (policy.default_timeout_microseconds, policy.max_queue_size) == (250_000, 99)
        (graph,) = json.loads(config.parameters["batching"].string_value).values()
        assert (graph["max_concurrent_batches"], graph["declared"]) == (0, True)
        config = client.get_model_config("off").config
        assert (config.max_batch_size, list(config.input[0].dims)) == (0, [-1, 4])
        assert not config.HasField("dynamic_batching")


def test_a_run_of_many_rows_is_one_execution_of_many_inferences(start_server, tmp_path):
    models.write_onnx(onnx_models.mlp(), tmp_path / "models" / "mlp")
    server = start_server(f"--model_dir={tmp_path / 'models'}")
    server.wait_ready()
    with triton.InferenceServerClient(server.grpc) as client:
        for rows in (5, 1, 5):
            item = triton.InferInput("x", [rows, 4], "FP32")
            item.set_data_from_numpy(np.zeros((rows, 4), np.float32))
            client.infer("mlp", [item])
        (stats,) = client.get_inference_statistics("mlp").model_stats
    assert (stats.inference_count, stats.execution_count) == (11, 3)
    assert [(b.batch_size, b.compute_infer.count) for b in stats.batch_stats] == [(1, 1), (5, 2)]
    assert stats.inference_stats.success.count == 3
    series = server.metrics()
    labels = frozenset({"model": "mlp", "version": "1", "graph": "default"}.items())
    assert series["kserve_wasm_batch_size_sum", labels] == 11
    assert series["kserve_wasm_batch_size_count", labels] == 3
    assert series["kserve_wasm_batch_queue_seconds_count", labels] == 0  # none of them had to wait
    assert series["kserve_wasm_batch_queue_depth", labels] == 0


def test_the_index_lists_every_version(client):
    listed = index(client)
    assert listed["mlp", "1"] == ("READY", "")
    assert {version for name, version in listed if name == "versioned"} == {"1", "2", "10"}


def test_statistics_count_successes_and_failures(client):
    def count():
        (stats,) = client.get_inference_statistics("sums").model_stats
        return stats

    before = count()
    a = triton.InferInput("a", [1, 3], "FP32")
    b = triton.InferInput("b", [1, 3], "FP32")
    for item in (a, b):
        item.set_data_from_numpy(np.ones((1, 3), np.float32))
    for _ in range(3):
        client.infer("sums", [a, b])
    after = count()
    assert after.inference_count - before.inference_count == 3
    assert after.execution_count - before.execution_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert after.last_inference > 1_700_000_000_000  # milliseconds since 1970
    runs = [
        {batch.batch_size: batch.compute_infer.count for batch in stats.batch_stats}
        for stats in (before, after)
    ]
    assert runs[1] == {**runs[0], 1: runs[0].get(1, 0) + 3}


def test_statistics_of_all_models_come_for_an_empty_name(client):
    names = {(s.name, s.version) for s in client.get_inference_statistics().model_stats}
    assert {("mlp", "1"), ("versioned", "1"), ("versioned", "10")} <= names


def test_reflection_describes_the_service(server: Server):
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(server.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(database.get_services())
        service = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
        assert {"ModelInfer", "ModelStreamInfer", "RepositoryIndex"} <= set(service.methods_by_name)
        fields = service.methods_by_name["ModelInfer"].input_type.fields_by_name
        assert fields["raw_input_contents"].number == 7


@pytest.mark.parametrize(("service", "status"), [("", 1), ("inference.GRPCInferenceService", 1), ("mlp", 1)])
def test_health_check_serves(server: Server, service: str, status: int):
    request = bytes([0x0A, len(service)]) + service.encode()
    with grpc.insecure_channel(server.grpc) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(request) == bytes([0x08, status])
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(request)
        assert next(watch) == bytes([0x08, status])
        watch.cancel()


def test_health_check_of_an_unknown_service_is_not_found(server: Server):
    with grpc.insecure_channel(server.grpc) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a\x01z")
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\x0a\x01z")
        assert next(watch) == b"\x08\x03"  # SERVICE_UNKNOWN
        watch.cancel()


def test_models_are_loaded_replaced_and_unloaded_at_run_time(start_server, tmp_path):
    root = tmp_path / "models"
    models.write_onnx(onnx_models.mlp(seed=1), root / "one" / "1")
    server = start_server(f"--model_dir={root}")
    server.wait_ready()
    with triton.InferenceServerClient(server.grpc) as client:
        assert code_of(client.load_model, "mlp") == "StatusCode.NOT_FOUND"

        models.write_onnx(onnx_models.mlp(seed=2), root / "mlp" / "1")
        assert code_of(client.get_model_metadata, "mlp") == "StatusCode.UNAVAILABLE"
        assert index(client)["mlp", ""] == ("UNAVAILABLE", "not loaded")
        client.load_model("mlp")
        assert ask_mlp(client, seed=2) == "1"

        models.write_onnx(onnx_models.mlp(seed=3), root / "mlp" / "2")
        assert ask_mlp(client, seed=2) == "1"
        client.load_model("mlp")
        assert ask_mlp(client, seed=3) == "2"
        assert ("mlp", "1") not in index(client)

        client.unload_model("mlp")
        assert index(client)["mlp", ""] == ("UNAVAILABLE", "unloaded")
        assert code_of(ask_mlp, client, 3) == "StatusCode.UNAVAILABLE"
        assert not client.is_model_ready("mlp")
        assert client.is_server_ready()
        assert ask_mlp(client, seed=1, model="one") == "1"
        assert code_of(client.unload_model, "nobody") == "StatusCode.NOT_FOUND"

        shutil.rmtree(root / "mlp")
        assert code_of(client.load_model, "mlp") == "StatusCode.NOT_FOUND"


def test_a_load_that_fails_leaves_what_serves_and_says_why(start_server, tmp_path):
    root = tmp_path / "models"
    models.write_onnx(onnx_models.mlp(seed=1), root / "mlp" / "1")
    server = start_server(f"--model_dir={root}")
    server.wait_ready()
    with triton.InferenceServerClient(server.grpc) as client:
        (root / "mlp" / "2").mkdir()
        (root / "mlp" / "2" / "model.wasm").write_bytes(b"no wasm at all")
        # UNAVAILABLE would tell clients to try again, which mends nothing.
        assert code_of(client.load_model, "mlp") == "StatusCode.FAILED_PRECONDITION"
        assert ask_mlp(client, seed=1) == "1"
        assert client.is_server_ready()
        assert any(name == "mlp" and reason for (name, _), (_, reason) in index(client).items())


def test_kserves_and_tritons_repository_messages_both_load(start_server, tmp_path):
    root = tmp_path / "models"
    models.write_onnx(onnx_models.mlp(), root / "mlp")
    server = start_server(f"--model_dir={root}")
    server.wait_ready()
    with grpc.insecure_channel(server.grpc) as channel:
        # KServe: string model_name = 1. Triton: string repository_name = 1, string model_name = 2.
        for request in (b"\x0a\x03mlp", b"\x12\x03mlp"):
            # KServe's answers: string model_name = 1, bool isLoaded = 2. Triton's are empty: its clients skip these.
            assert channel.unary_unary(f"{METHOD}RepositoryModelLoad")(request) == b"\x0a\x03mlp\x10\x01"
            assert channel.unary_unary(f"{METHOD}RepositoryModelUnload")(request) == b"\x0a\x03mlp\x10\x01"
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(f"{METHOD}RepositoryModelLoad")(b"")
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["..", "../models/mlp", "/etc", ".hidden", "a/b", "mlp/", "mlp\x00", ""])
def test_a_name_that_is_not_plain_never_becomes_a_path(client, name):
    assert code_of(client.load_model, name) in ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT")


def test_kserves_own_client_is_answered(server: Server):
    # In a process of its own: kserve and tritonclient register the same protobuf names.
    script = """
import asyncio, sys
import grpc, numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

async def main(address):
    client = InferenceGRPCClient(address)
    x = np.ones((1, 4), dtype=np.float32)
    item = InferInput("x", [1, 4], "FP32")
    item.set_data_from_numpy(x, binary_data=True)
    answer = await client.infer(InferRequest("mlp", [item], request_id="k"))
    typed = await client.infer(InferRequest("mlp", [InferInput("x", [1, 4], "FP32", data=[1.0] * 4)]))
    print(await client.is_server_ready(), await client.is_model_ready("mlp"), answer.id)
    print(*answer.outputs[0].as_numpy().ravel().tolist())
    print(*typed.outputs[0].as_numpy().ravel().tolist())

asyncio.run(main(sys.argv[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, server.grpc], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert first == "True True k"
    for row in rows:
        np.testing.assert_allclose(
            [float(v) for v in row.split()], mlp_oracle(np.ones((1, 4), np.float32))[0], rtol=1e-5
        )
    assert len(rows) == 2


def test_a_message_above_the_flag_is_refused_and_one_below_is_not(start_server, tmp_path):
    models.write_identity("UINT8", tmp_path)
    server = start_server(
        "--model_name=m", f"--model_dir={tmp_path / 'identity_uint8'}", "--max_request_bytes=100000"
    )
    server.wait_ready()
    with triton.InferenceServerClient(server.grpc) as client:

        def ask(size: int) -> np.ndarray:
            item = triton.InferInput("x", [size], "UINT8")
            item.set_data_from_numpy(np.ones(size, np.uint8))
            return client.infer("m", [item]).as_numpy("y")

        assert ask(90_000).sum() == 90_000
        assert code_of(ask, 100_001) == "StatusCode.RESOURCE_EXHAUSTED"
