"""The client of the open loop: requests over gRPC that are sent when they are due, whatever became of those before.

Latency counts from the moment at which a request was due, so neither a server that stalls nor a client that falls behind
leaves the waiting out (coordinated omission). The kept tools at hand do not do this for gRPC: h2load's ``--rps`` holds
requests back while its streams are taken, and counts from when it sends them.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

import grpc
import numpy as np
from _load import Body
from _servers import Server

CHANNELS = 8
TIMEOUT = 10.0
"""Seconds for an answer, from when the request was sent."""


@dataclass
class Open:
    """Latencies in ms, in which a failed request counts as endless; its share; the client's own delay (p99) in ms."""

    p50: float
    p99: float
    failed: float
    late: float


def open_loop(server: Server, body: Body, rate: float, seconds: float) -> Open:
    """Send requests at ``rate`` a second, with exponential gaps: the arrivals of many clients that know nothing of others.

    The same rate always gives the same arrivals.
    """
    due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, max(1, int(rate * seconds))))
    late, latencies = np.zeros(len(due)), np.full(len(due), math.inf)
    answered = threading.Semaphore(0)
    channels = [
        grpc.insecure_channel(f"127.0.0.1:{server.grpc}", options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CHANNELS)
    ]
    for channel in channels:
        grpc.channel_ready_future(channel).result(TIMEOUT)
    sends = [channel.unary_unary(body.path).future for channel in channels]
    start = time.perf_counter() + 0.01

    def send(i: int) -> None:
        def done(call: grpc.Future) -> None:
            if call.code() is grpc.StatusCode.OK:
                latencies[i] = time.perf_counter() - start - due[i]
            answered.release()

        sends[i % CHANNELS](body.data[5:], timeout=TIMEOUT).add_done_callback(done)

    for i in range(len(due)):
        time.sleep(max(0.0, start + due[i] - time.perf_counter()))
        late[i] = time.perf_counter() - start - due[i]
        send(i)
    for _ in due:
        answered.acquire()
    for channel in channels:
        channel.close()
    p50, p99 = np.quantile(latencies, (0.5, 0.99), method="higher") * 1000
    return Open(p50, p99, float(np.mean(np.isinf(latencies))), float(np.quantile(late, 0.99) * 1000))
