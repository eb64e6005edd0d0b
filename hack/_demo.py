"""The demo behind hack/demo: a server of its own process, real files, and magika's own package as the reference."""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "build" / "magika" / "model.wasm"
LOG = ROOT / "build" / "demo.log"

sys.path.insert(0, str(ROOT / "examples" / "magika"))
build, samples = import_module("build"), import_module("samples")

# Those that the table shows, of all that are asked about.
SHOWN = (
    "executable", "shared library", "python module", "python byte code", "c source", "shell script", "zig", "toml",
    "sqlite database", "wheel", "tar.gz", "pdf", "png", "sound", "email", "pickle", "onnx model", "wasm module",
    "a cut png", "empty",
)  # fmt: skip
REPEATS = 3
ROW = "{:<18} {:>9}   {:<15} {:>5}   {:<15} {:>8} {:>8}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="hack/demo", description="Serve a real model from a .wasm file and ask it."
    )
    parser.add_argument("--keep", action="store_true", help="leave the server running")
    keep = parser.parse_args().keep

    start = time.perf_counter()
    build.build(MODEL)
    print(f"built    {MODEL.relative_to(ROOT)}: magika's graph and examples/magika/magika.c in one file of "
          f"{MODEL.stat().st_size / 1e6:.1f} MB, in {time.perf_counter() - start:.1f} s")  # fmt: skip

    with serve(keep) as (process, http_port, grpc_port):
        right = ask(http_port, grpc_port)
        if keep:
            print(KEPT.format(http=http_port, grpc=grpc_port, pid=process.pid))
    return 0 if right else 1


@contextmanager
def serve(keep: bool) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Run the server until the block ends, or beyond that when it ends well and `keep` is set."""
    http_port, grpc_port = free_ports(2)
    flags = ["--model_name", "magika", "--model_dir", str(MODEL.parent.relative_to(ROOT))]
    flags += ["--http_port", str(http_port), "--grpc_port", str(grpc_port)]
    local = ["--host", "127.0.0.1", "--drain_seconds", "0"]
    start = time.perf_counter()
    with LOG.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kserve_wasm", *flags, *local],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until_ready(process, f"http://127.0.0.1:{http_port}/v2/models/magika/ready")
        print(f"serving  python -m kserve_wasm {' '.join(flags)}")
        print(f"ready    after {time.perf_counter() - start:.1f} s")
        yield process, http_port, grpc_port
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            process.terminate()
            status = process.wait(timeout=60)
            print(f"stopped  with exit status {status}")


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    give_up = time.monotonic() + 60
    while not answers(url):
        if process.poll() is not None or time.monotonic() > give_up:
            raise SystemExit(
                f"the server did not become ready; its log ends with:\n{LOG.read_text()[-3000:]}"
            )
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


class Asker:
    """The model behind one protocol."""

    def __init__(self, module: Any, address: str) -> None:
        self.module = module
        self.client = module.InferenceServerClient(address)

    def __call__(self, *files: bytes, **parameters: str) -> tuple[str, float, float]:
        """Ask about the files in one request; of the first, the label and score, and the median of milliseconds."""
        tensor = self.module.InferInput("contents", [len(files)], "BYTES")
        tensor.set_data_from_numpy(np.array(files, dtype=object))
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            answer = self.client.infer("magika", [tensor], parameters=parameters)
            times.append((time.perf_counter() - start) * 1000)
        return answer.as_numpy("label")[0].decode(), answer.as_numpy("score")[0], statistics.median(times)


def ask(http_port: int, grpc_port: int) -> bool:
    """Ask about all files, over both protocols, and print what comes. True when magika's package agrees."""
    sys.path.insert(0, str(build.package()))
    magika = import_module("magika").Magika()
    rest = Asker(tritonclient.http, f"127.0.0.1:{http_port}")
    grpc = Asker(tritonclient.grpc, f"127.0.0.1:{grpc_port}")
    files = dict(samples.samples())
    right = 0

    print(
        f"asking   about {len(files)} files of many kinds, found on this machine or made by "
        f"examples/magika/samples.py; {len(files.keys() & set(SHOWN))} of them:"
    )
    print()
    print(ROW.format("file", "bytes", "answer", "score", "magika says", "REST ms", "gRPC ms"))
    for name, data in files.items():
        expected = str(magika.identify_bytes(data).output.label)
        label, score, rest_ms = rest(data)
        grpc_label, _, grpc_ms = grpc(data)
        right += label == grpc_label == expected
        if name in SHOWN:
            both = label if label == grpc_label else f"{label} / {grpc_label}"
            times = f"{rest_ms:.1f}", f"{grpc_ms:.1f}"
            print(ROW.format(name, len(data), both, f"{score:.3f}", expected, *times))

    print()
    print(
        f"{right} of the {len(files)} files were answered as magika's own package answers, over REST and over gRPC"
    )
    for protocol, asker in (("REST", rest), ("gRPC", grpc)):
        milliseconds = asker(*files.values())[2]
        print(f"all of them in one request: {milliseconds / len(files):.1f} ms a file over {protocol}")
    try:
        rest(b"", prediction_mode="a wild guess")
    except InferenceServerException as error:
        print(f'asked for a wild guess, it says {error.status()}: "{error.message()}"')
    return right == len(files)


KEPT = """
It goes on running; stop it with: kill {pid}

curl -s http://127.0.0.1:{http}/v2/models/magika/infer -d '{{"inputs": [{{"name": "contents", "datatype": "BYTES",
  "shape": [2], "data": ["#!/bin/sh\\nset -eu\\necho hello\\n", "SELECT name FROM users WHERE id = 7;"]}}]}}'

curl -s http://127.0.0.1:{http}/v1/models/magika:predict -d '{{"instances": ["def f(x):\\n    return x + 1\\n"]}}'

.venv/bin/python - <<'END'
import numpy, tritonclient.grpc as triton
contents = triton.InferInput("contents", [1], "BYTES")
contents.set_data_from_numpy(numpy.array([open("/bin/ls", "rb").read()], dtype=object))
answer = triton.InferenceServerClient("127.0.0.1:{grpc}").infer("magika", [contents])
print(answer.as_numpy("label"), answer.as_numpy("mime_type"), answer.as_numpy("score"))
END"""


if __name__ == "__main__":
    sys.exit(main())
