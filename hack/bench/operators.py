"""Operators against guest code, in process: an image made ready for a network, and what building a graph costs.

Usage: ``python hack/bench/operators.py [--rounds 9] [--quick]``

The image (uint8 [n, n, 3]) becomes float32 [1, 3, n, n], normalised: by a loop in the guest, which copies the image
into the sandbox and lends the result; and by operators over handles, in a graph that is built anew in every request.
Calls come in random order; figures are medians in µs.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from kserve_wasm.artifact.config import ModelConfig
from kserve_wasm.guest import GuestModel
from kserve_wasm.request import InferenceRequest
from kserve_wasm.tensors import Tensor
from tests.support.guests import compile_guest

MEAN, SCALE = (123.675, 116.28, 103.53), (0.017125, 0.017507, 0.017429)

LOOP = """
#include "kserve_wasm.h"
static uint8_t image[N * N * 3];
static float planes[3][N * N];
KW_EXPORT("infer") kw_errno infer(void) {
  static const float mean[3] = {MEAN}, scale[3] = {SCALE};
  kw_tensor x, y;
  KW_TRY(kw_input_by_index(0, &x));
  KW_TRY(kw_tensor_read(x, 0, image, sizeof image));
  for (int c = 0; c < 3; c++)
    for (int i = 0; i < N * N; i++) planes[c][i] = ((float)image[3 * i + c] - mean[c]) * scale[c];
  KW_TRY(kw_tensor_borrow(KW_FP32, (const int64_t[]){1, 3, N, N}, 4, planes, sizeof planes, &y));
  return kw_output_set(KW_STR("y"), y);
}
"""

OPERATORS = """
#include "kserve_wasm_ml.h"
KW_EXPORT("infer") kw_errno infer(void) {
  kw_tensor x, y;
  kw_graph graph;
  KW_TRY(kw_input_by_index(0, &x));
  ml_builder b = ml_create_builder();
  ml_operand image = ml_input(b, KW_STR("x"), KW_UINT8, (const int64_t[]){-1, -2, 3}, 3);
  const int64_t channels[] = {3, 1, 1};
  ml_operand mean = ml_constant(b, KW_FP32, channels, 3, (const float[]){MEAN}, 12);
  ml_operand scale = ml_constant(b, KW_FP32, channels, 3, (const float[]){SCALE}, 12);
  /* Planes of bytes first: to move those takes a quarter of the time, and a plane has one mean. */
  ml_operand planes = ml_cast(ml_transpose(image, (const uint32_t[]){2, 0, 1}, 3), KW_FP32);
  ml_operand scaled = ml_mul(ml_sub(planes, mean), scale);
  KW_TRY(ml_build_one(b, KW_STR("y"), ml_reshape(scaled, (const int32_t[]){1, 3, -1, -2}, 4), &graph));
  KW_TRY(kw_dispatch(graph, &x, 1, &y, 1));
  return kw_output_set(KW_STR("y"), y);
}
"""

CHAIN = """
#include "kserve_wasm_ml.h"
KW_EXPORT("infer") kw_errno infer(void) {
  kw_graph graph;
  ml_builder b = ml_create_builder();
  ml_operand x = ml_input(b, KW_STR("x"), KW_FP32, 0, 0);
  for (int i = 0; i < N; i++) x = ml_add(x, x);
  return ml_build_one(b, KW_STR("y"), x, &graph);
}
"""
LONG, SHORT = 101, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    args = parser.parse_args()
    rounds, calls = (1, 5) if args.quick else (args.rounds, 100)
    print("| image: n | loop in the guest, µs | operators, µs | operators / loop |")
    print("|---|---|---|---|")
    for n in (32, 224, 1024):
        image = np.random.default_rng(0).integers(0, 256, (n, n, 3), dtype=np.uint8)
        ways = [_way(source, n, image) for source in (LOOP, OPERATORS)]
        expected = ((image - np.array(MEAN)) * np.array(SCALE)).transpose(2, 0, 1)[None]
        for way in ways:
            np.testing.assert_allclose(way(), expected, rtol=1e-4, atol=1e-4)
        loop, operators = _medians(ways, rounds, calls if n < 1024 else calls // 10 + 1)
        print(f"| {n} | {loop:.0f} | {operators:.0f} | {operators / loop:.2f} |")
    chains = [_way(CHAIN, n, np.zeros((), np.float32)) for n in (SHORT, LONG)]
    short, long = _medians(chains, rounds, calls)
    print(f"\nTo build what was built before: {(long - short) / (LONG - SHORT):.1f} µs an operator.")


def _way(source: str, n: int, x: np.ndarray) -> Callable[[], np.ndarray | None]:
    values = [f"-D{name}={','.join(map(str, v))}" for name, v in (("MEAN", MEAN), ("SCALE", SCALE))]
    module = compile_guest(source, f"-DN={n}", "-msimd128", *values)
    code = module.read_bytes()
    digest = f"sha256:{hashlib.sha256(code).hexdigest()}"
    model = GuestModel(ModelConfig("m", "1", module, len(code), digest))
    model.load()
    request = InferenceRequest({"x": Tensor.from_numpy(x)})

    def call() -> np.ndarray | None:
        y = model.infer(request).outputs.get("y")
        return None if y is None else y.numpy()

    return call


def _medians(ways: list[Callable[[], object]], rounds: int, calls: int) -> list[float]:
    """µs a call of each, in random order; medians of rounds of medians."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        taken: list[list[float]] = [[] for _ in ways]
        for _ in range(calls):
            for i in random.sample(range(len(ways)), len(ways)):
                start = time.perf_counter()
                ways[i]()
                taken[i].append((time.perf_counter() - start) * 1e6)
        for all_, one in zip(times, taken, strict=True):
            all_.append(statistics.median(one))
    return [statistics.median(one) for one in times]


if __name__ == "__main__":
    main()
