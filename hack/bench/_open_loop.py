"""The client of the open loop: REST requests that are sent when they are due, whatever became of those before.

Latency counts from the moment at which a request was due, so neither a server that stalls nor a client that falls
behind leaves the waiting out (coordinated omission). h2load's ``--rps`` is no substitute: with one stream a connection
it holds requests back and counts from when it sends them, and it sends those of 10 ms, and of all its connections, at
once, which would make a batcher's batches for it.
"""

from __future__ import annotations

import math
import selectors
import socket
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from _load import Body
from _servers import Server

CONNECTIONS = 64
"""Open from the start; each holds one request at a time, and when none is free another is opened."""
TIMEOUT = 10.0
"""Seconds that answers may take after the last request was due."""


@dataclass
class Open:
    """Latencies in ms, failed requests being endless; the share of those; the client's own delay (p99) in ms."""

    p50: float
    p99: float
    failed: float
    late: float


class _Connection:
    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.http))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.request = -1  # its number
        self._answer = b""

    def send(self, request: int, data: bytes) -> None:
        self.request, self._answer = request, b""
        assert self.socket.send(data) == len(data), "the request is larger than the socket's buffer"

    def status(self) -> bytes | None:
        """The status when the answer is complete, None before; nothing when the server has closed the connection."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError:
            data = b""
        if not data:
            return data
        self._answer += data
        head, found, rest = self._answer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if not found or len(rest) < int(length):
            return None
        return head.split()[1]


def open_loop(server: Server, body: Body, rate: float, seconds: float) -> Open:
    """Send requests at ``rate`` a second with exponential gaps, as many clients do that know nothing of one another.

    The same rate always gives the same arrivals.
    """
    due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, max(1, int(rate * seconds)))).tolist()
    late, latencies = [0.0] * len(due), [math.inf] * len(due)
    head = [
        f"POST {body.path} HTTP/1.1",
        "host: localhost",
        f"content-length: {len(body.data)}",
        *body.headers,
    ]
    data = "\r\n".join([*head, "", ""]).encode() + body.data
    free: deque[_Connection] = deque()  # taken in turn, so that none idles until the server closes it
    sent = answered = 0
    with selectors.EpollSelector() as poll:

        def connect() -> _Connection:
            connection = _Connection(server)
            poll.register(connection.socket, selectors.EVENT_READ, connection)
            return connection

        free.extend(connect() for _ in range(CONNECTIONS))
        start = time.perf_counter()
        while answered < len(due) and (now := time.perf_counter() - start) < due[-1] + TIMEOUT:
            if sent < len(due) and now >= due[sent]:
                late[sent] = now - due[sent]
                (free.popleft() if free else connect()).send(sent, data)
                sent += 1
                continue
            # The kernel's wait counts in milliseconds: the last one is spent looking.
            wait = due[sent] - now - 0.001 if sent < len(due) else 0.1
            for key, _ in poll.select(max(0.0, wait)):
                status = key.data.status()
                if status is None:
                    continue
                if status == b"200":
                    latencies[key.data.request] = time.perf_counter() - start - due[key.data.request]
                answered += key.data not in free
                if status:
                    free.append(key.data)
                    continue
                if key.data in free:
                    free.remove(key.data)
                poll.unregister(key.data.socket)
                key.data.socket.close()
        for key in list(poll.get_map().values()):
            key.data.socket.close()
    p50, p99 = np.quantile(latencies, (0.5, 0.99), method="higher") * 1000
    return Open(p50, p99, latencies.count(math.inf) / len(due), float(np.quantile(late, 0.99)) * 1000)
