"""Opens a ``.wasm`` model: where its code ends, what its manifest says, where its graphs and weights are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from kserve_wasm.artifact.manifest import MAX_BYTES, FileRange, GraphEntry, Manifest, parse_manifest
from kserve_wasm.artifact.sections import CUSTOM, PREFIX, Section, read_sections
from kserve_wasm.backends.base import GraphSource
from kserve_wasm.errors import ArtifactError

MANIFEST = PREFIX + "manifest"
GRAPH = PREFIX + "graph"
WEIGHTS = PREFIX + "weights"
PADDING = PREFIX + "padding"

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class EmbeddedGraph:
    """A graph inside the file.

    Attributes:
        entry: what the manifest says of it.
        section: its ``kserve-wasm.graph`` section.
        weights: its ``kserve-wasm.weights`` sections.
    """

    entry: GraphEntry
    section: Section
    weights: tuple[Section, ...]

    def source(self, path: Path) -> GraphSource:
        """How a backend opens it from the file at ``path``."""
        return GraphSource(
            name=self.entry.name,
            encoding=self.entry.encoding,
            path=path,
            offset=self.section.offset,
            length=self.section.length,
            weights=path if self.weights else None,
            options=self.entry.options,
        )


@dataclass(frozen=True, slots=True)
class Artifact:
    """A ``.wasm`` file, understood.

    Attributes:
        path: the file.
        sections: all of its sections.
        code_length: its first bytes that are code: what the engine is given.
        manifest: what it says of itself; None for a module without the sections of this project.
        graphs: the graphs it carries, in the manifest's order.
    """

    path: Path
    sections: tuple[Section, ...]
    code_length: int
    manifest: Manifest | None
    graphs: tuple[EmbeddedGraph, ...]

    def digest(self) -> str:
        """``sha256:…`` of the code."""
        return digest(self.path, FileRange(0, self.code_length))


def read_artifact(path: Path) -> Artifact:
    """Opens the ``.wasm`` file at ``path``. Reads section headers and the manifest, and no weights.

    Raises:
        ArtifactError: it is no module, it is damaged, or its ``kserve-wasm.*`` sections do not fit together.
    """
    sections = read_sections(path)
    first = next((i for i, s in enumerate(sections) if s.ours), len(sections))
    tail = sections[first:]
    if not tail:
        code_length = sections[-1].end if sections else 8
        return Artifact(path, sections, code_length, None, ())
    for section in tail:
        if section.id != CUSTOM:
            raise ArtifactError(
                f"the {section.name} section at offset {section.start} follows the section '{tail[0].name}'; "
                "code must come first. A tool has rewritten this file: convert the model again"
            )
        if section.ours and section.name not in (MANIFEST, GRAPH, WEIGHTS, PADDING):
            raise ArtifactError(
                f"unknown section '{section.name[:80]}'; a newer kserve_wasm may have written it"
            )
    manifests = [s for s in tail if s.name == MANIFEST]
    if tail[0].name != MANIFEST or len(manifests) != 1:
        raise ArtifactError(
            f"expected one section '{MANIFEST}' before the other {PREFIX}* sections, "
            f"got {len(manifests)}, and '{tail[0].name}' first"
        )
    manifest = parse_manifest(_read(path, manifests[0]))
    return Artifact(path, sections, tail[0].start, manifest, _graphs(manifest, tail))


def digest(path: Path, part: FileRange) -> str:
    """``sha256:…`` of a part of a file; memory stays flat."""
    state = hashlib.sha256()
    left = part.length
    try:
        with path.open("rb") as file:
            file.seek(part.offset)
            while left and (data := file.read(min(left, _CHUNK))):
                state.update(data)
                left -= len(data)
    except OSError as error:
        raise ArtifactError(f"cannot read '{path.name}': {error.strerror}") from error
    if left:
        raise ArtifactError(f"'{path.name}' became shorter while it was read")
    return f"sha256:{state.hexdigest()}"


def _read(path: Path, section: Section) -> bytes:
    if section.length > MAX_BYTES:
        raise ArtifactError(f"manifest: expected at most {MAX_BYTES} bytes, got {section.length}")
    try:
        with path.open("rb") as file:
            file.seek(section.offset)
            return file.read(section.length)
    except OSError as error:
        raise ArtifactError(f"cannot read '{path.name}': {error.strerror}") from error


def _graphs(manifest: Manifest, tail: tuple[Section, ...]) -> tuple[EmbeddedGraph, ...]:
    """A graph section and the weights sections that follow it belong to the manifest's next entry."""
    found: list[tuple[Section, list[Section]]] = []
    for section in tail:
        if section.name == GRAPH:
            found.append((section, []))
        elif section.name == WEIGHTS:
            if not found:
                raise ArtifactError(f"a section '{WEIGHTS}' stands before the first '{GRAPH}'")
            found[-1][1].append(section)
    if len(found) != len(manifest.graphs):
        raise ArtifactError(
            f"the manifest lists {len(manifest.graphs)} graphs, but the file carries {len(found)}"
        )
    graphs = []
    for entry, (section, weights) in zip(manifest.graphs, found, strict=True):
        places = tuple(FileRange(w.offset, w.length) for w in weights)
        if places != entry.weights:
            raise ArtifactError(
                f"the weights of the graph '{entry.name}' are not where the manifest says. "
                "A tool has rewritten this file: convert the model again"
            )
        graphs.append(EmbeddedGraph(entry, section, tuple(weights)))
    return tuple(graphs)
