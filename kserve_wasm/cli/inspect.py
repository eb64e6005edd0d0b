"""``kserve-wasm inspect``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import wasmtime

from kserve_wasm.artifact import Artifact, read_artifact
from kserve_wasm.artifact.manifest import FileRange
from kserve_wasm.artifact.read import digest
from kserve_wasm.artifact.schema import dump_specs
from kserve_wasm.artifact.sections import Section
from kserve_wasm.cli.progress import progress
from kserve_wasm.errors import ArtifactError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("model", type=Path, help="a .wasm file")
    parser.add_argument("--json", action="store_true", help="write JSON")


def run(arguments: argparse.Namespace) -> int:
    """Describes the file."""
    description = describe(arguments.model)
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
        "abi": manifest.abi if manifest else None,
        "name": manifest.name if manifest else "",
        "version": manifest.version if manifest else "",
        "producer": manifest.producer if manifest else "",
        "inputs": dump_specs(manifest.inputs) if manifest else [],
        "outputs": dump_specs(manifest.outputs) if manifest else [],
        "graphs": graphs,
        "code": {"length": artifact.code_length, "digest": artifact.digest()},
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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)

    def table(title: str, columns: list[str], rows: list[list[object]]) -> None:
        if not rows:
            return
        out = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in columns:
            out.add_column(
                column, justify="right" if column in ("bytes", "offset") else "left", overflow="fold"
            )
        for row in rows:
            # Names come from the file: as Text they are not read as markup; repr() defuses terminal controls.
            out.add_row(*(Text(_shown(cell)) for cell in row))
        console.print(out)
        console.print()

    general: list[list[object]] = [["file", d["path"]], ["bytes", f"{d['size']:,}"], ["digest", d["digest"]]]
    general += [[key, d[key]] for key in ("name", "version", "abi", "producer") if d[key]]
    general += [["code", f"{d['code']['length']:,} bytes, {d['code']['digest']}"]]
    table("Model", ["", ""], general)
    for key in ("inputs", "outputs"):
        table(
            key.capitalize(),
            ["name", "datatype", "shape"],
            [[s["name"], s["datatype"], s["shape"]] for s in d[key]],
        )
    rows: list[list[object]] = []
    for graph in d["graphs"]:
        rows.append(
            [
                graph["name"],
                graph["encoding"],
                f"{graph['length']:,}",
                f"{graph['offset']:,}",
                graph["digest"],
            ]
        )
        rows += [
            ["", "weights", f"{w['length']:,}", f"{w['offset']:,}", w["digest"]] for w in graph["weights"]
        ]
    table("Graphs", ["name", "encoding", "bytes", "offset", "digest"], rows)
    table("Imports", ["module", "name", "type"], [[i["module"], i["name"], i["type"]] for i in d["imports"]])
    table("Exports", ["name", "type"], [[e["name"], e["type"]] for e in d["exports"]])
    sections = [[s["id"], s["name"], f"{s['offset']:,}", f"{s['length']:,}"] for s in d["sections"]]
    table("Sections", ["id", "name", "offset", "bytes"], sections)


def _shown(cell: object) -> str:
    text = str(cell)
    return text if text.isprintable() else repr(text)
