"""Model directories: from what lies on disk to :class:`~kserve_wasm.artifact.config.ModelConfig`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kserve_wasm.artifact.batching import NOTHING, resolve_batching
from kserve_wasm.artifact.config import Batching, ModelConfig
from kserve_wasm.artifact.model_yaml import FILE_NAME, Overrides, read_model_yaml
from kserve_wasm.artifact.read import Artifact, read_artifact
from kserve_wasm.backends.base import GraphSource
from kserve_wasm.errors import ModelLoadError

MODULE = "model.wasm"
_ENCODINGS = {".onnx": "onnx", ".pt": "pytorch", ".pt2": "pytorch"}
"""WASI-NN's names of the formats that a file's name tells."""
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


def load_model_dir(path: Path, name: str) -> list[ModelConfig]:
    """Reads a model directory as the storage initializer leaves it. Opens no graph and compiles no code.

    Args:
        path: a directory with ``model.wasm`` (or one ``*.wasm``) and perhaps ``model.yaml``; or with numbered
            versions ``1/ 2/ …`` of such directories, for which a ``model.yaml`` beside them counts where a
            version has none of its own; or a ``.wasm`` file itself.
        name: the model's name where neither ``model.yaml`` nor the manifest gives one.

    Returns:
        One configuration a version, in ascending order.

    Raises:
        ModelLoadError: it is not such a directory; the message has a line for each mistake that was found.
        ArtifactError: a ``.wasm`` file is damaged.
    """
    if path.is_file():
        return [_configure(path.resolve().parent, path.resolve(), Overrides(), name)]
    if not path.is_dir():
        raise ModelLoadError(f"the model directory of '{name}' does not exist")
    base = path.resolve()
    overrides = _overrides(base)
    versions = _versions(base)
    if not versions:
        return [_configure(base, _module(base, overrides), overrides, name)]
    if _modules(base):
        raise ModelLoadError(
            f"the directory of '{name}' holds both a .wasm file and numbered versions "
            f"({', '.join(v.name for v in versions)}); keep one of them"
        )
    if overrides.version is not None:
        overrides.fail(("version",), "numbered directories give the version; remove this key")
    configs, mistakes = [], []
    for directory in versions:
        try:
            configs.append(_version(base, directory.name, overrides, name))
        except ModelLoadError as error:  # noqa: PERF203
            mistakes += [f"version {directory.name}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise ModelLoadError("\n".join(mistakes))
    return configs


def _version(base: Path, number: str, overrides: Overrides, name: str) -> ModelConfig:
    inside = _inside(base, number, Overrides(), ())
    own = _overrides(inside)
    if own.version not in (None, number):
        own.fail(("version",), f"the directory gives version {number}, got {own.version}")
    effective = own if own.document else overrides
    config = _configure(inside, _module(inside, effective), effective, name)
    return replace(config, version=number, raw={**config.raw, "version": number})


def is_model_dir(path: Path) -> bool:
    """Whether ``path`` is a directory that :func:`load_model_dir` would read, rightly made or not."""
    try:
        if not path.is_dir():
            return False
        return (
            bool(_modules(path)) or (path / FILE_NAME).is_file() or any(_modules(v) for v in _versions(path))
        )
    except (OSError, ModelLoadError):
        return False  # a volume's lost+found, which only root may read, is no model


def find_model_dirs(path: Path) -> dict[str, Path]:
    """The model directories directly inside ``path``, by name, sorted. Hidden ones are passed over.

    Raises:
        ModelLoadError: ``path`` cannot be listed.
    """
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise ModelLoadError(f"cannot list the model repository: {error.strerror}") from error
    return {p.name: p for p in entries if not p.name.startswith(".") and is_model_dir(p)}


def _configure(base: Path, module: Path, overrides: Overrides, name: str) -> ModelConfig:
    artifact = read_artifact(module)
    manifest = artifact.manifest
    graphs = _graphs(base, artifact, overrides)
    batching = resolve_batching(
        manifest.batching_options() if manifest else NOTHING, overrides.batching, [g.name for g in graphs]
    )
    inputs, outputs = (manifest.inputs, manifest.outputs) if manifest else ((), ())
    return ModelConfig(
        name=overrides.name or (manifest.name if manifest else "") or name,
        version=overrides.version or (manifest.version if manifest else "") or "1",
        module=module,
        code_length=artifact.code_length,
        digest=artifact.digest(),
        inputs=inputs if overrides.inputs is None else overrides.inputs,
        outputs=outputs if overrides.outputs is None else overrides.outputs,
        graphs=graphs,
        device=overrides.device or "cpu",
        limits=overrides.limits,
        instances=overrides.instances,
        parameters=overrides.parameters,
        batching=batching,
        raw=_raw(artifact, overrides, graphs, batching),
    )


def _graphs(base: Path, artifact: Artifact, overrides: Overrides) -> tuple[GraphSource, ...]:
    graphs = {g.entry.name: g.source(artifact.path) for g in artifact.graphs}
    for i, entry in enumerate(overrides.graphs):
        where = ("graphs", i)
        embedded = graphs.get(entry.name)
        if embedded is not None:
            if (entry.path, entry.weights, entry.encoding) != (None, None, None):
                overrides.fail(
                    where, f"the .wasm file carries the graph '{entry.name}': only its options can be given"
                )
            graphs[entry.name] = replace(embedded, options={**embedded.options, **entry.options})
            continue
        if entry.path is None:
            known = ", ".join(f"'{g}'" for g in graphs) or "none"
            overrides.fail(
                where,
                f"the .wasm file carries no graph '{entry.name}', only: {known}; give the path of its file",
            )
        encoding = entry.encoding or _ENCODINGS.get(Path(entry.path).suffix)
        if encoding is None:
            overrides.fail(where, f"the encoding of '{entry.path}' is missing, such as encoding: onnx")
        path = _file(base, entry.path, overrides, (*where, "path"))
        weights = (
            None if entry.weights is None else _file(base, entry.weights, overrides, (*where, "weights"))
        )
        graphs[entry.name] = GraphSource(
            entry.name, encoding, path=path, weights=weights, options=entry.options
        )
    return tuple(graphs.values())


def _raw(
    artifact: Artifact,
    overrides: Overrides,
    graphs: tuple[GraphSource, ...],
    batching: Mapping[str, Batching],
) -> dict[str, Any]:
    raw: dict[str, Any] = artifact.manifest.document() if artifact.manifest else {}
    raw.update(overrides.document)
    if graphs:
        raw["graphs"] = [{"name": g.name, "encoding": g.encoding, "options": dict(g.options)} for g in graphs]
        raw["batching"] = {g.name: asdict(batching[g.name]) for g in graphs}
    return raw


def _overrides(base: Path) -> Overrides:
    if not (base / FILE_NAME).exists():
        return Overrides()
    return read_model_yaml(_inside(base, FILE_NAME, Overrides(), ()))


def _module(base: Path, overrides: Overrides) -> Path:
    if overrides.module is not None:
        return _file(base, overrides.module, overrides, ("module",))
    modules = _modules(base)
    if MODULE in modules:
        return _inside(base, MODULE, overrides, ())
    if len(modules) == 1:
        return _inside(base, modules[0], overrides, ())
    if modules:
        raise ModelLoadError(
            f"expected '{MODULE}' or a single .wasm file in the model directory, got {', '.join(modules)}; "
            f"rename one, or name it in {FILE_NAME} (module: …)"
        )
    found = ", ".join(sorted(p.name for p in base.iterdir() if not p.name.startswith("."))[:10]) or "nothing"
    raise ModelLoadError(f"expected '{MODULE}' or a single .wasm file in the model directory, found {found}")


def _modules(directory: Path) -> list[str]:
    try:
        return sorted(p.name for p in directory.glob("*.wasm") if not p.name.startswith(".") and p.is_file())
    except OSError as error:
        raise ModelLoadError(f"cannot list the model directory: {error.strerror}") from error


def _versions(directory: Path) -> list[Path]:
    try:
        numbered = [p for p in directory.iterdir() if _NUMBER.fullmatch(p.name) and p.is_dir()]
    except OSError as error:
        raise ModelLoadError(f"cannot list the model directory: {error.strerror}") from error
    return sorted(numbered, key=lambda p: int(p.name))


def _file(base: Path, relative: str, overrides: Overrides, where: tuple[str | int, ...]) -> Path:
    path = _inside(base, relative, overrides, where)
    if not path.is_file():
        overrides.fail(where, f"there is no file '{relative}' in the model directory")
    return path


def _inside(base: Path, relative: str, overrides: Overrides, where: tuple[str | int, ...]) -> Path:
    """``relative`` with symbolic links followed; fails when that leaves ``base``."""
    try:
        path = (base / relative).resolve()
    except (OSError, RuntimeError, ValueError):
        path = base.parent
    if not path.is_relative_to(base):
        message = f"'{relative}' leaves the model directory (symbolic links are followed)"
        if where:
            overrides.fail(where, message)
        raise ModelLoadError(message)
    return path
