"""``kserve-wasm convert``."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import wasmtime

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
        f"{out}: {out.stat().st_size:,} bytes, the graph verified against ONNX Runtime on 4 random inputs; "
        "the guest was started, and not asked\n"
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
    assert done.err.startswith(f"error: '{tmp_path / 'm.onnx'}' is not an ONNX model")
    assert not (tmp_path / "model.wasm").exists()


def test_without_a_guest_the_whole_model_is_verified(onnx_model, tmp_path, kserve_wasm):
    done = kserve_wasm("convert", onnx_model, "-o", tmp_path / "m.wasm")
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith(" bytes, verified against ONNX Runtime on 4 random inputs\n")


def test_a_guest_without_inputs_and_outputs_is_warned_of(onnx_model, wasm_model, tmp_path, kserve_wasm):
    done = kserve_wasm("convert", onnx_model, "-o", tmp_path / "m.wasm", "--guest", wasm_model)
    assert (done.status, done.err.splitlines()) == (
        0,
        [
            "warning: no --input given: clients do not learn the model's inputs",
            "warning: no --output given: clients do not learn the model's outputs",
        ],
    )


def test_paths_are_shown_as_they_were_given(onnx_model, tmp_path, kserve_wasm):
    out = tmp_path / "none" / "x.wasm"
    assert kserve_wasm("convert", onnx_model, "-o", out).err == (
        f"error: cannot write '{out}': No such file or directory\n"
    )
    assert kserve_wasm("convert", onnx_model, "-o", "/").err.startswith("error: '/' is a directory")
    none = tmp_path / "none.onnx"
    assert kserve_wasm("convert", none, "-o", out).err.startswith(f"error: cannot read '{none}'")


def test_a_guest_that_cannot_be_used_is_called_by_its_own_name(onnx_model, tmp_path, kserve_wasm):
    wasi = tmp_path / "program.wasm"
    wasi.write_bytes(wasmtime.wat2wasm('(module (memory (export "memory") 1) (func (export "_start")))'))
    done = kserve_wasm("convert", onnx_model, "-o", tmp_path / "m.wasm", "--guest", wasi)
    assert done.status == 1
    assert done.err.startswith(f"error: the guest '{wasi}' cannot be used: program.wasm must export")
    assert ".part" not in done.err


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
