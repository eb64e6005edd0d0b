"""HTTP itself: what a connection may look like on the way to ``POST …/infer``, byte by byte."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.process import Server
from tests.server.rest.conftest import ECHO, MAX_REQUEST_BYTES, http_client, write_model
from tests.support.counts import count

BODY = orjson.dumps({"inputs": [{"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2]}]})


def request(
    model: str = "echo",
    *headers: str,
    body: bytes = BODY,
    length: int | None = None,
    version: str = "1.1",
    tag: str = "",
) -> bytes:
    """One request; ``tag`` is its id."""
    if tag:
        body = orjson.dumps(orjson.loads(body) | {"id": tag})
    lines = [f"POST /v2/models/{model}/infer HTTP/{version}", "Host: localhost", *headers]
    if not any(header.lower().startswith("transfer-encoding") for header in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection:
    """A socket with a reader of answers."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read(self) -> bool:
        data = self.sock.recv(1 << 16)
        self.buffer += data
        return bool(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        while b"\r\n\r\n" not in self.buffer:
            assert self.read(), f"the connection ended: {self.buffer!r}"
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers.get("content-length", 0))
        while len(self.buffer) < length:
            assert self.read(), f"the connection ended inside a body: {self.buffer!r}"
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return int(status.split()[1]), headers, body

    def tag(self) -> str:
        status, _, body = self.answer()
        assert status == 200
        return str(orjson.loads(body)["id"])

    def is_closed(self) -> bool:
        """Waits for the server to end the connection."""
        with contextlib.suppress(ConnectionResetError):
            while self.read():
                pass
        return self.buffer == b""


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as sock:
        yield Connection(sock)


def total(server: Server, name: str) -> float:
    return sum(value for (found, _), value in server.metrics().items() if found == name)


def test_a_connection_serves_request_after_request(connection: Connection) -> None:
    for i in range(20):
        connection.send(request(tag=f"r{i}"))
        status, headers, body = connection.answer()
        assert (status, orjson.loads(body)["id"]) == (200, f"r{i}")
        assert "connection" not in headers


def test_pipelined_answers_keep_their_order(connection: Connection) -> None:
    health = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    connection.send(
        request("slow", tag="a") + request(tag="b") + health + request(tag="c") + request("slow", tag="d")
    )
    assert connection.tag() == "a"
    assert connection.tag() == "b"
    assert orjson.loads(connection.answer()[2]) == {"live": True}
    assert connection.tag() == "c"
    assert connection.tag() == "d"


def test_thousands_of_requests_behind_a_slow_one(connection: Connection) -> None:
    connection.send(request("slow", tag="first"))
    connection.send(b"".join(request(tag=f"{i}") for i in range(3000)))
    assert connection.tag() == "first"
    assert [connection.tag() for _ in range(3000)] == [f"{i}" for i in range(3000)]


