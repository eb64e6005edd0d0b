"""``kserve-wasm validate``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

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
from kserve_wasm.cli.models import existing
from kserve_wasm.errors import DeviceUnavailable, GuestLimitExceeded, WasmServingError
from kserve_wasm.guest import GuestModel
from kserve_wasm.server.versions import select_versions


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
        yield from _loaded(artifact, config, generated=generated)


def _error(what: str, remedy: str) -> Finding:
    return Finding("error", what.strip(), remedy)


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


def _loaded(artifact: Artifact, config: ModelConfig, *, generated: bool) -> Iterator[Finding]:
    """Does what the server does with a model before its first request."""
    model = GuestModel(config)
    try:
        try:
            model.load()
        except WasmServingError as error:
            yield from list(_parts(artifact, config)) or [_error(str(error), "correct the model")]
            return
        try:
            model.probe()
        except GuestLimitExceeded as error:
            yield _error(str(error), "raise limits in model.yaml, or build it with a smaller stack and data")
        except WasmServingError as error:
            yield _error(f"no instance can be made: {error}", "correct the guest and build it again")
        for source in config.graphs:
            yield from _weights(source, artifact)
        if generated:
            yield from _compare(config, model.schedulers[config.graphs[0].name].graph)
    finally:
        model.close()


def _parts(artifact: Artifact, config: ModelConfig) -> Iterator[Finding]:
    """Looks for all that is wrong in a model that does not load: in its module, and in each of its graphs."""
    module = GuestModel(replace(config, graphs=()))
    try:
        module.load()
    except WasmServingError as error:
        yield _error(str(error), "correct the guest and build it again")
    finally:
        module.close()
    for source in config.graphs:
        try:
            open_graph(source, config.device).close()
        except DeviceUnavailable as error:  # noqa: PERF203
            yield Finding("warning", str(error), "check the graph where the model will run")
        except WasmServingError as error:
            yield _error(str(error), "export or convert the graph again")
        else:
            yield from _weights(source, artifact)


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
