"""Guests compiled from C in the tests, once for each content."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
INCLUDE = ROOT / "kserve_wasm" / "include"
FLAGS = ROOT / "examples" / "guest.flags"
CACHE = ROOT / ".cache"


def compile_guest(source: Path | str, *flags: str) -> Path:
    """Compile a freestanding C guest, once for each source, headers, flags and compiler.

    Args:
        source: a C file, or C text; ``#include "kserve_wasm.h"`` works in both.
        flags: further flags of clang, for example ``-DN=4`` or ``-msimd128``.

    Returns:
        The ``.wasm`` module.

    Raises:
        AssertionError: the compiler refused the source; the message holds its words.
    """
    text = source if isinstance(source, str) else source.read_text()
    headers = [FLAGS, *INCLUDE.glob("*.h")]
    if isinstance(source, Path):
        headers += source.parent.glob("*.h")
    key = repr((text, flags, [h.read_bytes() for h in sorted(headers)], metadata.version("ziglang")))
    module = CACHE / "guests" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.wasm"
    if module.exists():
        return module
    module.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=module.parent) as scratch:
        built = Path(scratch, "guest.wasm")
        file = source
        if isinstance(file, str):
            file = Path(scratch, "guest.c")
            file.write_text(text)
        compiler = [sys.executable, "-m", "ziglang", "cc", f"@{FLAGS}", f"-I{INCLUDE}", *flags]
        zig = str(CACHE / "zig")
        environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig}
        done = subprocess.run([*compiler, file, "-o", built], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"the guest does not compile:\n{done.stderr}"
        # A rename is atomic: two test processes may build the same guest at once.
        built.replace(module)
    return module
