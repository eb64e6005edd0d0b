"""The gRPC server: generic handlers on ``grpc.aio``, which shares the event loop with REST."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import DESCRIPTOR as REFLECTION_FILE

from kserve_wasm.server.grpc.health import Health
from kserve_wasm.server.grpc.inference import Inference
from kserve_wasm.server.grpc.messages import HEALTH, INFERENCE, POOL
from kserve_wasm.server.grpc.service import Service
from kserve_wasm.server.peers import Peers
from kserve_wasm.server.repository import WasmModelRepository


def make_server(
    repository: WasmModelRepository,
    peers: Peers,
    address: str,
    max_receive: int,
    max_send: int,
    log_requests: bool,
    tls: tuple[bytes, bytes] | None = None,
    shared: bool = False,
) -> tuple[grpc.aio.Server, int]:
    """Make a server that listens on ``address`` and is not started yet.

    Args:
        repository: where the models are.
        peers: all processes that answer on this port.
        address: host and port; port 0 takes a free one.
        max_receive: bytes of the largest message it takes; a larger one ends with RESOURCE_EXHAUSTED.
        max_send: bytes of the largest message it gives; -1 for any size.
        log_requests: write a log line for each inference.
        tls: private key and certificate chain, PEM; None listens without TLS.
        shared: other workers listen on the same port.

    Returns:
        The server and its port.

    Raises:
        RuntimeError: the port cannot be had.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_receive),
            ("grpc.max_send_message_length", max_send),
            # Two servers on one port would take each other's requests without a word.
            ("grpc.so_reuseport", int(shared)),
        ]
    )
    methods = inference_handlers(repository, peers, log_requests)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(INFERENCE, methods),
            grpc.method_handlers_generic_handler(HEALTH, Health(repository).handlers()),
        )
    )
    _add_reflection(server, (INFERENCE, HEALTH, reflection.SERVICE_NAME))
    if tls is None:
        return server, server.add_insecure_port(address)
    return server, server.add_secure_port(address, grpc.ssl_server_credentials([tls]))


def inference_handlers(
    repository: WasmModelRepository, peers: Peers, log_requests: bool
) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Make the handler of each method of ``GRPCInferenceService``, by its name; they take and give serialized messages.

    Args:
        repository: where the models are.
        peers: all processes that answer on this port.
        log_requests: write a log line for each inference.
    """
    inference = Inference(repository, log_requests)
    methods = Service(repository, peers).handlers()
    methods["ModelInfer"] = grpc.unary_unary_rpc_method_handler(inference.infer)
    methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(inference.stream)
    return methods


def _add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    POOL.AddSerializedFile(REFLECTION_FILE.serialized_pb)
    reflection.enable_server_reflection(services, server, pool=POOL)
