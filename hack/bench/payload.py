"""600 KB of FP32 through a cheap graph, against a plain ``kserve.Model`` on the same ONNX: one client, p50.

Usage: ``python hack/bench/payload.py [--rounds 5] [--quick]``

Identity (600 KB come back) and a mean (four bytes come back), over REST binary and gRPC; the sides take turns.
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
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    args = parser.parse_args()
    if args.quick:
        args.rounds = 1
    require_h2load()
    x = np.random.default_rng(0).standard_normal((1, 150_000), dtype=np.float32)
    print("| graph | protocol | kserve_wasm p50 ms | kserve.Model p50 ms | ratio |")
    print("|---|---|---|---|---|")
    for name in ("identity", "mean"):
        with tempfile.TemporaryDirectory() as scratch:
            onnx, model_dir = make(name, Path(scratch))
            with ours(model_dir, name) as wasm, plain(onnx, name) as other:
                for body in bodies(name, "x", x, "y")[1:]:
                    results: tuple[list, list] = ([], [])
                    for _ in range(args.rounds):
                        results[0].append(load(wasm, body, 1, 200))
                        results[1].append(load(other, body, 1, 30))
                    a, b = (median(r).p50 / 1000 for r in results)
                    print(f"| {name} | {body.protocol} | {a:.2f} | {b:.2f} | **{b / a:.1f}** |", flush=True)


if __name__ == "__main__":
    main()
