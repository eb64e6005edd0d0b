"""The client: h2load (Debian: nghttp2-client), in C, so that what is measured is the server.

A closed loop: each client sends its next request when it has the answer to the last. Latencies are the client's own,
request by request, in microseconds.
"""

from __future__ import annotations

import json
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from _servers import CLIENT_CPU, Server
from tritonclient.grpc import service_pb2

DATATYPES = {"float32": "FP32", "int64": "INT64"}


@dataclass
class Result:
    """Requests a second, and latencies in µs."""

    rate: float
    p50: float
    p99: float


def require_h2load() -> None:
    """Install the client on Debian, or say what is missing."""
    if shutil.which("h2load"):
        return
    if shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=False, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["apt-get", "install", "-qq", "-y", "nghttp2-client"], check=False, stdout=subprocess.DEVNULL
        )
    if not shutil.which("h2load"):
        sys.exit("these benchmarks need h2load (Debian: apt-get install nghttp2-client)")


@dataclass
class Body:
    """One request: its path, headers and bytes; ``protocol`` names it in tables."""

    protocol: str
    path: str
    headers: list[str]
    data: bytes


def bodies(model: str, name: str, array: npt.NDArray[Any], output: str) -> list[Body]:
    """One inference of ``array`` as REST JSON, REST binary and gRPC."""
    infer = f"/v2/models/{model}/infer"
    datatype = DATATYPES[array.dtype.name]
    tensor = {"name": name, "datatype": datatype, "shape": list(array.shape)}
    text = json.dumps({"inputs": [{**tensor, "data": array.reshape(-1).tolist()}]}).encode()
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": array.nbytes}}],
            "outputs": [{"name": output, "parameters": {"binary_data": True}}],
        }
    ).encode()
    return [
        Body("REST JSON", infer, ["content-type: application/json"], text),
        Body(
            "REST binary",
            infer,
            ["content-type: application/octet-stream", f"inference-header-content-length: {len(head)}"],
            head + array.tobytes(),
        ),
        Body(
            "gRPC",
            "/inference.GRPCInferenceService/ModelInfer",
            ["content-type: application/grpc", "te: trailers"],
            _grpc(model, name, array),
        ),
    ]


def _grpc(model: str, name: str, array: npt.NDArray[Any]) -> bytes:
    message = service_pb2.ModelInferRequest(model_name=model)
    message.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    data = message.SerializeToString()
    return struct.pack(">BI", 0, len(data)) + data  # not compressed, length, message


def answer(server: Server, body: Body) -> npt.NDArray[np.float32]:
    """The values of the first output, FP32, that one request gets."""
    if body.protocol == "gRPC":
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            data = channel.unary_unary(body.path)(body.data[5:], timeout=60)
        message = service_pb2.ModelInferResponse.FromString(data)
        if message.raw_output_contents:
            return np.frombuffer(message.raw_output_contents[0], "<f4")
        return np.array(message.outputs[0].contents.fp32_contents, np.float32)
    headers = dict(header.split(": ") for header in body.headers)
    request = urllib.request.Request(f"http://127.0.0.1:{server.http}{body.path}", body.data, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        data = response.read()
        length = response.headers.get("inference-header-content-length")
    if length is not None:
        return np.frombuffer(data[int(length) :], "<f4")
    return np.array(json.loads(data)["outputs"][0]["data"], np.float32)


def load(server: Server, body: Body, clients: int, requests: int) -> Result:
    """Send ``requests`` requests from ``clients`` closed loops; every one must be answered with status 2xx."""
    with tempfile.TemporaryDirectory() as scratch:
        data, log = Path(scratch, "data"), Path(scratch, "log")
        data.write_bytes(body.data)
        http2 = body.protocol == "gRPC"
        done = subprocess.run(
            [
                *("taskset", "-c", str(CLIENT_CPU), "h2load", *([] if http2 else ["--h1"])),
                *("-c", str(clients), "-n", str(requests), "-d", data, "--log-file", log),
                *(part for header in body.headers for part in ("-H", header)),
                f"http://127.0.0.1:{server.grpc if http2 else server.http}{body.path}",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert f"{requests} succeeded, 0 failed, 0 errored" in done, (
            f"{server.name}, {body.protocol}:\n{done}"
        )
        rate = float(done.split("finished in ")[1].split(", ")[1].split()[0])
        micros = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
        return Result(rate, micros[len(micros) // 2], micros[len(micros) * 99 // 100])


def median(results: list[Result]) -> Result:
    """The median of each figure."""
    return Result(*(statistics.median(getattr(r, k) for r in results) for k in ("rate", "p50", "p99")))
