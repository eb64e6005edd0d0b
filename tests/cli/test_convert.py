"""``kserve-wasm convert``."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from kserve_wasm.artifact import read_artifact
from kserve_wasm.tensors import DTYPES, TensorSpec
from tests.cli.test_main import CODE, ROOT


def test_options_reach_the_artefact(onnx_model, wasm_model, tmp_path, kserve_wasm):
    out = tmp_path / "model.wasm"
    done = kserve_wasm(
        *("convert", onnx_model, "-o", out, "--guest", wasm_model, "--name", "n", "--version", "4"),
        *("--input", "a:b:FP32:batch,-1,3", "--input", "s:BOOL:", "--output", "y:BYTES:1"),
    )
    assert (done.status, done.err) == (0, "")
    assert done.out == (
        f"{out}: {out.stat().st_size:,} bytes, verified against ONNX Runtime on 4 random inputs\n"
    )
    manifest = read_artifact(out).manifest
    assert manifest is not None
    assert (manifest.name, manifest.version) == ("n", "4")
    assert manifest.inputs == (
        TensorSpec("a:b", DTYPES["FP32"], ("batch", None, 3)),
        TensorSpec("s", DTYPES["BOOL"], ()),
    )
    assert manifest.outputs == (TensorSpec("y", DTYPES["BYTES"], (1,)),)


def test_a_failure_is_one_line(tmp_path, kserve_wasm):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    done = kserve_wasm("convert", tmp_path / "m.onnx", "-o", tmp_path / "model.wasm")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("error: 'm.onnx' is not an ONNX model")
    assert not (tmp_path / "model.wasm").exists()


def test_progress_is_shown_on_a_terminal_only(onnx_model, tmp_path):
    command = [sys.executable, "-c", CODE, "convert", str(onnx_model), "-o", str(tmp_path / "model.wasm")]
    assert subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stderr == b""
    main, terminal = pty.openpty()
    try:
        subprocess.run(
            command,
            stderr=terminal,
            stdout=subprocess.DEVNULL,
            check=True,
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm"},
        )
        shown = os.read(main, 1 << 16)
    finally:
        os.close(terminal)
        os.close(main)
    assert b"verifying" in shown
