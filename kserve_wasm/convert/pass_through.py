"""The guest that a conversion writes: request inputs to the graph, the graph's outputs to the response."""

from __future__ import annotations

import io

import wasmtime

from kserve_wasm.artifact.sections import CUSTOM, parse_sections

_MODULE = """\
(module
  (import "kserve_wasm" "run_graph" (func $run_graph (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "{name}")
  (func (export "infer") (result i32)
    (call $run_graph (i32.const 0) (i32.const {length}))))
"""


def pass_through(graph: str) -> bytes:
    """A core module of about 150 bytes that runs the graph of this name on the request's inputs."""
    name = graph.encode()
    text = _MODULE.format(name="".join(f"\\{byte:02x}" for byte in name), length=len(name))
    return _without_names(bytes(wasmtime.wat2wasm(text)))


def _without_names(module: bytes) -> bytes:
    """The module without the debug names that the assembler writes for ``$`` identifiers."""
    names = [s for s in parse_sections(io.BytesIO(module)) if s.id == CUSTOM]
    return module[: names[0].start] if names else module
