"""Models made of a few lines of WebAssembly text."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import wasmtime

from kserve_wasm.artifact.config import Instances, Limits, ModelConfig
from kserve_wasm.guest import GuestModel
from kserve_wasm.guest.reference import ReferenceBinding
from kserve_wasm.guest.unchecked import UncheckedBinding
from kserve_wasm.request import InferenceRequest
from kserve_wasm.tensors import Tensor

BINDINGS = {"unchecked": UncheckedBinding, "reference": ReferenceBinding}

IMPORTS = """
  (import "kserve_wasm" "input_by_index" (func $input (param i32 i32) (result i32)))
  (import "kserve_wasm" "output_set" (func $output (param i32 i32 i32) (result i32)))
  (import "kserve_wasm" "tensor_create" (func $create (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "kserve_wasm" "tensor_read" (func $read (param i32 i64 i32 i32) (result i32)))
  (import "kserve_wasm" "fail" (func $fail (param i32 i32 i32) (result i32)))
  (import "kserve_wasm" "log" (func $log (param i32 i32 i32) (result i32)))
"""

ECHO = f"""(module {IMPORTS}
  (memory (export "memory") 1)
  (data (i32.const 0) "y")
  (func (export "infer") (result i32)
    (drop (call $input (i32.const 0) (i32.const 16)))
    (call $output (i32.const 0) (i32.const 1) (i32.load (i32.const 16)))))"""
"""Answers its first input as output ``y``."""


def config_of(directory: Path, wat: str, name: str = "m", **settings: Any) -> ModelConfig:
    """The configuration of a model whose module is ``wat``; settings of ``limits`` and ``instances`` go there."""
    code = wasmtime.wat2wasm(wat)
    module = directory / f"{name}.wasm"
    module.write_bytes(code)
    limits, instances = Limits(), Instances()
    for key, value in settings.items():
        if hasattr(limits, key):
            limits = replace(limits, **{key: value})
        else:
            instances = replace(instances, **{key: value})
    digest = f"sha256:{hashlib.sha256(code).hexdigest()}"
    return ModelConfig(name, "1", module, len(code), digest, limits=limits, instances=instances)


def open_model(directory: Path, wat: str, binding: str = "unchecked", **settings: Any) -> GuestModel:
    """The model, loaded."""
    model = GuestModel(config_of(directory, wat, **settings), binding=BINDINGS[binding])
    model.load()
    return model


def request(**inputs: Any) -> InferenceRequest:
    """A request with NumPy arrays as inputs."""
    return InferenceRequest({name: Tensor.from_numpy(array) for name, array in inputs.items()})
