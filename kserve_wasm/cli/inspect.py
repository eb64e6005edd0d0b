"""``kserve-wasm inspect``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wasmtime

from kserve_wasm.artifact import Artifact, read_artifact
from kserve_wasm.artifact.manifest import FileRange
from kserve_wasm.artifact.read import digest
from kserve_wasm.artifact.schema import dump_specs
from kserve_wasm.artifact.sections import Section
from kserve_wasm.cli.models import existing, load, named
from kserve_wasm.cli.progress import progress
from kserve_wasm.errors import ArtifactError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("model", type=Path, help="a .wasm file, or a model directory (its highest version)")
    parser.add_argument("--json", action="store_true", help="write JSON")


def run(arguments: argparse.Namespace) -> int:
    """Describes the file."""
    path = existing(arguments.model)
    if path.is_dir():
        path /= load(path).module.relative_to(path.resolve())
    with named(path):
        description = describe(path)
    if arguments.json:
        print(json.dumps(description, indent=2))
    else:
        _print(description)
    return 0


def describe(path: Path) -> dict[str, Any]:
    """All that there is to say of the ``.wasm`` file at ``path``, as plain data.

    Raises:
        ArtifactError: it is damaged, or its code is no valid module.
    """
    artifact = read_artifact(path)
    module = compile_code(artifact)
    manifest = artifact.manifest
    size = path.stat().st_size
    with progress() as report:
        report("digests", 0, 1)
        graphs = [
            {
                "name": graph.entry.name,
                "encoding": graph.entry.encoding,
                "offset": graph.section.offset,
                "length": graph.section.length,
                "digest": _digest(path, graph.section),
                "weights": [
                    {"offset": w.offset, "length": w.length, "digest": _digest(path, w)}
                    for w in graph.weights
                ],
            }
            for graph in artifact.graphs
        ]
        whole = digest(path, FileRange(0, size))
    return {
        "path": str(path),
        "size": size,
        "digest": whole,
        "code_digest": artifact.digest(),
        "code_length": artifact.code_length,
        "abi": manifest.abi if manifest else None,
        "name": manifest.name if manifest else "",
        "version": manifest.version if manifest else "",
        "producer": manifest.producer if manifest else "",
        "inputs": dump_specs(manifest.inputs) if manifest else [],
        "outputs": dump_specs(manifest.outputs) if manifest else [],
        "graphs": graphs,
        "batching": dict(manifest.batching) if manifest else {},
        "imports": [{"module": i.module, "name": i.name, "type": type_text(i.type)} for i in module.imports],
        "exports": [{"name": e.name, "type": type_text(e.type)} for e in module.exports],
        "sections": [
            {"id": s.id, "name": s.name, "offset": s.offset, "length": s.length} for s in artifact.sections
        ],
    }


def compile_code(artifact: Artifact) -> wasmtime.Module:
    """The artefact's code, compiled.

    Raises:
        ArtifactError: it is not valid.
    """
    with artifact.path.open("rb") as file:
        code = file.read(artifact.code_length)
    try:
        return wasmtime.Module(wasmtime.Engine(), code)
    except wasmtime.WasmtimeError as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"the code is not a valid module: {reason}") from None


def type_text(kind: object) -> str:
    """An import's or export's type, for people."""
    if isinstance(kind, wasmtime.FuncType):
        results = ", ".join(map(str, kind.results))
        return f"func ({', '.join(map(str, kind.params))})" + (f" → {results}" if results else "")
    if isinstance(kind, wasmtime.MemoryType):
        maximum = "" if kind.limits.max is None else f" to {kind.limits.max}"
        flags = (" 64-bit" if kind.is_64 else "") + (" shared" if kind.is_shared else "")
        return f"memory {kind.limits.min}{maximum} pages{flags}"
    if isinstance(kind, wasmtime.TableType):
        maximum = "" if kind.limits.max is None else f" to {kind.limits.max}"
        return f"table {kind.limits.min}{maximum} {kind.element}"
    if isinstance(kind, wasmtime.GlobalType):
        return f"global {'mutable ' if kind.mutable else ''}{kind.content}"
    return type(kind).__name__.removesuffix("Type").lower()


def _digest(path: Path, section: Section) -> str:
    return digest(path, FileRange(section.offset, section.length))


def _print(d: dict[str, Any]) -> None:
    _table("Model", [[key, f"{d[key]:,}" if type(d[key]) is int else d[key]] for key in _GENERAL if d[key]])
    for key in ("inputs", "outputs"):
        _table(key.capitalize(), [[s["name"], s["datatype"], _shape(s["shape"])] for s in d[key]])
    rows: list[list[object]] = []
    for graph in d["graphs"]:
        rows.append([graph["name"], graph["encoding"], *_place(graph), graph["digest"]])
        rows += [["", "weights", *_place(weights), weights["digest"]] for weights in graph["weights"]]
    _table("Graphs", rows)
    _table("Batching", [[key, json.dumps(value)] for key, value in d["batching"].items()])
    _table("Imports", [[i["module"], i["name"], i["type"]] for i in d["imports"]])
    _table("Exports", [[e["name"], e["type"]] for e in d["exports"]])
    _table("Sections", [[s["id"], s["name"], *_place(s)] for s in d["sections"]])


_GENERAL = ("path", "size", "digest", "code_length", "code_digest", "name", "version", "abi", "producer")


def _table(title: str, rows: Sequence[Sequence[object]]) -> None:
    """Prints aligned columns, whatever the terminal's width: digests are to be copied whole."""
    if not rows:
        return
    # Names come from the file: repr() defuses terminal controls.
    cells = [[c if c.isprintable() else repr(c) for c in map(str, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(title)
    for row in cells:
        print("  " + "  ".join(map(str.ljust, row, widths)).rstrip())
    print()


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _place(part: dict[str, Any]) -> tuple[str, str]:
    return f"{part['length']:,} bytes", f"at {part['offset']:,}"
