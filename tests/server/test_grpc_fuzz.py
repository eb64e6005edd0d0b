"""Random and doctored gRPC messages: each is answered, or refused as the client's mistake; the server never errs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.server.process import Server
from tests.support.counts import count

THEIRS = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"}
"""What a message without sense may end with."""

shapes = st.lists(
    st.one_of(st.integers(-2, 5), st.sampled_from([2**31, 2**62, 2**63 - 1, -(2**63)])), max_size=4
)
datatypes = st.sampled_from(["FP32", "FP16", "BF16", "BOOL", "INT64", "UINT8", "BYTES", "", "fp32", "FP8"])
names = st.sampled_from(["x", "y", "", "n\0ul", "ü"])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A ``ModelInferRequest`` with every field drawn, some of its bytes changed."""
    message = pb.ModelInferRequest(
        model_name=draw(st.sampled_from(["mlp", "identity_fp32", "identity_int64", "nobody", "../mlp"])),
        model_version=draw(st.sampled_from(["", "1", "2", "latest"])),
        id=draw(st.text(max_size=5)),
    )
    for _ in range(draw(st.integers(0, 2))):
        tensor = message.inputs.add(name=draw(names), datatype=draw(datatypes), shape=draw(shapes))
        if draw(st.booleans()):
            tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=5)))
        if draw(st.booleans()):
            tensor.parameters["a"].string_param = "b"
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=24), max_size=2)))
    for name in draw(st.lists(names, max_size=2)):
        message.outputs.add(name=name)
    data = bytearray(message.SerializeToString())
    for at, byte in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3)):
        if data:
            data[at % len(data)] = byte
    return bytes(data)


def good() -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="mlp")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    message.raw_input_contents.append(np.ones(4, np.float32).tobytes())
    return message


@st.composite
def nearly_good(draw: st.DrawFn) -> bytes:
    """A good message, one thing of which may be another."""
    message = good()
    change = draw(st.sampled_from(["nothing", "id", "shape", "datatype", "raw", "name", "output", "byte"]))
    if change == "id":
        message.id = draw(st.text())
    elif change == "shape":
        message.inputs[0].shape[:] = draw(shapes)
    elif change == "datatype":
        message.inputs[0].datatype = draw(datatypes)
    elif change == "raw":
        message.raw_input_contents[0] = draw(st.binary(min_size=16, max_size=16) | st.binary(max_size=40))
    elif change == "name":
        message.inputs[0].name = draw(names)
    elif change == "output":
        message.outputs.add(name=draw(names))
    data = bytearray(message.SerializeToString())
    if change == "byte":
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@pytest.fixture(scope="module")
def call(server: Server) -> Iterator[Callable[[bytes], Any]]:
    with grpc.insecure_channel(server.grpc) as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        def send(data: bytes) -> Any:
            try:
                return method(data, timeout=30)
            except grpc.RpcError as error:
                return error

        yield send


@settings(max_examples=600)
@given(data=st.one_of(messages(), nearly_good(), nearly_good(), st.binary(max_size=60)))
def test_any_message_is_answered_or_refused_as_the_clients_mistake(
    call: Callable[[bytes], Any], data: bytes
) -> None:
    answer = call(data)
    code = answer.code().name if isinstance(answer, grpc.RpcError) else "OK"
    count(f"gRPC messages that ended with {code}")
    assert code in THEIRS, (code, answer)


def test_a_good_message_is_answered_after_all_that(call: Callable[[bytes], Any]) -> None:
    answer = pb.ModelInferResponse.FromString(call(good().SerializeToString()))
    assert list(answer.outputs[0].shape) == [1, 3]
