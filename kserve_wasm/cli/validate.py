"""``kserve-wasm validate``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import wasmtime

from kserve_wasm.artifact import (
    Artifact,
    ModelConfig,
    find_model_dirs,
    is_model_dir,
    load_model_dir,
    read_artifact,
)
from kserve_wasm.artifact.write import ALIGNMENT
from kserve_wasm.backends import Graph, GraphSource, open_graph
from kserve_wasm.cli.inspect import compile_code, type_text
from kserve_wasm.cli.models import existing
from kserve_wasm.errors import ArtifactError, DeviceUnavailable, WasmServingError
from kserve_wasm.guest import HOST_FUNCTIONS
from kserve_wasm.server.versions import select_versions

_PAGE = 65536
_WASI = "wasi_snapshot_preview1"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know of a model.

    Attributes:
        severity: ``error``: it cannot be served; ``warning``: it can, and yet.
        what: what was found.
        remedy: what to do.
    """

    severity: str
    what: str
    remedy: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("model", type=Path, help="a .wasm file, a model directory, or a directory of those")


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; 1 when one of them is an error."""
    path = existing(arguments.model)
    many = path.is_dir() and not is_model_dir(path)
    models = list(find_model_dirs(path).values()) if many else []
    return max(map(_report, models or [path]))


def _report(path: Path) -> int:
    findings = list(validate(path))
    for finding in findings:
        print(" ".join(f"{finding.severity}: {path}: {finding.what}; {finding.remedy}".split()))
    if any(finding.severity == "error" for finding in findings):
        return 1
    print(f"ok: {path} can be served")
    return 0


def validate(path: Path) -> Iterator[Finding]:
    """Checks the ``.wasm`` file or model directory at ``path``: all that is wrong, and not the first thing alone."""
    try:
        configs = load_model_dir(path, path.stem)
        select_versions(configs)
    except WasmServingError as error:
        for line in str(error).splitlines():
            yield _error(line, "nothing else was checked")
        return
    yield from _passed_over(path, configs)
    for config in configs:
        artifact = read_artifact(config.module)
        generated = _is_generated(artifact, config)
        yield from _sections(artifact)
        if not generated:
            yield from _unlisted(config)
        yield from _module(artifact, config)
        graphs = []
        for source in config.graphs:
            try:
                graphs.append(open_graph(source, config.device))
            except DeviceUnavailable as error:  # noqa: PERF203
                yield Finding("warning", str(error), "check the graph where the model will run")
            except WasmServingError as error:
                yield _error(str(error), "export or convert the graph again")
            else:
                yield from _weights(source, artifact)
        if generated and graphs:
            yield from _compare(config, graphs[0])
        for graph in graphs:
            graph.close()


def _error(what: str, remedy: str) -> Finding:
    return Finding("error", what, remedy)


def _passed_over(path: Path, configs: list[ModelConfig]) -> Iterator[Finding]:
    for name in find_model_dirs(path) if path.is_dir() else ():
        if name not in {config.version for config in configs}:
            yield Finding(
                "warning",
                f"the directory '{name}' holds a model that is not looked at",
                "a version's directory is named by a number from 1 on, as in 1, 2, 10",
            )


def _unlisted(config: ModelConfig) -> Iterator[Finding]:
    missing = [kind for kind, specs in (("inputs", config.inputs), ("outputs", config.outputs)) if not specs]
    if missing:
        yield Finding(
            "warning",
            f"the model lists no {' and no '.join(missing)}, so that clients do not learn them and requests "
            "reach the guest unchecked",
            "list them in model.yaml, or with convert's --input and --output",
        )


def _sections(artifact: Artifact) -> Iterator[Finding]:
    for graph in artifact.graphs:
        for section in graph.weights:
            if section.offset % ALIGNMENT:
                yield Finding(
                    "warning",
                    f"weights of the graph '{graph.entry.name}' start at {section.offset}, no multiple of {ALIGNMENT}",
                    "convert the model again, so that every host can map them",
                )


def _module(artifact: Artifact, config: ModelConfig) -> Iterator[Finding]:
    try:
        module = compile_code(artifact)
    except ArtifactError as error:
        yield _error(str(error), "build the guest again")
        return
    yield from _imports(module)
    exports = {e.name: e.type for e in module.exports}
    memory = exports.get("memory")
    if not isinstance(memory, wasmtime.MemoryType):
        yield _error("the module exports no memory named 'memory'", "export it (wasm-ld does so by default)")
    elif memory.is_64 or memory.is_shared:
        kind = "64-bit" if memory.is_64 else "shared"
        yield _error(f"the module's memory is {kind}", "build for wasm32 without threads")
    elif memory.limits.min * _PAGE > config.limits.memory:
        yield _error(
            f"the module asks for {memory.limits.min * _PAGE} bytes of memory at its start, above the limit of "
            f"{config.limits.memory}",
            "raise limits.memory in model.yaml, or build it with a smaller stack and data",
        )
    for name, expected in (("infer", "func () → i32"), ("load", "func () → i32"), ("_initialize", "func ()")):
        kind_of = exports.get(name)
        if kind_of is None and name != "infer":
            continue
        got = "nothing" if kind_of is None else type_text(kind_of)
        if got != expected:
            yield _error(f"the export '{name}' must be {expected}, got {got}", "see kserve_wasm.h")


def _imports(module: wasmtime.Module) -> Iterator[Finding]:
    letters = {"i": "i32", "I": "i64"}
    offered = {
        (f.module, f.name): f"func ({', '.join(letters[p] for p in f.params)})"
        + (" → i32" if f.has_result else "")
        for f in HOST_FUNCTIONS
    }
    modules = sorted({module for module, _ in offered} | {_WASI})
    for imported in module.imports:
        if imported.module == _WASI:
            continue
        name = f"'{imported.module}' '{imported.name}'"
        expected = offered.get((imported.module, imported.name or ""))
        if expected is None:
            yield _error(
                f"the module imports {name}, which this host does not offer",
                f"import only from {', '.join(modules)}; see kserve_wasm.h",
            )
        elif (got := type_text(imported.type)) != expected:
            yield _error(
                f"the module imports {name} as {got}, but it is {expected}",
                "declare it as kserve_wasm.h does",
            )


def _weights(source: GraphSource, artifact: Artifact) -> Iterator[Finding]:
    """Looks for weights that an ONNX graph expects outside its weights sections."""
    embedded = next((g for g in artifact.graphs if g.entry.name == source.name), None)
    if embedded is None or source.encoding != "onnx" or not embedded.weights:
        return
    import onnx
    from onnx.external_data_helper import ExternalDataInfo

    with artifact.path.open("rb") as file:
        file.seek(embedded.section.offset)
        graph = onnx.load_model_from_string(file.read(embedded.section.length)).graph
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        info = ExternalDataInfo(tensor)
        start, length = info.offset or 0, info.length or 0
        if not any(s.offset <= start and start + length <= s.end for s in embedded.weights):
            yield _error(
                f"the weights '{tensor.name}' of the graph '{source.name}' lie outside its weights sections",
                "convert the model again",
            )


def _is_generated(artifact: Artifact, config: ModelConfig) -> bool:
    """Whether the guest is the one that ``convert`` makes, so that inputs and outputs are the graph's."""
    from kserve_wasm.convert.pass_through import pass_through

    with artifact.path.open("rb") as file:
        code = file.read(artifact.code_length)
    return len(config.graphs) == 1 and code == pass_through(config.graphs[0].name)


def _compare(config: ModelConfig, graph: Graph) -> Iterator[Finding]:
    """Compares listed inputs and outputs with the graph's."""
    for kind, listed, real in (
        ("input", config.inputs, graph.inputs),
        ("output", config.outputs, graph.outputs),
    ):
        found = {s.name: s for s in listed}
        for spec in real:
            said = found.pop(spec.name, None)
            if said is None:
                yield _error(
                    f"the graph's {kind} '{spec.name}' is not listed",
                    "list it in model.yaml or convert again",
                )
            elif said.dtype is not spec.dtype or len(said.shape) != len(spec.shape):
                yield _error(
                    f"the {kind} '{spec.name}' is listed as {said.dtype} {said.v2_shape}, but the graph's is "
                    f"{spec.dtype} {spec.v2_shape}",
                    "correct model.yaml or convert again",
                )
        for name in found:
            yield _error(f"the {kind} '{name}' is listed, but the graph has none of that name", "remove it")
