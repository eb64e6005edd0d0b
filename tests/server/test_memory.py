"""What a server keeps of requests that it has answered: nothing, well or badly as they ended."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import requests
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.server.process import Server

SIZE = 10_000_000
WARM = 20
COUNT = 30
MAY_GROW = 8 * SIZE
"""Bytes; the requests together have ``COUNT * SIZE``, and each is in memory several times while it is answered."""


def resident(server: Server) -> int:
    """Bytes of the server's memory that are in RAM."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


def over_grpc(server: Server, model: str, ends: str) -> Callable[[], None]:
    channel = grpc.insecure_channel(
        server.grpc,
        options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)],
    )
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="INT8", shape=[SIZE])
    request.raw_input_contents.append(bytes(SIZE))

    def ask() -> None:
        call = stub.ModelInfer.future(request)
        assert call.code().name == ends

    return ask


def over_rest(server: Server, model: str, ends: str) -> Callable[[], None]:
    item = {"name": "x", "datatype": "INT8", "shape": [SIZE], "parameters": {"binary_data_size": SIZE}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    session = requests.Session()

    def ask() -> None:
        url = f"{server.http}/v2/models/{model}/infer"
        assert session.post(url, head + bytes(SIZE), headers=headers, timeout=60).status_code == int(ends)

    return ask


@pytest.mark.parametrize(
    ("protocol", "model", "ends"),
    [
        (over_grpc, "identity_int8", "OK"),
        (over_grpc, "mlp", "INVALID_ARGUMENT"),
        (over_grpc, "nobody", "NOT_FOUND"),
        (over_grpc, "trap", "INTERNAL"),
        (over_rest, "identity_int8", "200"),
        (over_rest, "mlp", "400"),
        (over_rest, "trap", "500"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_answered_requests_leave_memory(server, protocol, model, ends):
    ask = protocol(server, model, ends)
    for _ in range(WARM):
        ask()
    before = resident(server)
    for _ in range(COUNT):
        ask()
    assert resident(server) - before < MAY_GROW
