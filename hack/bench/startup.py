"""Cold starts: of the server process, of a module from the cache, and of a graph of 100 MB that lies in its ``.wasm``.

Usage: ``python hack/bench/startup.py [--rounds 5] [--quick]``

The server is timed from the start of its process to its first answer, beside the plain ``kserve.Model``; the rest is
timed inside fresh processes, so that nothing is warm but the page cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from _models import make, models
from _servers import ROOT, Server, ours, plain

from kserve_wasm.convert import Conversion, convert

QUESTION = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}

LOAD = """
import json, sys, time
from pathlib import Path
import onnxruntime
from kserve_wasm.artifact import load_model_dir
from kserve_wasm.backends import open_graph
from kserve_wasm.guest.binding import check_shape
from kserve_wasm.guest.engine import engine
from kserve_wasm.guest.module_cache import ModuleCache
from kserve_wasm.guest.state import InstanceState
from kserve_wasm.guest.unchecked import UncheckedBinding
from kserve_wasm.wasi_nn import GraphRegistry

def private_mb():
    rows = Path("/proc/self/status").read_text()
    return int(rows.split("RssAnon:")[1].split()[0]) / 1024

(config,) = load_model_dir(Path(sys.argv[1]), "m")
engine()
start = time.perf_counter()
compiled = ModuleCache(Path(sys.argv[2])).load(engine(), config.module, config.code_length, config.digest)
binding = UncheckedBinding(engine(), compiled.module, check_shape(compiled.module, "m"), has_start=False)
state = InstanceState(GraphRegistry({}), config.limits, {}, print)
instance = binding.instantiate(state, 100)
module = time.perf_counter() - start
before, start = private_mb(), time.perf_counter()
graphs = [open_graph(source, "cpu") for source in config.graphs]
opened = time.perf_counter() - start
print(json.dumps([compiled.from_cache, module * 1e3, opened * 1e3, private_mb() - before]))
"""


def first_answer(server: Server) -> float:
    """Seconds from the process's start to an answered inference."""
    body = urllib.request.Request(
        f"http://127.0.0.1:{server.http}/v2/models/mlp/infer",
        json.dumps(QUESTION).encode(),
        {"Content-Type": "application/json"},
    )
    start = time.monotonic()
    urllib.request.urlopen(body).read()
    return server.ready_after + time.monotonic() - start


def in_fresh_process(model_dir: Path, cache: Path) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, model_dir, cache], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(done.stdout)


def big_model(directory: Path) -> Path:
    """A chain of matrix products with 100 MB of weights, converted."""
    weights = directory / "weights.bin"
    layers, width = 25, 1024
    (directory / "big.onnx").write_bytes(models.external_mlp(weights, weights.name, layers, width))
    model_dir = directory / "big"
    model_dir.mkdir()
    convert(Conversion(directory / "big.onnx", model_dir / "model.wasm"))
    return model_dir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    args = parser.parse_args()
    rounds = range(1 if args.quick else args.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        onnx_file, model_dir = make("mlp", Path(scratch))
        cache = Path(scratch, "cache")
        seconds: tuple[list[float], list[float]] = ([], [])
        resident: tuple[list[float], list[float]] = ([], [])
        for _ in rounds:
            sides = (ours(model_dir, "mlp", f"--cache_dir={cache}"), plain(onnx_file, "mlp"))
            for i, side in enumerate(sides):
                with side as server:
                    seconds[i].append(first_answer(server))
                    resident[i].append(server.rss_mb())
        small = [in_fresh_process(model_dir, cache) for _ in rounds]
        big = [in_fresh_process(big_model(Path(scratch)), cache)]
        big += [in_fresh_process(Path(scratch, "big"), cache) for _ in rounds]
        assert all(row[0] for row in (*small, *big[1:])), "the cache was not used"
    print("| | kserve_wasm | kserve.Model | ratio |")
    print("|---|---|---|---|")
    for what, figures, unit in (
        ("process start to first answer", seconds, "s"),
        ("resident memory", resident, "MB"),
    ):
        a, b = map(statistics.median, figures)
        print(f"| {what} | {a:.2f} {unit} | {b:.2f} {unit} | {a / b:.2f} |")
    print(
        f"| module from the cache: load + instantiate | {statistics.median(r[1] for r in small):.2f} ms | | |"
    )
    print(f"| graph of 100 MB in its `.wasm`: open | {statistics.median(r[2] for r in big[1:]):.1f} ms | | |")
    print(f"| … its private memory | {statistics.median(r[3] for r in big[1:]):.1f} MB | | |")


if __name__ == "__main__":
    main()
