"""Model directories for a server, made by the product's own converter, or of a guest in the text format."""

from __future__ import annotations

from pathlib import Path

import onnx
import wasmtime

from kserve_wasm.convert import Conversion, convert
from kserve_wasm.tensors import DTYPES
from tests.backends import models

_FUNCTION = '(module (memory (export "memory") 1) (func (export "infer") (result i32) {body}))'

TRAP = _FUNCTION.format(body="unreachable")
FOREVER = _FUNCTION.format(body="(loop $l (br $l)) i32.const 0")
REFUSES = """(module
  (import "kserve_wasm" "fail" (func $fail (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "too dark to see")
  (func (export "infer") (result i32) (drop (call $fail (i32.const 0) (i32.const 16) (i32.const 15))) i32.const 5))"""
ECHO = """(module
  (import "kserve_wasm" "input_by_index" (func $input (param i32 i32) (result i32)))
  (import "kserve_wasm" "output_set" (func $output (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "y")
  (func (export "infer") (result i32)
    (if (call $input (i32.const 0) (i32.const 32)) (then (return (i32.const 5))))
    (call $output (i32.const 16) (i32.const 1) (i32.load (i32.const 32)))))"""
"""The first input as the output ``y``, by its handle alone."""
SLOW = _FUNCTION.format(
    body="""(local $i i64)
    (loop $l (local.set $i (i64.add (local.get $i) (i64.const 1)))
             (br_if $l (i64.lt_u (local.get $i) (i64.const 1000000000))))
    i32.const 0"""
)
"""About a second of counting: long enough that something can happen meanwhile."""


def identity_name(dtype: str) -> str:
    return f"identity_{dtype.lower()}"


def write_onnx(model: onnx.ModelProto, directory: Path, **shapes: list[int]) -> Path:
    """A model directory with ``model`` converted into it; ``shapes`` are for inputs that do not say their rank."""
    directory.mkdir(parents=True)
    source = directory / "model.onnx"
    onnx.save(model, source)
    convert(Conversion(source, directory / "model.wasm", shapes=shapes))
    source.unlink()
    return directory


def write_identity(dtype: str, root: Path) -> Path:
    """``y = x`` for ``x`` of any shape."""
    directory = write_onnx(models.identity(dtype), root / identity_name(dtype), x=[2, 3])
    # A manifest's shapes have a rank; a model that says nothing of its inputs takes what the graph takes.
    (directory / "model.yaml").write_text("inputs: []\noutputs: []\n")
    return directory


def write_guest(wat: str, directory: Path, yaml: str = "") -> Path:
    """A model directory with a guest of the text format, and perhaps a ``model.yaml``."""
    directory.mkdir(parents=True)
    (directory / "model.wasm").write_bytes(wasmtime.wat2wasm(wat))
    if yaml:
        (directory / "model.yaml").write_text(yaml)
    return directory


def write_repository(root: Path) -> Path:
    """A model for each element type, some that compute, and some that fail in every way."""
    for dtype in DTYPES:
        if dtype != "BYTES":
            write_identity(dtype, root)
    # ONNX Runtime's strings are UTF-8; bytes that are not can only pass through a guest.
    write_guest(ECHO, root / identity_name("BYTES"))
    write_onnx(models.mlp(), root / "mlp")
    write_onnx(models.add_and_subtract(), root / "sums")
    for version in (1, 2, 10):
        write_onnx(models.mlp(seed=version), root / "versioned" / str(version))
    (root / "versioned" / "model.yaml").write_text("version_policy: all\n")
    write_guest(TRAP, root / "trap")
    write_guest(REFUSES, root / "refuses")
    write_guest(FOREVER, root / "forever", "limits: {timeout: 0.3}\n")
    return root
