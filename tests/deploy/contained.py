"""Starts the server as a pod does: an unprivileged user in a read-only root, with the runtime's own arguments."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.manifests import ROOT, Manifest, container
from tests.support import require

# $1: the new root, $2: the model, then the folders to show, "--", the command.
# The repository may lie under /tmp or /root: what is shown is mounted last, and folders above it are made.
_CONTAIN = """
set -eu
root=$1 model=$2; shift 2
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir -p "$root/tmp" "$root/mnt/models"
mount -t tmpfs -o mode=777 tmpfs "$root/tmp"
mount --bind -o ro "$model" "$root/mnt/models"
for path in /bin /lib /lib64 /sbin; do
    if [ -L $path ]; then cp -d $path "$root$path"; elif [ -d $path ]; then set -- $path "$@"; fi
done
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --rbind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1"
    shift
done
shift
for path in /dev /proc; do mkdir "$root$path"; mount --rbind $path "$root$path"; done
mount -o remount,ro "$root"
cd /
exec chroot "$root" setpriv --reuid 1010 --regid 0 --clear-groups --no-new-privs \\
    --bounding-set=-all --inh-caps=-all -- "$@"
"""


@dataclass(frozen=True)
class Contained:
    """A server in its container.

    Attributes:
        process: the server; its root is ``/proc/<pid>/root``.
        port: where REST answers, on 127.0.0.1.
        log: what it wrote.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body; status 0 while nothing listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def file(self, path: str) -> Path:
        """A file of the container, seen from outside."""
        return Path(f"/proc/{self.process.pid}/root{path}")


@contextlib.contextmanager
def contained(runtime: Manifest, model: Path, scratch: Path, python: Path) -> Iterator[Contained]:
    """Runs the container of ``runtime`` over the model directory ``model`` until the block ends.

    ``python`` is the interpreter of an environment that the server is installed in. Skips where this process may not
    make a container.
    """
    require(
        os.geteuid() == 0
        and shutil.which("unshare")
        and subprocess.run(["unshare", "-m", "true"]).returncode == 0,
        "only root can mount a read-only root for the server to run in",
    )
    root = scratch / "root"
    root.mkdir()
    port, grpc_port = _free_ports(2)
    arguments = [a.replace("{{.Name}}", "contained") for a in container(runtime)["args"]]
    # As an InferenceService's arguments do, these come after the runtime's.
    arguments += ["--host=127.0.0.1", f"--http_port={port}", f"--grpc_port={grpc_port}", "--drain_seconds=0"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {variable["name"]: variable["value"] for variable in container(runtime).get("env", [])}
    shown = {"/usr", "/etc", str(ROOT), str(python.parents[1]), os.path.realpath(sys.base_prefix)}
    outermost = [path for path in sorted(shown) if not any(path.startswith(f"{other}/") for other in shown)]
    log = scratch / "log"
    command = ["unshare", "-m", "sh", "-c", _CONTAIN, "sh", str(root), str(model), *outermost, "--"]
    command += [str(python), "-m", "kserve_wasm", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield Contained(process, port, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()


def wait_for(server: Contained, path: str) -> None:
    """Waits until ``path`` answers 200; fails with the log where the server ends before."""
    end = time.monotonic() + 60
    while server.get(path)[0] != 200:
        assert server.process.poll() is None, server.log.read_text()
        assert time.monotonic() < end, server.log.read_text()
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]
