"""Truncated and doctored graphs end in a typed error, never in a crash: so they run in a process of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

FUZZ = """
import math, random, sys, time
from collections import Counter

import numpy as np

from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.errors import BackendError, DeadlineExceeded, InvalidRequest
from kserve_wasm.tensors import DTYPES, Tensor
from tests.backends import models

seed, tries = int(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
graphs = [
    m.SerializeToString()
    for m in (models.mlp(), models.strings(), models.count(), models.add_and_subtract(), models.gather(),
              models.reshape(), models.identity("BF16"), models.cnn(2, 4, 8))
]

def doctored(graph):
    if rng.random() < 0.2:
        return bytes(graph[: rng.randrange(len(graph))])
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(graph))
        graph[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256), graph[at] + 1 & 255))
    if rng.random() < 0.2:
        at, start = rng.randrange(len(graph)), rng.randrange(len(graph))
        graph[at:at] = graph[start : start + rng.randrange(64)]
    return bytes(graph)

def fitting(spec):
    shape = [d if isinstance(d, int) else 2 for d in spec.shape]
    if math.prod(shape) > 1 << 20:
        shape = [1] * len(shape)
    element = b"a" if spec.dtype.name == "BYTES" else 1
    return Tensor.from_numpy(np.full(shape, element).astype(spec.dtype.numpy))

outcomes = Counter()
for _ in range(tries):
    try:
        graph = open_graph(GraphSource("g", "onnx", data=doctored(bytearray(rng.choice(graphs)))), "cpu")
    except BackendError:
        outcomes["refused"] += 1
        continue
    try:
        graph.run({s.name: fitting(s) for s in graph.inputs}, time.monotonic() + 0.5)
        outcomes["ran"] += 1
    except (BackendError, InvalidRequest, DeadlineExceeded):
        outcomes["failed"] += 1
print(tries, dict(outcomes))
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_doctored_graphs_are_refused_or_run_and_never_crash(seed: int) -> None:
    tries = 1500
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", FUZZ, str(seed), str(tries)],
        capture_output=True,
        text=True,
    )
    print(f"seed {seed}: {done.stdout.strip()}")
    assert done.returncode == 0, f"seed {seed} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    assert done.stdout.startswith(str(tries))
    for outcome in ("refused", "ran", "failed"):
        assert outcome in done.stdout  # the fuzzing reaches all of them
