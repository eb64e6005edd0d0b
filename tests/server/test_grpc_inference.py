"""Inference over gRPC, against NumPy."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from kserve_wasm.tensors import DTYPES, Tensor
from tests.backends.models import mlp_oracle
from tests.server.models import ECHO, identity_name, write_guest
from tests.server.process import Server

SHAPES = [(), (1,), (0,), (0, 4), (2, 3), (2, 0, 3), (1, 2, 1, 2, 1)]


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(7)
    size = int(np.prod(shape))
    if dtype == "BYTES":
        array = np.empty(size, dtype=object)
        array[:] = [rng.bytes(int(length)) for length in rng.integers(0, 9, size)]
        array[:1] = [b"\xff\xfe\x00 not UTF-8 \x80"][:size]
        return array.reshape(shape)
    if dtype == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    # Every bit pattern: NaNs with payloads, infinities, subnormals and both zeros among them.
    raw = rng.bytes(size * DTYPES[dtype].itemsize)
    return np.frombuffer(raw, DTYPES[dtype].numpy).reshape(shape)


@pytest.fixture(scope="module")
def stub(server: Server):
    import grpc

    with grpc.insecure_channel(server.grpc, options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def raw_request(model: str, dtype: str, array: np.ndarray, name: str = "x") -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype=dtype, shape=array.shape)
    request.raw_input_contents.append(bytes(Tensor.from_numpy(array).buffer()))
    return request


def triton_input(name: str, dtype: str, array: np.ndarray) -> triton.InferInput:
    item = triton.InferInput(name, list(array.shape), dtype)
    item.set_data_from_numpy(array)
    return item


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_and_shape_comes_back_bit_for_bit(stub, dtype, shape):
    array = values(dtype, shape)
    request = raw_request(identity_name(dtype), dtype, array)
    answer = stub.ModelInfer(request)
    (output,) = answer.outputs
    assert (output.name, output.datatype, tuple(output.shape)) == ("y", dtype, shape)
    assert answer.raw_output_contents == request.raw_input_contents


@pytest.mark.parametrize("dtype", ["FP32", "FP16", "INT64", "UINT8", "BOOL", "BYTES"])
def test_tritonclient_reads_what_numpy_says(client, dtype):
    array = values(dtype, (3, 4))
    result = client.infer(identity_name(dtype), [triton_input("x", dtype, array)])
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_tritonclient_sends_and_reads_bf16(client):
    array = np.array([[1.5, -2.0, 3.140625]], dtype=ml_dtypes.bfloat16)
    result = client.infer("identity_bf16", [triton_input("x", "BF16", array)])
    np.testing.assert_array_equal(result.as_numpy("y").astype(np.float32), array.astype(np.float32))


@pytest.mark.parametrize("dtype", ["FP32", "BF16", "UINT8"])
def test_twelve_megabytes_pass(stub, dtype):
    array = values(dtype, (12_000_000 // DTYPES[dtype].itemsize,))
    request = raw_request(identity_name(dtype), dtype, array)
    assert stub.ModelInfer(request).raw_output_contents == request.raw_input_contents


def test_twelve_megabytes_of_strings_pass(stub):
    array = np.empty(12, dtype=object)
    array[:] = [bytes([200 + i]) * 1_000_000 for i in range(12)]
    request = raw_request("identity_bytes", "BYTES", array)
    assert stub.ModelInfer(request).raw_output_contents == request.raw_input_contents


def test_a_model_computes_what_numpy_computes(client):
    x = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)
    result = client.infer("mlp", [triton_input("x", "FP32", x)])
    np.testing.assert_allclose(result.as_numpy("y"), mlp_oracle(x), rtol=1e-5, atol=1e-6)


CONTENTS = {
    "BOOL": ("bool_contents", [True, False, True]),
    "INT8": ("int_contents", [-128, 0, 127]),
    "INT16": ("int_contents", [-32768, 0, 32767]),
    "INT32": ("int_contents", [-(2**31), 0, 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 0, 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 1, 255]),
    "UINT16": ("uint_contents", [0, 1, 65535]),
    "UINT32": ("uint_contents", [0, 1, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 1, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.5, -0.0, float("inf")]),
    "FP64": ("fp64_contents", [0.1, -1e300, float("inf")]),
    "BYTES": ("bytes_contents", [b"", b"\xff\x00", b"text"]),
}


@pytest.mark.parametrize("dtype", CONTENTS)
def test_typed_contents_are_read_and_answered_raw(stub, dtype):
    field, elements = CONTENTS[dtype]
    request = service_pb2.ModelInferRequest(model_name=identity_name(dtype))
    item = request.inputs.add(name="x", datatype=dtype, shape=[3])
    getattr(item.contents, field).extend(elements)
    answer = stub.ModelInfer(request)
    array = np.empty(3, dtype=object) if dtype == "BYTES" else np.zeros(3, DTYPES[dtype].numpy)
    array[:] = elements
    assert answer.raw_output_contents == [bytes(Tensor.from_numpy(array).buffer())]
    assert not answer.outputs[0].HasField("contents")


@pytest.mark.parametrize(
    ("dtype", "field", "element"), [("INT8", "int_contents", 128), ("UINT16", "uint_contents", 65536)]
)
def test_a_typed_element_out_of_range_is_refused(stub, dtype, field, element):
    request = service_pb2.ModelInferRequest(model_name=identity_name(dtype))
    getattr(request.inputs.add(name="x", datatype=dtype, shape=[1]).contents, field).append(element)
    assert refused(stub, request) == ("INVALID_ARGUMENT", f"input 'x': {element} does not fit {dtype}")


def test_only_the_requested_outputs_come(client):
    a, b = np.ones((2, 3), np.float32), np.full((2, 3), 2, np.float32)
    inputs = [triton_input("a", "FP32", a), triton_input("b", "FP32", b)]
    result = client.infer("sums", inputs, outputs=[triton.InferRequestedOutput("difference")])
    assert [output.name for output in result.get_response().outputs] == ["difference"]
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)


def test_id_name_and_version_are_in_the_answer(client):
    result = client.infer("mlp", [triton_input("x", "FP32", np.zeros((1, 4), np.float32))], request_id="r-1")
    answer = result.get_response()
    assert (answer.id, answer.model_name, answer.model_version) == ("r-1", "mlp", "1")


@pytest.mark.parametrize(("version", "seed"), [("", 10), ("1", 1), ("2", 2), ("10", 10)])
def test_the_version_that_was_asked_for_answers(client, version, seed):
    x = np.random.default_rng(1).standard_normal((2, 4), dtype=np.float32)
    result = client.infer("versioned", [triton_input("x", "FP32", x)], model_version=version)
    np.testing.assert_allclose(result.as_numpy("y"), mlp_oracle(x, seed=seed), rtol=1e-5, atol=1e-6)
    assert result.get_response().model_version == str(seed)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request_is_answered(client, algorithm):
    x = np.zeros((1000, 4), np.float32)
    result = client.infer("mlp", [triton_input("x", "FP32", x)], compression_algorithm=algorithm)
    np.testing.assert_allclose(result.as_numpy("y"), mlp_oracle(x), rtol=1e-5, atol=1e-6)


def test_request_parameters_of_every_kind_are_taken(client):
    x = np.zeros((1, 4), np.float32)
    parameters = {"text": "ü", "number": -3, "flag": True, "fraction": 0.5}
    result = client.infer("mlp", [triton_input("x", "FP32", x)], parameters=parameters)
    np.testing.assert_allclose(result.as_numpy("y"), mlp_oracle(x), rtol=1e-5, atol=1e-6)


def refused(stub, request, **options) -> tuple[str, str]:
    import grpc

    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request, **options)
    assert "Traceback" not in raised.value.details()
    return raised.value.code().name, raised.value.details()


ONE = np.zeros((1, 4), np.float32)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda r: setattr(r, "model_name", "nobody"), "NOT_FOUND", "no model 'nobody'"),
        (lambda r: setattr(r, "model_name", "../mlp"), "NOT_FOUND", "no model '../mlp'"),
        (lambda r: setattr(r, "model_version", "9"), "NOT_FOUND", "does not serve version '9'"),
        (lambda r: r.inputs[0].shape.append(2), "INVALID_ARGUMENT", "input 'x'"),
        (lambda r: r.inputs[0].shape.__setitem__(0, -1), "INVALID_ARGUMENT", "got -1"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 2**62), "INVALID_ARGUMENT", "larger than any request"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP33"), "INVALID_ARGUMENT", "FP33"),
        (lambda r: setattr(r.inputs[0], "datatype", "INT32"), "INVALID_ARGUMENT", "must be FP32, got INT32"),
        (lambda r: setattr(r.inputs[0], "name", "z"), "INVALID_ARGUMENT", "input 'x' is missing"),
        (lambda r: r.raw_input_contents.append(b""), "INVALID_ARGUMENT", "1 expected, got 2"),
        (lambda r: r.raw_input_contents.__setitem__(0, b"123"), "INVALID_ARGUMENT", "needs 16 bytes, got 3"),
        (
            lambda r: r.raw_input_contents.pop(),
            "INVALID_ARGUMENT",
            "needs 4 elements in fp32_contents, got 0",
        ),
        (
            lambda r: r.inputs[0].contents.fp32_contents.append(1),
            "INVALID_ARGUMENT",
            "beside raw_input_contents",
        ),
        (lambda r: r.outputs.add(name="z"), "INVALID_ARGUMENT", "unknown output 'z'"),
        (lambda r: r.parameters.get_or_create("p"), "INVALID_ARGUMENT", "parameter 'p' has no value"),
        (
            lambda r: (
                r.inputs[0]
                .parameters["shared_memory_region"]
                .MergeFrom(service_pb2.InferParameter(string_param="r"))
            ),
            "UNIMPLEMENTED",
            "shared_memory_region",
        ),
    ],
)
def test_a_wrong_request_says_what_is_wrong(stub, change, code, words):
    request = raw_request("mlp", "FP32", ONE)
    change(request)
    got, details = refused(stub, request)
    assert got == code
    assert words in details


def test_an_input_given_twice_is_refused(stub):
    request = raw_request("mlp", "FP32", ONE)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(16))
    assert refused(stub, request) == ("INVALID_ARGUMENT", "input 'x' is given twice")


def test_half_types_must_come_raw(stub):
    request = service_pb2.ModelInferRequest(model_name="identity_fp16")
    request.inputs.add(name="x", datatype="FP16", shape=[1]).contents.fp32_contents.append(1)
    code, details = refused(stub, request)
    assert code == "INVALID_ARGUMENT"
    assert "raw_input_contents" in details


def test_a_message_that_is_none_is_refused(server: Server):
    import grpc

    with grpc.insecure_channel(server.grpc) as channel:
        for method in ("ModelInfer", "ModelMetadata", "RepositoryModelLoad"):
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            with pytest.raises(grpc.RpcError) as raised:
                call(b"\xff\xff\xff")
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_guest_that_refuses_says_so_in_its_own_words(stub):
    assert refused(stub, raw_request("refuses", "FP32", ONE)) == ("INVALID_ARGUMENT", "too dark to see")


def test_a_guest_that_traps_fails_alone(stub):
    assert refused(stub, raw_request("trap", "FP32", ONE))[0] == "INTERNAL"
    assert stub.ModelInfer(raw_request("mlp", "FP32", ONE)).outputs[0].name == "y"


def test_the_models_timeout_ends_a_guest_that_does_not(stub):
    assert refused(stub, raw_request("forever", "FP32", ONE))[0] == "DEADLINE_EXCEEDED"


def test_the_clients_deadline_ends_a_guest_that_does_not(stub):
    assert refused(stub, raw_request("forever", "FP32", ONE), timeout=0.05)[0] == "DEADLINE_EXCEEDED"


def test_the_clients_timeout_parameter_ends_a_guest_that_does_not(server: Server):
    """Microseconds; the model's own limit of 0.3 s would end it too, and in other words."""
    with (
        triton.InferenceServerClient(server.grpc) as client,
        pytest.raises(InferenceServerException) as raised,
    ):
        client.infer("forever", [triton_input("x", "FP32", ONE)], timeout=1)
    assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert "the deadline passed" in raised.value.message()


