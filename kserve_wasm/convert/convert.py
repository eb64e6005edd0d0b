"""From an ONNX file to a ``.wasm`` model that is known to answer as the original does, or to nothing at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from kserve_wasm import __version__
from kserve_wasm.artifact import GraphEntry, Manifest, ModelConfig, load_model_dir, read_artifact
from kserve_wasm.artifact.schema import NAME, VERSION
from kserve_wasm.artifact.write import Blob, NewGraph, write_artifact
from kserve_wasm.convert.errors import ConversionError
from kserve_wasm.convert.onnx_file import read_onnx
from kserve_wasm.convert.pass_through import pass_through
from kserve_wasm.convert.reference import Reference
from kserve_wasm.convert.verify import Example, check, check_weights, examples
from kserve_wasm.convert.weights import LOCATION, slim
from kserve_wasm.errors import ArtifactError
from kserve_wasm.guest import GuestModel
from kserve_wasm.request import InferenceRequest
from kserve_wasm.tensors import Tensor, TensorSpec

Report = Callable[[str, int, int], None]
"""Told of progress: what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert.

    Attributes:
        model: the ONNX file; its external data lies beside it.
        output: the ``.wasm`` file to write; an older one is replaced.
        guest: the user's module; None for a generated one that passes tensors through.
        name: the model's name; "" takes it from ``model``.
        version: the model's version, or "".
        graph: the name under which the guest finds the graph.
        inputs: what a client sends to ``guest``.
        outputs: what a client gets from ``guest``.
        shapes: shapes of the random inputs to verify with, by input name, where not any will do.
    """

    model: Path
    output: Path
    guest: Path | None = None
    name: str = ""
    version: str = ""
    graph: str = "default"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)


def convert(job: Conversion, report: Report = lambda *_: None) -> int:
    """Converts, verifies, and only then puts the file in place.

    Returns:
        On how many random inputs the model was compared with the original.

    Raises:
        ConversionError: the model cannot be converted, or answers otherwise. ``job.output`` is as it was before.
        WasmServingError: the guest, or the graph in it, cannot be opened or fails.
    """
    manifest = _manifest(job)
    guest = None if job.guest is None else _guest(job.guest)
    source = read_onnx(job.model)
    graph = slim(source)
    with Reference(source, graph) as reference:
        specs = reference.inputs(dict(job.shapes))
        report("asking the original", 0, 1)
        found = examples(reference, specs, job.shapes)
        results = reference.outputs([example.outputs for example in found])
    # Its memory is free again before the converted model takes as much.
    if guest is None:
        module = pass_through(job.graph)
        code = Blob(len(module), lambda: module)
        manifest = replace(manifest, inputs=specs, outputs=results)
    else:
        code = guest
    new = NewGraph(
        GraphEntry(job.graph, "onnx"), graph.weights, lambda at: graph.encode([(LOCATION, o) for o in at])
    )
    size = sum(blob.length for blob in graph.weights)
    with _in_place_at_the_end(job.output) as (file, path):
        (offsets,) = write_artifact(file, code, manifest, [new], _Sum(report, "writing", size))
        file.flush()
        os.fsync(file.fileno())
        check_weights(path, graph.weights, offsets, _Sum(report, "comparing weights", size))
        _check_answers(job, path, found, lambda: Reference(source, graph), report)
    return len(found)


def _guest(path: Path) -> Blob:
    """The code of the guest at ``path``, once it is known that this host can load it."""
    try:
        artifact = read_artifact(path)
        model = GuestModel(ModelConfig("guest", "1", path, artifact.code_length, artifact.digest()))
        model.load()
        model.close()
    except ArtifactError as error:
        raise ConversionError(f"the guest '{path}' cannot be used: {error}") from error
    return Blob(artifact.code_length, (path, 0))


def _check_answers(
    job: Conversion, path: Path, found: Sequence[Example], reopen: Callable[[], Reference], report: Report
) -> None:
    (config,) = load_model_dir(path, job.name)
    # Without a time limit: a model may be slow, and whoever converts can wait or interrupt.
    model = GuestModel(replace(config, limits=replace(config.limits, timeout=1e9)))
    model.load()
    try:
        if job.guest is None:

            def answer(inputs: dict[str, Tensor]) -> Mapping[str, Tensor]:
                return model.infer(InferenceRequest(inputs)).outputs
        else:
            # What its inputs are is the guest's affair.
            model.probe()
            answer = model.schedulers[job.graph].graph.run
        check(found, answer, reopen, lambda done: report("verifying", done, len(found)))
    finally:
        model.close()


def _manifest(job: Conversion) -> Manifest:
    """All of the manifest that the model does not tell. Checks what the user gave before any work is done."""
    name = job.name or re.sub(r"[^A-Za-z0-9._-]+", "-", job.model.stem).strip("-._") or "model"
    for what, value, pattern in (("name", name, NAME), ("version", job.version or "1", VERSION)):
        if not pattern.fullmatch(value):
            raise ConversionError(f"the {what} must be letters, digits, '.', '_' and '-', got '{value}'")
    if not job.graph or not job.graph.isprintable():
        raise ConversionError(f"the graph's name must be printable text, got {job.graph!r}")
    if job.guest is None and (job.inputs or job.outputs):
        raise ConversionError("inputs and outputs are the graph's own; --input and --output need --guest")
    for other in (job.model, job.guest):
        if other is not None and job.output.resolve() == other.resolve():
            raise ConversionError(f"the output would replace '{other}'; choose another name")
    return Manifest(
        "tensor", name, job.version, job.inputs, job.outputs, producer=f"kserve-wasm convert {__version__}"
    )


@contextmanager
def _in_place_at_the_end(output: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside ``output``, which replaces it when the block ends well and vanishes when it does not."""
    if output.is_dir():
        raise ConversionError(f"'{output}' is a directory; name the file to write in it")
    path = output.with_name(f".{output.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            with path.open("xb") as file:
                yield file, path
            os.replace(path, output)
        finally:
            path.unlink(missing_ok=True)
        _sync_directory(output.parent)
    except OSError as error:
        raise ConversionError(f"cannot write '{output}': {error.strerror or error}") from error


def _sync_directory(path: Path) -> None:
    """Makes the new name as durable as the bytes are."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Sum:
    """Adds up the bytes of chunks for a report."""

    def __init__(self, report: Report, what: str, total: int) -> None:
        self._report = report
        self._what = what
        self._total = total
        self._done = 0

    def __call__(self, count: int) -> None:
        self._done = min(self._done + count, self._total)
        self._report(self._what, self._done, self._total)
