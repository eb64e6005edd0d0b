"""The sandbox's tax, in process: ``session.run`` against a fresh instance that runs the same graph.

Usage: ``python hack/bench/sandbox.py [--rounds 9] [--quick]``

Tiny MLP (a run is a few µs) and a CNN of some ms; also a kept instance, and the reference binding over wasmtime's
public classes. Calls of all kinds come in random order, so that caches and the machine's moods meet them alike;
figures are medians in µs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
from _models import make

from kserve_wasm.artifact import load_model_dir
from kserve_wasm.guest import GuestModel
from kserve_wasm.guest.reference import ReferenceBinding
from kserve_wasm.request import InferenceRequest
from kserve_wasm.tensors import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    args = parser.parse_args()
    if args.quick:
        args.rounds = 1
    print(
        "| model | session.run µs | fresh instance | kept instance | reference binding | fresh: + µs | fresh: + % |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, shape, calls in (("mlp", (1, 4), 400), ("cnn", (1, 3, 112, 112), 25)):
        with tempfile.TemporaryDirectory() as scratch:
            onnx, model_dir = make(name, Path(scratch))
            x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            ways = _ways(onnx, model_dir, x)
            for way in ways.values():
                for _ in range(calls // 4):
                    way()
            times: dict[str, list[float]] = {key: [] for key in ways}
            for _ in range(args.rounds):
                rounds = {key: [] for key in ways}
                for _ in range(calls):
                    for key in random.sample(list(ways), len(ways)):
                        start = time.perf_counter()
                        ways[key]()
                        rounds[key].append((time.perf_counter() - start) * 1e6)
                for key, values in rounds.items():
                    times[key].append(statistics.median(values))
            direct, fresh, kept, reference = (statistics.median(times[key]) for key in ways)
            tax = statistics.median(f - d for f, d in zip(times["fresh"], times["direct"], strict=True))
            print(
                f"| {name} | {direct:.1f} | {fresh:.1f} | {kept:.1f} | {reference:.1f} "
                f"| **+{tax:.1f}** | +{tax / direct * 100:.1f} % |"
            )


def _ways(onnx: Path, model_dir: Path, x: np.ndarray) -> dict[str, Callable[[], object]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(onnx, options)
    (config,) = load_model_dir(model_dir, "m")
    one_thread = tuple(replace(g, options={**g.options, "intra_op_threads": 1}) for g in config.graphs)
    config = replace(config, graphs=one_thread)
    fresh, kept = (
        GuestModel(config),
        GuestModel(replace(config, instances=replace(config.instances, reuse=True))),
    )
    reference = GuestModel(config, binding=ReferenceBinding)
    for model in (fresh, kept, reference):
        model.load()
    request = InferenceRequest({"x": Tensor.from_numpy(x)})
    return {
        "direct": lambda: session.run(None, {"x": x}),
        "fresh": lambda: fresh.infer(request),
        "kept": lambda: kept.infer(request),
        "reference": lambda: reference.infer(request),
    }


if __name__ == "__main__":
    main()
