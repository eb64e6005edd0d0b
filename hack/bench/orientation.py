"""The orientation example in process against a Python function that does the same with NumPy and ONNX Runtime.

Usage: ``python hack/bench/orientation.py [--rounds 9] [--calls 40] [--threads 1] [--quick]``

The model gets a fresh instance for each call; resize, crop, normalisation, softmax and argmax are operators that its
guest builds. Both sides take turns in random order on the same pages; figures are medians of the rounds' medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import onnxruntime as ort

from kserve_wasm.artifact import load_model_dir
from kserve_wasm.guest import GuestModel
from kserve_wasm.request import InferenceRequest
from kserve_wasm.tensors import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.examples.orientation import ORIENTATION, Image, orientation

sys.path.insert(0, str(ORIENTATION))
build, pages = import_module("build"), import_module("pages")

SIZES = ((640, 480), (1240, 1754), (2480, 3508))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=40, help="of each side in a round")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime, on both sides")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.calls = 1, 3
    by_hand, in_guest = _by_hand(args.threads), _in_guest(args.threads)
    print("| page | NumPy and ONNX Runtime ms | kserve_wasm ms | ratio |")
    print("|---|---|---|---|")
    for size in SIZES:
        image = np.asarray(pages.turned(pages.page(*size), 90))
        assert by_hand(image) == in_guest(image) == 90
        ways = {"by hand": by_hand, "in guest": in_guest}
        hand, guest = _medians(ways, image, args.rounds, args.calls)
        print(f"| {size[0]} x {size[1]} | {hand:.2f} | {guest:.2f} | **{guest / hand:.2f}** |")


def _medians(ways: dict[str, Callable[[Image], int]], image: Image, rounds: int, calls: int) -> list[float]:
    medians: dict[str, list[float]] = {key: [] for key in ways}
    for _ in range(rounds):
        times: dict[str, list[float]] = {key: [] for key in ways}
        for _ in range(calls):
            for key in random.sample(list(ways), len(ways)):
                start = time.perf_counter()
                ways[key](image)
                times[key].append((time.perf_counter() - start) * 1e3)
        for key, values in times.items():
            medians[key].append(statistics.median(values))
    return [statistics.median(values) for values in medians.values()]


def _by_hand(threads: int) -> Callable[[Image], int]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(build.logits_graph().SerializeToString(), options)
    return lambda image: orientation(session, image)[0]


def _in_guest(threads: int) -> Callable[[Image], int]:
    with tempfile.TemporaryDirectory() as scratch:
        build.build(Path(scratch, "model.wasm"))
        (config,) = load_model_dir(Path(scratch), "orientation")
        graphs = tuple(replace(g, options={**g.options, "intra_op_threads": threads}) for g in config.graphs)
        model = GuestModel(replace(config, graphs=graphs))
        model.load()

    def ask(image: Image) -> int:
        answer = model.infer(InferenceRequest({"image": Tensor.from_numpy(image[None])}))
        return int(answer.outputs["rotation"].numpy()[0])

    return ask


if __name__ == "__main__":
    main()
