"""What the examples' ``build.py`` scripts share: packages with weights, the C compiler, ``kserve-wasm convert``."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent
ROOT = EXAMPLES.parent
CACHE = ROOT / ".cache"


def packages(requirements: Path) -> Path:
    """Fetch what a requirements file names, once and only as the pinned files; return their folder."""
    key = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = CACHE / requirements.parent.name / f"{requirements.stem}-{key}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        target = Path(scratch, "packages")
        run(*_installer(), "install", "--no-deps", "--require-hashes", "--target", target, "-r", requirements)
        if not folder.exists():
            target.rename(folder)
    return folder


def _installer() -> tuple[str, ...]:
    """Return pip as a command: this environment's, that of the Python beneath it, or uv's."""
    for python in (sys.executable, str(Path(sys.base_prefix, "bin", "python3"))):
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
            return python, "-m", "pip"
    here = Path(sys.executable).with_name("uv")
    return str(here) if here.exists() else "uv", "pip"


def compile_guest(source: Path, guest: Path, *include: Path) -> None:
    """Compile a C guest to the module ``guest``; ``include`` are further folders with headers."""
    folders = [f"-I{folder}" for folder in (*include, ROOT / "kserve_wasm" / "include")]
    run(sys.executable, "-m", "ziglang", "cc", f"@{EXAMPLES / 'guest.flags'}", *folders, source, "-o", guest)


def convert(graph: Path, guest: Path, output: Path, *flags: str) -> None:
    """Put graph and guest into one ``.wasm`` file; ``flags`` tell what goes in and what comes out."""
    output.parent.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-m", "kserve_wasm.cli", "convert", graph, "--guest", guest)
    run(*command, *flags, "-o", output.resolve())


def run(*command: str | Path) -> None:
    """Run a command; show what it said only if it fails."""
    zig = str(CACHE / "zig")
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}")


def main(description: str | None, name: str, build: Callable[[Path], None]) -> None:
    """Run ``build`` with the file that the command line names, ``build/NAME/model.wasm`` without one."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build" / name / "model.wasm")
    build(parser.parse_args().output)
