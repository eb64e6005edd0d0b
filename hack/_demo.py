"""The demo behind hack/demo: a server of its own process, real files, and magika's own package as the reference."""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "build" / "magika" / "model.wasm"
LOG = ROOT / "build" / "demo.log"
sys.path.insert(0, str(ROOT / "examples" / "magika"))

import build  # noqa: E402
import samples  # noqa: E402

# Those that the table shows, of all that are asked about.
SHOWN = (
    "executable", "shared library", "python module", "python byte code", "c source", "shell script", "zig", "toml",
    "sqlite database", "wheel", "tar.gz", "pdf", "png", "sound", "email", "pickle", "onnx model", "wasm module",
    "a cut png", "empty",
)  # fmt: skip
REPEATS = 5
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
    start = time.perf_counter()
    with LOG.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kserve_wasm", *flags],
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
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise SystemExit(
        f"the server did not become ready; {LOG.relative_to(ROOT)} ends with:\n{LOG.read_text()[-3000:]}"
    )


class Asker:
    """The model behind one protocol."""

    def __init__(self, module: Any, port: int) -> None:
        self.module = module
        self.client = module.InferenceServerClient(f"127.0.0.1:{port}")

    def __call__(self, *files: bytes) -> Any:
        """Ask about the files in one request."""
        tensor = self.module.InferInput("contents", [len(files)], "BYTES")
        tensor.set_data_from_numpy(np.array(files, dtype=object))
        return self.client.infer("magika", [tensor])


def ask(http_port: int, grpc_port: int) -> bool:
    """Ask about all files, over both protocols, and print what comes. True when magika's package agrees."""
    sys.path.insert(0, str(build.package()))
    from magika import Magika

    rest, grpc = Asker(tritonclient.http, http_port), Asker(tritonclient.grpc, grpc_port)
    magika = Magika()
    files = dict(samples.samples())

    print()
    print(ROW.format("file", "bytes", "answer", "score", "magika says", "REST ms", "gRPC ms"))
    for name in (name for name in SHOWN if name in files):
        answers, milliseconds = zip(*(timed(asker, files[name]) for asker in (rest, grpc)), strict=True)
        labels = {answer.as_numpy("label")[0].decode() for answer in answers}
        expected = str(magika.identify_bytes(files[name]).output.label)
        score = answers[0].as_numpy("score")[0]
        times = (f"{t:.1f}" for t in milliseconds)
        print(ROW.format(name, len(files[name]), " / ".join(labels), f"{score:.3f}", expected, *times))

    print()
    right = True
    expected = [str(magika.identify_bytes(data).output.label) for data in files.values()]
    for protocol, asker in (("REST", rest), ("gRPC", grpc)):
        answer, milliseconds = timed(asker, *files.values())
        labels = [label.decode() for label in answer.as_numpy("label")]
        agreed = sum(a == b for a, b in zip(labels, expected, strict=True))
        right = right and agreed == len(files)
        print(f"{protocol:<8} one request with all {len(files)} files: {agreed} answers are magika's own, "
              f"{len(set(labels))} kinds, {milliseconds:.0f} ms")  # fmt: skip
    return right


def timed(asker: Asker, *files: bytes) -> tuple[Any, float]:
    """The answer, and the median of a few requests in milliseconds."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        answer = asker(*files)
        times.append((time.perf_counter() - start) * 1000)
    return answer, statistics.median(times)


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
