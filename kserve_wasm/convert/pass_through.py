"""The guest that a conversion writes: request inputs to the graph, the graph's outputs to the response."""

from __future__ import annotations

import io
from collections.abc import Sequence

import wasmtime

from kserve_wasm.artifact.sections import CUSTOM, parse_sections

_PAGE = 65536
_TEXT_AT = 12
_BEFORE, _AFTER = "input '", "' is missing"

_MODULE = """\
(module
  (import "wasi_ephemeral_nn" "load_by_name" (func $load_by_name (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "init_execution_context" (func $init_context (param i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "compute" (func $compute (param i32) (result i32)))
  (import "kserve_wasm" "input_by_name" (func $input_by_name (param i32 i32 i32) (result i32)))
  (import "kserve_wasm" "fail" (func $fail (param i32 i32 i32) (result i32)))
  (import "kserve_wasm" "set_input_tensor" (func $set_input (param i32 i32 i32) (result i32)))
  (import "kserve_wasm" "output_requested" (func $requested (param i32 i32 i32) (result i32)))
  (import "kserve_wasm" "get_output_tensor" (func $get_output (param i32 i32 i32) (result i32)))
  (import "kserve_wasm" "output_set" (func $output_set (param i32 i32 i32) (result i32)))
  (memory (export "memory") {pages})
  (data (i32.const {text_at}) "{text}")
  ;; Memory: 0 graph, 4 context, 8 the result of the call before, {text_at} names and texts.
  (func $input (param $name i32) (param $length i32) (param $index i32) (result i32)
    (local $errno i32)
    ;; The name stands inside the text "input '…' is missing".
    (if (local.tee $errno (call $input_by_name (local.get $name) (local.get $length) (i32.const 8)))
      (then
        (drop (call $fail (i32.const 0) (i32.sub (local.get $name) (i32.const {before}))
          (i32.add (local.get $length) (i32.const {around}))))
        (return (local.get $errno))))
    (call $set_input (i32.load (i32.const 4)) (local.get $index) (i32.load (i32.const 8))))
  (func $output (param $name i32) (param $length i32) (param $index i32) (result i32)
    (local $errno i32)
    (if (local.tee $errno (call $requested (local.get $name) (local.get $length) (i32.const 8)))
      (then (return (local.get $errno))))
    (if (i32.eqz (i32.load (i32.const 8))) (then (return (i32.const 0))))
    (if (local.tee $errno (call $get_output (i32.load (i32.const 4)) (local.get $index) (i32.const 8)))
      (then (return (local.get $errno))))
    (call $output_set (local.get $name) (local.get $length) (i32.load (i32.const 8))))
  (func (export "infer") (result i32)
    (local $errno i32)
    (block $failed
      {steps}
      (return (i32.const 0)))
    (local.get $errno)))
"""


def pass_through(graph: str, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """A core module for the tensor ABI that runs the graph of this name on the request's inputs.

    Args:
        graph: the graph's name.
        inputs: the names of its inputs, in its order.
        outputs: the names of its outputs, in its order.

    Returns:
        The module: about 500 bytes, and some 20 bytes and the name for each input and output.
    """
    text = b""
    places = []
    for before, name, after in (
        ("", graph, ""),
        *((_BEFORE, name, _AFTER) for name in inputs),
        *(("", name, "") for name in outputs),
    ):
        places.append(f"(i32.const {_TEXT_AT + len(text) + len(before)}) (i32.const {len(name.encode())})")
        text += f"{before}{name}{after}".encode()
    of_graph, of_inputs, of_outputs = places[0], places[1 : 1 + len(inputs)], places[1 + len(inputs) :]
    calls = [
        f"$load_by_name {of_graph} (i32.const 0)",
        "$init_context (i32.load (i32.const 0)) (i32.const 4)",
        *(f"$input {place} (i32.const {i})" for i, place in enumerate(of_inputs)),
        "$compute (i32.load (i32.const 4))",
        *(f"$output {place} (i32.const {i})" for i, place in enumerate(of_outputs)),
    ]
    module = _MODULE.format(
        pages=-(-(_TEXT_AT + len(text)) // _PAGE),
        text_at=_TEXT_AT,
        text="".join(f"\\{byte:02x}" for byte in text),
        before=len(_BEFORE),
        around=len(_BEFORE + _AFTER),
        steps="\n      ".join(f"(br_if $failed (local.tee $errno (call {call})))" for call in calls),
    )
    return _without_names(bytes(wasmtime.wat2wasm(module)))


def _without_names(module: bytes) -> bytes:
    """The module without the debug names that the assembler writes for ``$`` identifiers."""
    names = [s for s in parse_sections(io.BytesIO(module)) if s.id == CUSTOM]
    return module[: names[0].start] if names else module