@pytest.mark.parametrize(
    "value",
    [
        service_pb2.InferParameter(int64_param=-1),
        service_pb2.InferParameter(string_param="1s"),
        service_pb2.InferParameter(double_param=0.5),
        service_pb2.InferParameter(bool_param=True),
    ],
    ids=str,
)
def test_a_timeout_that_is_no_number_of_microseconds_is_refused(stub, value):
    request = raw_request("mlp", "FP32", ONE)
    request.parameters["timeout"].CopyFrom(value)
    code, details = refused(stub, request)
    assert code == "INVALID_ARGUMENT"
    assert "'timeout' must be microseconds" in details


def test_many_strings_pass(stub):
    array = values("BYTES", (200, 100))
    request = raw_request("identity_bytes", "BYTES", array)
    assert stub.ModelInfer(request).raw_output_contents == request.raw_input_contents
    request = service_pb2.ModelInferRequest(model_name="identity_bytes")
    request.inputs.add(name="x", datatype="BYTES", shape=array.shape).contents.bytes_contents.extend(
        array.reshape(-1).tolist()
    )
    assert stub.ModelInfer(request).raw_output_contents == [bytes(Tensor.from_numpy(array).buffer())]


def cut_off_strings() -> service_pb2.ModelInferRequest:
    request = raw_request("m", "BYTES", values("BYTES", (100_000,)))
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    return request


