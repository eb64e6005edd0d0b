"""What requests leave behind: no bytes, whether they succeed or fail."""

from __future__ import annotations

import gzip
from pathlib import Path

import orjson
import pytest
import requests

from tests.server.process import Server
from tests.server.rest.conftest import MAX_REQUEST_BYTES

SIZE = 40_000_000
ROUNDS = 10
BOUND = 3 * SIZE
"""Bytes that the process may grow by over all rounds; a leak of one body per request would be three times that."""


def resident(server: Server) -> int:
    """Bytes of the server's memory."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def binary(datatype: str, shape: list[int], raw: bytes) -> tuple[bytes, dict[str, str]]:
    item = {
        "name": "x",
        "datatype": datatype,
        "shape": shape,
        "parameters": {"binary_data_size": len(raw)},
    }
    text = orjson.dumps({"inputs": [item], "parameters": {"binary_data_output": True}})
    return text + raw, {"Inference-Header-Content-Length": str(len(text))}


LARGE = {
    "compressed and too much JSON": (gzip.compress(bytes(SIZE), 1), {"Content-Encoding": "gzip"}, 413),
    "compressed and above the limit": (
        gzip.compress(bytes(MAX_REQUEST_BYTES + 1), 1),
        {"Content-Encoding": "gzip"},
        413,
    ),
    "compressed and cut": (gzip.compress(bytes(SIZE), 1)[:-9], {"Content-Encoding": "gzip"}, 400),
    "BYTES of another number": (*binary("BYTES", [3], bytes(SIZE)), 400),
    "of another size": (*binary("UINT8", [3], bytes(SIZE)), 400),
    "good": (*binary("UINT8", [SIZE], bytes(SIZE)), 200),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("path", ["echo", "ec%68o"], ids=["fast path", "route"])
def test_large_requests_leave_nothing_behind(server: Server, kind: str, path: str) -> None:
    body, headers, status = LARGE[kind]
    with requests.Session() as session:
        url = f"{server.http}/v2/models/{path}/infer"

        def post() -> None:
            assert session.post(url, data=body, headers=headers, timeout=60).status_code == status

        for _ in range(2):
            post()
        before = resident(server)
        for _ in range(ROUNDS):
            post()
        assert resident(server) - before < BOUND
