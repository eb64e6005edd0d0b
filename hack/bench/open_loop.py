"""Latencies of clients that do not wait for one another: REST at constant rates of arrival, on the wide MLP.

Usage: ``python hack/bench/open_loop.py [--rounds 3] [--seconds 5] [--model wide] [--quick]``

The rates are 50 % and 80 % of what 32 closed loops get out of the plain ``kserve.Model`` and out of this project's
batching; the servers are those of ``serving.py`` and take turns within a round. Those whose own closed loops do not get
the rate are left out: their queues would grow for as long as the benchmark lasts. A failed request counts as endless.
Figures are medians of the rounds; the last column is how late the client itself sent, which latencies include.
"""

from __future__ import annotations

import argparse
import os
import statistics

from _load import load, require_h2load
from _open_loop import open_loop
from _servers import CLIENT_CPU
from serving import Contender, contenders


def _capacity(each: Contender, seconds: float) -> float:
    """Requests a second of 32 closed loops."""
    warm = load(each.server, each.bodies["REST"], 32, 128)
    return load(each.server, each.bodies["REST"], 32, max(128, int(warm.rate * seconds))).rate


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
        closed = [_capacity(each, args.seconds) for each in servers]
        print("| offered /s | which is | server | p50 ms | p99 ms | failed | client late: p99 ms |")
        print("|---|---|---|---|---|---|---|")
        for i in (-1, 0):
            for share in (0.5, 0.8):
                _compare(servers, closed, i, share, args)


def _compare(
    servers: list[Contender], closed: list[float], of: int, share: float, args: argparse.Namespace
) -> None:
    rate = closed[of] * share
    able = [each for each, capacity in zip(servers, closed, strict=True) if rate < 0.9 * capacity]
    rounds = [
        [open_loop(each.server, each.bodies["REST"], rate, args.seconds) for each in able]
        for _ in range(args.rounds)
    ]
    which = f"| {rate:.0f} | {share:.0%} of {servers[of].server.name}"
    for each, capacity in zip(servers, closed, strict=True):
        if each not in able:
            print(f"{which} | {each.server.name} | its closed loops get {capacity:.0f} | | | |")
            continue
        results = [r[able.index(each)] for r in rounds]
        p50, p99, failed, late = (
            statistics.median(getattr(r, key) for r in results) for key in ("p50", "p99", "failed", "late")
        )
        print(
            f"{which} | {each.server.name} | {p50:.1f} | **{p99:.1f}** | {failed:.1%} | {late:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