def typed_values_one_of_which_does_not_fit() -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="m")
    item = request.inputs.add(name="x", datatype="INT8", shape=[100_000])
    item.contents.int_contents.extend([*[1] * 99_999, 1000])
    return request


TURNS = """
import asyncio, sys
from pathlib import Path

from kserve_wasm.artifact import load_model_dir
from kserve_wasm.guest.pool import GuestPool
from kserve_wasm.model import WasmModel
from kserve_wasm.server.grpc.inference import Inference
from kserve_wasm.server.repository import WasmModelRepository

directory, message = map(Path, sys.argv[1:])


class Context:
    def time_remaining(self):
        return None


async def requests():
    yield message.read_bytes()


async def main():
    repository = WasmModelRepository(directory, None, None)
    model = WasmModel(load_model_dir(directory, "m")[0], GuestPool(1))
    model.load()
    repository.update(model)
    turns = 0

    async def count():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    async for answer in Inference(repository, False).stream(requests(), Context()):
        assert b"input 'x'" in answer, answer
    assert turns > 0
    counting.cancel()
    await repository.close()


asyncio.run(main())
"""


@pytest.mark.parametrize("make", [cut_off_strings, typed_values_one_of_which_does_not_fit])
def test_the_event_loop_goes_on_while_much_is_decoded(make, tmp_path):
    """The request is refused when it was read to its end: without a thread it never lets go of the loop."""
    directory = write_guest(ECHO, tmp_path / "m")
    (tmp_path / "message").write_bytes(make().SerializeToString())
    command = [sys.executable, "-c", TURNS, str(directory), str(tmp_path / "message")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_stream_answers_each_request_and_outlives_errors(server: Server):
    x = np.random.default_rng(2).standard_normal((2, 4), dtype=np.float32)
    answers: list[tuple[object, InferenceServerException | None]] = []
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.append((result, error)))
        client.async_stream_infer("mlp", [triton_input("x", "FP32", x)], request_id="first")
        client.async_stream_infer("nobody", [triton_input("x", "FP32", x)], request_id="second")
        client.async_stream_infer("mlp", [triton_input("x", "FP32", -x)], request_id="third")
        client.stop_stream()
    assert [error is None for _, error in answers] == [True, False, True]
    assert "no model 'nobody'" in str(answers[1][1])
    assert answers[0][0].get_response().id == "first"
    np.testing.assert_allclose(answers[2][0].as_numpy("y"), mlp_oracle(-x), rtol=1e-5, atol=1e-6)


def test_many_clients_get_their_own_answers(stub):
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal((1, 4), dtype=np.float32) for _ in range(200)]
    calls = [stub.ModelInfer.future(raw_request("mlp", "FP32", x)) for x in inputs]
    for x, call in zip(inputs, calls, strict=True):
        y = np.frombuffer(call.result().raw_output_contents[0], np.float32).reshape(1, 3)
        np.testing.assert_allclose(y, mlp_oracle(x), rtol=1e-5, atol=1e-6)
