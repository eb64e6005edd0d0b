"""Batching beneath the sandbox, in process: guests in many threads, each batch merged from their ``compute`` calls.

Usage: ``python hack/bench/batching.py [--rounds 5] [--seconds 1] [--models wide,deep,…]
[--threads 1,8,32,128] [--cpus one,all] [--quick]``

Each of N threads asks for the answer to one row, in a fresh sandbox, as soon as it has the last one: batched (the
defaults) and unbatched (``max_batch_size: 1``), by turns. ``session.run`` alone, in one thread, in batches of the sizes
that were reached says what the graph itself allows. Switches are context switches of the whole process by request,
voluntary + involuntary. With one CPU, ONNX Runtime has one thread and the process is pinned; with all, everything has
its defaults. Figures are medians of the rounds, as are the ratios.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from _models import BATCHABLE, configured, make, rows, session
from graphs import items_per_second

from kserve_wasm.artifact import load_model_dir
from kserve_wasm.guest import GuestModel
from kserve_wasm.guest.pool import GuestPool
from kserve_wasm.request import InferenceRequest
from kserve_wasm.tensors import Tensor

POOL = GuestPool()
"""The threads that guests run on in the server."""
SIDES = {"unbatched": "batching: {max_batch_size: 1}\n", "batched": ""}
ONE_THREAD = "graphs: [{name: default, options: {intra_op_threads: 1}}]\n"


@dataclass
class Round:
    """Requests a second, how many runs of the graph had how many rows, and context switches by request."""

    rate: float
    sizes: Counter[int]
    voluntary: float
    involuntary: float


def closed_loops(model: GuestModel, request: InferenceRequest, threads: int, seconds: float) -> Round:
    """Threads that each send their next request when they have the answer to the last; failures end the benchmark."""
    done = [0] * threads
    start, stop = threading.Barrier(threads + 1), threading.Barrier(threads + 1)

    def loop(i: int) -> None:
        start.wait()
        try:
            while not done[i] or time.perf_counter() < end:
                model.infer(request)
                done[i] += 1
        finally:
            stop.wait()

    for i in range(threads):
        POOL.run(partial(loop, i))
    before, sizes = resource.getrusage(resource.RUSAGE_SELF), _batches(model)
    began = time.perf_counter()
    end = began + seconds
    start.wait()
    stop.wait()
    elapsed = time.perf_counter() - began
    after, requests = resource.getrusage(resource.RUSAGE_SELF), sum(done)
    assert all(done), "a thread failed"
    return Round(
        requests / elapsed,
        _batches(model) - sizes,
        (after.ru_nvcsw - before.ru_nvcsw) / requests,
        (after.ru_nivcsw - before.ru_nivcsw) / requests,
    )


def _batches(model: GuestModel) -> Counter[int]:
    """How many runs of the model's graph have had how many rows."""
    batches = model.metrics.statistics.snapshot()["batch_stats"]
    return Counter({batch["batch_size"]: batch["compute_infer"]["count"] for batch in batches})


def same_batches(direct: ort.InferenceSession, sizes: Counter[int], seconds: float) -> float:
    """Rows a second that ``session.run`` computes in one thread, in batches of those sizes and as often."""
    slices = seconds / len(sizes)
    return _rows(sizes) / sum(
        count * size / items_per_second(direct, size, slices) for size, count in sizes.items()
    )


def _rows(sizes: Counter[int]) -> int:
    return sum(size * count for size, count in sizes.items())


def one_client(models: list[GuestModel], request: InferenceRequest, seconds: float) -> list[float]:
    """The median latencies in µs of one client that asks them in random order."""
    times: list[list[float]] = [[] for _ in models]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i in random.sample(range(len(models)), len(models)):
            start = time.perf_counter()
            models[i].infer(request)
            times[i].append((time.perf_counter() - start) * 1e6)
    return [statistics.median(t) for t in times]


def measure(cpus: str, args: argparse.Namespace) -> None:
    """Print both tables; in a process of its own, because CPUs are given to one before its threads are there."""
    if cpus == "one":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    available = len(os.sched_getaffinity(0))
    crowd, lone = [], []
    for name in args.models:
        with tempfile.TemporaryDirectory() as scratch:
            onnx_file, model_dir = make(name, Path(scratch))
            direct = session(onnx_file, available)
            row = rows(direct, 1)
            request = InferenceRequest({"x": Tensor.from_numpy(row)})
            (expected,) = direct.run(None, {"x": row})
            models = []
            for side, text in SIDES.items():
                text += ONE_THREAD if cpus == "one" else ""
                (config,) = load_model_dir(configured(model_dir, f"{name}-{side}", text), f"{name}-{side}")
                models.append(GuestModel(config))
                models[-1].load()
                answer = models[-1].infer(request).outputs["y"].numpy()
                np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4)
            one_client(models, request, args.seconds / 5)
            p50s = [one_client(models, request, args.seconds) for _ in range(args.rounds)]
            unbatched, batched = map(statistics.median, zip(*p50s, strict=True))
            tax = statistics.median(b / u for u, b in p50s) - 1
            lone.append(f"| {name} | {unbatched:.1f} | {batched:.1f} | **{tax * 100:+.1f} %** |")
            for threads in args.threads:
                for model in models:
                    closed_loops(model, request, threads, args.seconds / 5)
                rounds = []
                for _ in range(args.rounds):
                    u, b = (closed_loops(model, request, threads, args.seconds) for model in models)
                    rounds.append((u, b, same_batches(direct, b.sizes, args.seconds / 2)))
                crowd.append(_row(name, threads, rounds))
            for model in models:
                model.close()
    print(f"\n{available} CPU{'s' * (available > 1)}:\n")
    print(
        "| graph | threads | unbatched /s | batched /s | ratio | mean batch | `session.run` alike /s | share "
        "| switches a request: unbatched | batched |"
    )
    print("|---" * 10 + "|")
    print("\n".join(crowd))
    print("\n| graph, one client | unbatched p50 µs | batched p50 µs | batching costs |\n|---|---|---|---|")
    print("\n".join(lone), flush=True)


def _row(name: str, threads: int, rounds: list[tuple[Round, Round, float]]) -> str:
    median = statistics.median
    switches = (
        "{:.2f} + {:.2f}".format(
            *(median(getattr(r[i], k) for r in rounds) for k in ("voluntary", "involuntary"))
        )
        for i in (0, 1)
    )
    return (
        f"| {name} | {threads} | {median(u.rate for u, _, _ in rounds):.0f} "
        f"| {median(b.rate for _, b, _ in rounds):.0f} | **{median(b.rate / u.rate for u, b, _ in rounds):.2f}** "
        f"| {median(_rows(b.sizes) / b.sizes.total() for _, b, _ in rounds):.1f} "
        f"| {median(d for _, _, d in rounds):.0f} "
        f"| {median(b.rate / d for _, b, d in rounds) * 100:.0f} % | {' | '.join(switches)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round of one side")
    parser.add_argument("--models", default=",".join(BATCHABLE))
    parser.add_argument("--threads", default="1,8,32,128")
    parser.add_argument("--cpus", default="one,all")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.models, args.threads = 1, 0.1, "wide,mlp", "1,32"
    args.models = args.models.split(",")
    args.threads = [int(n) for n in args.threads.split(",")]
    for cpus in args.cpus.split(","):
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(cpus, args))
        process.start()
        process.join()
        assert not process.exitcode, f"ended with {process.exitcode}"


if __name__ == "__main__":
    main()