def test_answers_to_a_client_that_does_not_read_wait(server: Server, connection: Connection) -> None:
    """The server must stop reading, not pile up answers: the client's own sending has to block."""
    body = orjson.dumps(
        {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [20_000], "data": [1] * 20_000}]}
    )
    one = request(body=body)
    connection.sock.setblocking(False)
    limit, sent, stuck = 400_000_000, 0, 0
    while sent < limit and stuck < 10:
        if select.select([], [connection.sock], [], 0.1)[1]:
            sent += connection.sock.send(one[sent % len(one) :])
            stuck = 0
        else:
            stuck += 1
    assert sent < limit
    connection.sock.setblocking(True)
    connection.sock.settimeout(30)
    for _ in range(sent // len(one)):
        assert connection.answer()[0] == 200
    assert http_client(server).is_server_live()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunked_bodies(connection: Connection, size: int) -> None:
    parts = [BODY[i : i + size] for i in range(0, len(BODY), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    for _ in range(2):
        connection.send(request("echo", "Transfer-Encoding: chunked", body=chunks))
        status, _, body = connection.answer()
        assert (status, orjson.loads(body)["outputs"][0]["data"]) == (200, [1, 2])


def test_a_body_may_come_slowly(connection: Connection) -> None:
    for byte in (data := request(tag="slow")):
        connection.send(bytes([byte]))
    assert connection.tag() == "slow"
    connection.send(data[:100])
    time.sleep(0.2)
    connection.send(data[100:])
    assert connection.tag() == "slow"


def test_expect_100_continue(connection: Connection) -> None:
    data = request("echo", "Expect: 100-continue")
    connection.send(data[: -len(BODY)])
    assert connection.answer()[0] == 100
    connection.send(BODY)
    assert connection.answer()[0] == 200
    connection.send(request("echo", "Expect: 100-continue", length=MAX_REQUEST_BYTES + 1, body=b""))
    assert connection.answer()[0] == 413


@pytest.mark.parametrize("header", ["Connection: close", "Connection: Close"])
def test_connection_close(connection: Connection, header: str) -> None:
    connection.send(request("echo", header) + request())
    status, headers, _ = connection.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert connection.is_closed()


def test_http_1_0_ends_with_the_answer(connection: Connection) -> None:
    connection.send(request(version="1.0"))
    status, headers, _ = connection.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert connection.is_closed()


@pytest.mark.parametrize("path", ["echo", "ec%68o"])
def test_a_body_above_the_limit_is_refused_before_it_comes(connection: Connection, path: str) -> None:
    connection.send(request(path, length=MAX_REQUEST_BYTES + 1))
    status, headers, body = connection.answer()
    assert (status, headers["connection"]) == (413, "close")
    assert str(MAX_REQUEST_BYTES) in orjson.loads(body)["error"]


def test_a_refusal_reaches_a_client_that_sends_on(connection: Connection) -> None:
    """A reset because of unread data would take the answer from a client that writes first and reads then."""
    connection.send(request(length=MAX_REQUEST_BYTES + 1, body=b""))
    for _ in range(40):
        connection.send(bytes(1 << 20))
    assert connection.answer()[0] == 413


def test_a_chunked_body_is_cut_off_at_the_limit(connection: Connection) -> None:
    connection.send(request("echo", "Transfer-Encoding: chunked", body=b""))
    chunk = b"%x\r\n%s\r\n" % (1 << 20, bytes(1 << 20))
    for _ in range(MAX_REQUEST_BYTES // (1 << 20) + 2):
        connection.send(chunk)
    assert connection.answer()[0] == 413


def test_a_client_that_leaves_takes_its_request_with_it(server: Server) -> None:
    before = total(server, "kserve_wasm_requests_total")
    slow = request("slow").replace(b"/slow/", b"/sl%6fw/")
    predict = slow.replace(b"/v2/models/sl%6fw/infer", b"/v1/models/slow:predict")
    for data in (request("slow"), request("slow")[:-5], request()[:60], slow, slow[:-5], predict[:-5]):
        with socket.create_connection(("127.0.0.1", server.http_port)) as sock:
            sock.sendall(data)
            time.sleep(0.05)
    deadline = time.monotonic() + 20
    while total(server, "kserve_wasm_requests_in_flight"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert total(server, "kserve_wasm_requests_total") == before


@pytest.mark.parametrize("path", ["slow", "sl%6fw"])
def test_a_client_that_only_ends_its_sending_gets_its_answer(connection: Connection, path: str) -> None:
    connection.send(request(path, tag="half"))
    connection.sock.shutdown(socket.SHUT_WR)
    assert connection.answer()[0] == 100
    assert connection.tag() == "half"
    assert connection.is_closed()


def test_an_idle_connection_does_not_hold_the_answer_of_another(
    server: Server, connection: Connection
) -> None:
    connection.send(request()[:30])
    with http_client(server) as client:
        assert client.is_server_ready()


@pytest.mark.parametrize(
    "start",
    [
        b"POST /",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: localhost\r\nX-A: ",
        request() + b"GET /v2 HTTP/1.1\r\nX-A: ",
    ],
    ids=["line", "header", "second request"],
)
def test_endless_headers_are_cut_off(connection: Connection, start: bytes) -> None:
    connection.send(start)
    if start.startswith(request()):
        assert connection.answer()[0] == 200
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            connection.send(b"a" * 20_000)
    status, headers, body = connection.answer()
    assert (status, headers["connection"]) == (431, "close")
    assert "65536" in orjson.loads(body)["error"]


def test_large_headers_within_the_limit_pass(connection: Connection) -> None:
    data = request("echo", "X-A: " + "a" * 60_000, tag="large")
    for _ in range(3):
        for at in range(0, len(data), 9000):
            connection.send(data[at : at + 9000])
        assert connection.tag() == "large"


def test_clients_that_do_not_go_on_are_sent_away(server: Server) -> None:
    """The server's limits are 10 and 30 seconds, which all connections here wait for together."""
    predict = b"POST /v1/models/echo:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    cases = {
        "nothing": (b"", None),
        "blank lines": (b"\r\n\r\n", 408),
        "half a line": (b"POST /v2", 408),
        "half the headers": (request()[:40], 408),
        "half the headers of a second request": (request() + request()[:40], 408),
        "half the headers behind a slow request": (request("slow") + request()[:40], 408),
        "half a body": (request()[:-5], 408),
        "half a body for the application": (predict, 408),
        "no body": (request(body=b"", length=9), 408),
        "half a chunk": (request("echo", "Transfer-Encoding: chunked", body=b"9\r\n{"), 408),
    }
    with contextlib.ExitStack() as stack:
        connections = {}
        for name in cases:
            sock = socket.create_connection(("127.0.0.1", server.http_port), timeout=60)
            connections[name] = Connection(stack.enter_context(sock))
        for name, (data, _) in cases.items():
            if data:
                connections[name].send(data)
        for name, (data, status) in cases.items():
            connection = connections[name]
            if data.startswith((request(), request("slow"))):
                assert connection.answer()[0] == 200
            if status is not None:
                found, headers, body = connection.answer()
                assert (found, headers["connection"]) == (status, "close"), name
                assert "seconds" in orjson.loads(body)["error"]
            assert connection.is_closed(), name


def test_other_methods_stay_with_the_sdk(connection: Connection) -> None:
    connection.send(b"GET /v2/models/echo/infer HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.answer()[0] == 405


def test_access_log_lines_are_those_of_uvicorn(server: Server, connection: Connection) -> None:
    connection.send(request("echo"))
    assert connection.answer()[0] == 200
    _, port = connection.sock.getsockname()
    # KServe's log format puts the process id between.
    line = re.compile(rf'127\.0\.0\.1:{port} .*- "POST /v2/models/echo/infer HTTP/1\.1" 200')
    deadline = time.monotonic() + 10
    while not line.search(server.log):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_limit_beyond_what_grpc_can_have_is_one_for_rest(tmp_path: Path) -> None:
    write_model(tmp_path / "models" / "echo", ECHO)
    server = Server(
        tmp_path / "log",
        f"--model_dir={tmp_path / 'models'}",
        "--max_request_bytes=3000000000",
        "--drain_seconds=0",
    )
    try:
        server.wait_ready()
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.wait()


@settings(max_examples=150)
@given(
    st.one_of(
        st.binary(min_size=1, max_size=200),
        st.builds(
            lambda at, junk: request()[:at] + junk + request()[at:],
            st.integers(0, 200),
            st.binary(min_size=1, max_size=5),
        ),
    )
)
def test_garbage_ends_at_worst_its_own_connection(server: Server, data: bytes) -> None:
    count("connections with garbage")
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            answer = b""
            while part := sock.recv(1 << 16):
                answer += part
            assert b"HTTP/1.1 5" not in answer
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as sock:
        after = Connection(sock)
        after.send(request(tag="after"))
        assert after.tag() == "after"
