"""How long a request may take and how urgent it is, as Triton's clients say it."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.protocol.checks import priority_of, timeout_of
from kserve_wasm.request import Parameter
from kserve_wasm.server.grpc import codec


def over_rest(**options: Any) -> dict[str, Parameter]:
    """The parameters that Triton's HTTP client sends."""
    item = triton_http.InferInput("x", [1], "FP32")
    item.set_data_from_numpy(np.zeros(1, np.float32))
    body, length = triton_http.InferenceServerClient.generate_request_body([item], **options)
    parameters: dict[str, Parameter] = orjson.loads(body[:length]).get("parameters", {})
    return parameters


def over_grpc(**options: Any) -> dict[str, Parameter]:
    """The parameters that arrive of what Triton's gRPC client sends."""
    item = triton_grpc.InferInput("x", [1], "FP32")
    item.set_data_from_numpy(np.zeros(1, np.float32))
    received: list[bytes] = []

    def refuse(message: bytes, context: grpc.ServicerContext) -> bytes:
        received.append(message)
        context.abort(grpc.StatusCode.ABORTED, "read it")

    class Handler(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            triton_grpc.InferenceServerClient(f"127.0.0.1:{port}") as client,
            pytest.raises(InferenceServerException, match="read it"),
        ):
            client.infer("m", [item], **options)
    finally:
        server.stop(None).wait()
    (message,) = received
    return dict(codec.decode(codec.parse(message)).parameters)


@pytest.mark.parametrize("sent_over", [over_rest, over_grpc])
def test_what_tritons_clients_say_arrives(sent_over):
    parameters = sent_over(priority=2, timeout=1_500_000)
    assert priority_of(parameters, 3, 2) == 2
    assert timeout_of(parameters) == 1.5
    nothing = sent_over()
    assert priority_of(nothing, 3, 2) == 2
    assert timeout_of(nothing) == math.inf


def test_a_request_without_priority_gets_the_default():
    assert priority_of({}, 5, 4) == 4
    assert priority_of({"priority": 0}, 5, 4) == 4
    assert [priority_of({"priority": p}, 5, 4) for p in (1, 5)] == [1, 5]


@pytest.mark.parametrize("priority", [-1, 6, "1", 1.0, True, 2**64])
def test_a_priority_that_the_model_does_not_know_is_refused(priority):
    with pytest.raises(InvalidRequest, match="from 1, the most urgent, to 5"):
        priority_of({"priority": priority}, 5, 3)


@pytest.mark.parametrize("priority", [-1, 7, "high", True])
def test_without_levels_the_parameter_is_the_guests_own(priority):
    assert priority_of({"priority": priority}, 0, 0) == 0


@pytest.mark.parametrize("timeout", [-1, "1", 1.5, True])
def test_a_timeout_that_is_none_is_refused(timeout):
    with pytest.raises(InvalidRequest, match="microseconds"):
        timeout_of({"timeout": timeout})
