"""Batching over gRPC and REST against no batching, a plain ``kserve.Model`` and MLServer's adaptive batching.

Usage: ``python hack/bench/serving.py [--rounds 3] [--seconds 2] [--models wide,deep,…] [--clients 1,8,32,128]
[--protocols gRPC,REST] [--quick]``

The same ONNX and one thread of ONNX Runtime for every server; one CPU for the server, one for the client, no access
logs. REST has binary tensors, but JSON for MLServer, which knows no others. Every answer's status is checked, and the
values of one from each server before it is measured. Closed loops: each client sends its next request when it has the
answer to the last, so latencies here say nothing of clients that do not wait for one another (``open_loop.py``).

The servers take turns within a round; figures are medians of the rounds, as are the ratios: batched over the other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _load import Body, answer, bodies, load, median, require_h2load
from _models import BATCHABLE, configured, make, rows, session
from _servers import Server, mlserver, ours, plain

ONE_THREAD = "graphs: [{name: default, options: {intra_op_threads: 1}}]\n"
UNBATCHED = "batching: {max_batch_size: 1}\n"
BATCHED_NAME = "kserve_wasm, batched"


@dataclass
class Contender:
    """A server with its requests by protocol."""

    server: Server
    bodies: dict[str, Body]


@contextlib.contextmanager
def contenders(name: str) -> Iterator[list[Contender]]:
    """All servers of one graph, this project's batched one first; each has proved that its answers are right."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        onnx_file, model_dir = make(name, Path(scratch))
        batched = configured(model_dir, f"{name}-batched", ONE_THREAD)
        unbatched = configured(model_dir, f"{name}-unbatched", UNBATCHED + ONE_THREAD)
        x = rows(direct := session(onnx_file, 1), 1)
        (expected,) = direct.run(None, {"x": x})
        text, binary, grpc = bodies(name, "x", x, "y")
        found = []
        for start in (
            ours(batched, name, name=BATCHED_NAME),
            ours(unbatched, name, name="kserve_wasm, unbatched"),
            mlserver(onnx_file, name),
            plain(onnx_file, name, logs=False),
        ):
            server = stack.enter_context(start)
            found.append(
                Contender(server, {"gRPC": grpc, "REST": text if server.name == "MLServer" else binary})
            )
            for body in found[-1].bodies.values():
                np.testing.assert_allclose(answer(server, body), expected.reshape(-1), rtol=1e-3, atol=1e-4)
        yield found


def _batches(server: Server, model: str) -> tuple[int, int]:
    """Rows and runs of the graph so far; of this project's servers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http}/v2/models/{model}/stats") as response:
        (stats,) = json.load(response)["model_stats"]
    return stats["inference_count"], stats["execution_count"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="of a round of one server, roughly")
    parser.add_argument("--models", default=",".join(BATCHABLE))
    parser.add_argument("--clients", default="1,8,32,128")
    parser.add_argument("--protocols", default="gRPC,REST")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    args = parser.parse_args()
    require_h2load()
    if args.quick:
        args.rounds, args.seconds, args.models, args.clients = 1, 0.1, "wide", "1,32"
    print(
        "| graph | protocol | clients | server | requests /s | p50 ms | p99 ms "
        "| batched: requests | batched: p99 | mean batch |\n" + "|---" * 10 + "|"
    )
    for name in args.models.split(","):
        with contenders(name) as servers:
            for protocol in args.protocols.split(","):
                for clients in map(int, args.clients.split(",")):
                    _compare(name, servers, protocol, clients, args.rounds, args.seconds)


def _compare(
    name: str, servers: list[Contender], protocol: str, clients: int, count: int, seconds: float
) -> None:
    requests = []
    for each in servers:
        warm = load(each.server, each.bodies[protocol], clients, 4 * clients)
        requests.append(max(4 * clients, int(warm.rate * seconds)))
    batched = servers[0].server
    before = _batches(batched, name)
    rounds = [
        [load(s.server, s.bodies[protocol], clients, n) for s, n in zip(servers, requests, strict=True)]
        for _ in range(count)
    ]
    inferences, executions = (b - a for a, b in zip(before, _batches(batched, name), strict=True))
    for i, each in enumerate(servers):
        result = median([r[i] for r in rounds])
        if i:
            rate = statistics.median(r[0].rate / r[i].rate for r in rounds)
            p99 = statistics.median(r[0].p99 / r[i].p99 for r in rounds)
            rest = f"**{rate:.2f}** | {p99:.2f} | "
        else:
            rest = f" | | {inferences / executions:.1f}"
        print(
            f"| {name} | {protocol} | {clients} | {each.server.name} | {result.rate:.0f} "
            f"| {result.p50 / 1000:.2f} | {result.p99 / 1000:.2f} | {rest} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
