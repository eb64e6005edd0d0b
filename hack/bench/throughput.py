"""Requests a second and p99 at 1, 8 and 32 clients against a plain ``kserve.Model`` on the same ONNX.

Usage: ``python hack/bench/throughput.py [--rounds 5] [--quiet-plain] [--quick]``

Tiny MLP, a fresh sandbox for every request against no Wasm at all. One CPU for the server, one for the client.

The two sides take turns within a round; figures are medians of the rounds, the last columns are ratios.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from _load import bodies, load, median, require_h2load
from _models import make
from _servers import ours, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=4000, help="a round, for eight clients and more")
    parser.add_argument("--quiet-plain", action="store_true", help="switch off the plain server's log lines")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.requests = 1, 400
    require_h2load()
    with tempfile.TemporaryDirectory() as scratch:
        onnx, model_dir = make("mlp", Path(scratch))
        x = np.ones((1, 4), np.float32)
        with ours(model_dir, "mlp") as wasm, plain(onnx, "mlp", logs=not args.quiet_plain) as other:
            print(
                f"| protocol | clients | kserve_wasm /s | {other.name} /s | ratio | p99 µs | {other.name} | ratio |"
            )
            print("|---|---|---|---|---|---|---|---|")
            for body in bodies("mlp", "x", x, "y"):
                for clients in (1, 8, 32):
                    n = args.requests if clients > 1 else args.requests // 2
                    for server in (wasm, other):
                        load(server, body, clients, n // 4)
                    rounds = [[load(s, body, clients, n) for s in (wasm, other)] for _ in range(args.rounds)]
                    a, b = (median([r[i] for r in rounds]) for i in (0, 1))
                    print(
                        f"| {body.protocol} | {clients} | {a.rate:.0f} | {b.rate:.0f} | **{a.rate / b.rate:.2f}** "
                        f"| {a.p99:.0f} | {b.p99:.0f} | {a.p99 / b.p99:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
