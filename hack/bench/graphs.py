"""What batches gain at most: ONNX Runtime alone, on one thread, at batch sizes of 1, 8 and 32.

Usage: ``python hack/bench/graphs.py [--rounds 5] [--quick]``

Sizes take turns within a round; figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import onnx
import onnxruntime as ort
from _models import BATCHABLE, rows, session

SIZES = (1, 8, 32)


def items_per_second(direct: ort.InferenceSession, size: int, seconds: float) -> float:
    """Items that runs of ``size`` of them compute in a second; one run goes before, and at least one counts."""
    x = {"x": rows(direct, size)}
    direct.run(None, x)
    start, runs = time.perf_counter(), 0
    while not runs or time.perf_counter() < start + seconds:
        direct.run(None, x)
        runs += 1
    return runs * size / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    args = parser.parse_args()
    count, seconds = (1, 0.05) if args.quick else (args.rounds, 0.5)
    print("| graph | ms a run of 1 | items /s at 1 | at 8 | at 32 | 8 over 1 | 32 over 1 |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, maker in BATCHABLE.items():
            file = Path(scratch, f"{name}.onnx")
            onnx.save(maker(), file)
            direct = session(file, 1)
            results = [[items_per_second(direct, size, seconds) for size in SIZES] for _ in range(count)]
            one, eight, most = map(statistics.median, zip(*results, strict=True))
            print(
                f"| {name} | {1000 / one:.3f} | {one:.0f} | {eight:.0f} | {most:.0f} "
                f"| {eight / one:.2f} | **{most / one:.2f}** |",
                flush=True,
            )


if __name__ == "__main__":
    main()
