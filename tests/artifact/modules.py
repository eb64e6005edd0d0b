"""Modules and artefacts to read in the tests."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import wasmtime

from kserve_wasm.artifact import GraphEntry, Manifest
from kserve_wasm.artifact.write import Blob, NewGraph, write_artifact

CODE = bytes(
    wasmtime.wat2wasm(
        '(module (memory (export "memory") 1) (func (export "infer") (result i32) (i32.const 0)) (data "x"))'
    )
)


def artifact(manifest: Manifest, graphs: Sequence[tuple[GraphEntry, Sequence[bytes]]] = ()) -> bytes:
    """An artefact whose graphs are the decimal offsets of their weights."""

    def new(entry: GraphEntry, weights: Sequence[bytes]) -> NewGraph:
        blobs = [Blob(len(w), lambda w=w: w) for w in weights]
        return NewGraph(entry, blobs, lambda offsets: " ".join(map(str, offsets)).encode())

    file = BytesIO()
    write_artifact(file, Blob(len(CODE), lambda: CODE), manifest, [new(e, w) for e, w in graphs])
    return file.getvalue()


def custom(name: str, payload: bytes) -> bytes:
    """A custom section, spelled out by hand."""
    contents = leb(len(name.encode())) + name.encode() + payload
    return b"\0" + leb(len(contents)) + contents


def leb(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
