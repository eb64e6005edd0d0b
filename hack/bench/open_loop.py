"""Latencies of clients that do not wait for one another: gRPC at constant rates of arrival, on the wide MLP.

Usage: ``python hack/bench/open_loop.py [--rounds 3] [--seconds 5] [--model wide] [--quick]``

The rates are 50 % and 80 % of what 32 closed loops get out of the plain ``kserve.Model`` and out of this project's
batching; the servers are those of ``serving.py`` and take turns within a round. A server that cannot keep up shows it:
latencies grow with the length of the run, then requests fail (refused, or without an answer for ten seconds). Figures are
medians of the rounds; client: how late the client itself sent its requests, which latencies include.
"""

from __future__ import annotations

import argparse
import os
import statistics

from _load import answer, load, require_h2load
from _open_loop import Open, open_loop
from _servers import CLIENT_CPU
from serving import contenders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--model", default="wide")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    args = parser.parse_args()
    require_h2load()
    if args.quick:
        args.rounds, args.seconds = 1, 0.5
    with contenders(args.model) as servers:
        os.sched_setaffinity(0, {CLIENT_CPU})
        closed = {}
        for each in (servers[-1], servers[0]):
            load(each.server, each.bodies["gRPC"], 32, 256)
            closed[each.server.name] = load(
                each.server, each.bodies["gRPC"], 32, 256 if args.quick else 4096
            ).rate
        print("| offered /s | which is | server | p50 ms | p99 ms | failed | client p99 ms |")
        print("|---|---|---|---|---|---|---|")
        for name, capacity in closed.items():
            for share in (0.5, 0.8):
                rounds: list[list[Open]] = []
                for _ in range(args.rounds):
                    rounds.append([])
                    for each in servers:
                        answer(each.server, each.bodies["gRPC"])  # what an earlier run left is done
                        rounds[-1].append(
                            open_loop(each.server, each.bodies["gRPC"], capacity * share, args.seconds)
                        )
                for i, each in enumerate(servers):
                    p50, p99, failed, late = (
                        statistics.median(getattr(r[i], key) for r in rounds)
                        for key in ("p50", "p99", "failed", "late")
                    )
                    print(
                        f"| {capacity * share:.0f} | {share:.0%} of {name} | {each.server.name} | {p50:.1f} "
                        f"| **{p99:.1f}** | {failed:.1%} | {late:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
