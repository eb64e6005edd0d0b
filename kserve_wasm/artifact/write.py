"""Writes a ``.wasm`` model in one pass, however large its weights.

A graph names its weights by absolute file offset, and graph and manifest come before them in the file. So the
layout is computed first, with room for the longest offsets there can be; only then are they encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from kserve_wasm.artifact.manifest import FileRange, GraphEntry, Manifest
from kserve_wasm.artifact.read import GRAPH, MANIFEST, PADDING, WEIGHTS
from kserve_wasm.artifact.sections import MAX_CONTENTS
from kserve_wasm.errors import ArtifactError

ALIGNMENT = 1 << 16
"""Weights sections' payloads start at multiples of this in the file: mappable with any page size in use."""

_CHUNK = 4 << 20
_LONGEST_OFFSET = 2**62

Progress = Callable[[int], None]
"""Called with the bytes that were written since the last call."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes to be written: a part of a file, or made when their turn comes.

    Attributes:
        length: how many.
        source: the file and the offset in it, or what makes the bytes.
    """

    length: int
    source: tuple[Path, int] | Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class NewGraph:
    """A graph to be written.

    Attributes:
        entry: its manifest entry; ``weights`` is filled in.
        weights: its weights, in order. Each lies wholly in one section.
        encode: makes the graph's bytes from the absolute file offsets of ``weights``; smaller offsets never
            make them longer.
    """

    entry: GraphEntry
    weights: Sequence[Blob]
    encode: Callable[[Sequence[int]], bytes]


def write_artifact(
    file: BinaryIO,
    code: Blob,
    manifest: Manifest,
    graphs: Sequence[NewGraph],
    progress: Progress | None = None,
) -> list[tuple[int, ...]]:
    """Writes code, manifest, graphs and weights to ``file``, an empty file.

    Args:
        file: where to; written in order, from its start.
        code: a core module.
        manifest: what the file says of itself; its ``graphs`` are replaced.
        graphs: the graphs.
        progress: told of every chunk.

    Returns:
        For each graph, the absolute offsets of its weights.

    Raises:
        ArtifactError: one weight does not fit into a section (4 GiB).
        OSError: the disk is full, a source cannot be read …
    """
    layout = _Layout(code.length, manifest, graphs)
    out = _Writer(file, progress)
    out.blob(code)
    out.header(MANIFEST, layout.manifest.length)
    entries = [replace(g.entry, weights=p.sections) for g, p in zip(graphs, layout.graphs, strict=True)]
    # JSON allows blanks after the value: the section keeps the length that the layout reserved.
    out.write(replace(manifest, graphs=tuple(entries)).encode().ljust(layout.manifest.length))
    for graph, plan in zip(graphs, layout.graphs, strict=True):
        data = graph.encode(plan.offsets)
        out.header(GRAPH, len(data))
        out.write(data)
        blobs = list(zip(graph.weights, plan.offsets, strict=True))
        for section in plan.sections:
            out.align(section)
            while blobs and blobs[0][1] < section.offset + section.length:
                blob, offset = blobs.pop(0)
                out.zeros(offset - out.position)
                out.blob(blob)
    return [plan.offsets for plan in layout.graphs]


@dataclass(frozen=True, slots=True)
class _GraphPlan:
    """Payloads of the weights sections, and the offset of every weight."""

    sections: tuple[FileRange, ...]
    offsets: tuple[int, ...]


class _Layout:
    """Where everything goes."""

    def __init__(self, code_length: int, manifest: Manifest, graphs: Sequence[NewGraph]) -> None:
        groups = [_group(g.weights) for g in graphs]
        longest = tuple(
            replace(g.entry, weights=tuple(FileRange(_LONGEST_OFFSET, length) for length, _ in group))
            for g, group in zip(graphs, groups, strict=True)
        )
        length = len(replace(manifest, graphs=longest).encode())
        self.manifest = FileRange(code_length + _header_length(MANIFEST), length)
        self.graphs: list[_GraphPlan] = []
        at = self.manifest.offset + length
        for graph, group in zip(graphs, groups, strict=True):
            at += _header_length(GRAPH) + len(graph.encode([_LONGEST_OFFSET] * len(graph.weights)))
            sections, offsets = [], []
            for length, relative in group:
                start = _aligned(at + _header_length(PADDING) + _header_length(WEIGHTS), ALIGNMENT)
                sections.append(FileRange(start, length))
                offsets += [start + r for r in relative]
                at = start + length
            self.graphs.append(_GraphPlan(tuple(sections), tuple(offsets)))


def _group(weights: Sequence[Blob]) -> list[tuple[int, list[int]]]:
    """The weights split into sections: each one's length, and its weights' offsets in it."""
    room = MAX_CONTENTS - 64  # the section's own name counts towards its 4 GiB
    groups: list[tuple[int, list[int]]] = []
    end, offsets = 0, list[int]()
    for blob in weights:
        if blob.length > room:
            raise ArtifactError(
                f"one weight has {blob.length} bytes; a section of a .wasm file holds less than 4 GiB"
            )
        # Large ones on pages of their own, so that mapping one touches no other; small ones for SIMD loads.
        start = _aligned(end, 4096 if blob.length >= ALIGNMENT else 64)
        if offsets and start + blob.length > room:
            groups.append((end, offsets))
            start, offsets = 0, []
        offsets.append(start)
        end = start + blob.length
    if offsets:
        groups.append((end, offsets))
    return groups


class _Writer:
    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file = file
        self._progress = progress
        self.position = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.position += len(data)
        if self._progress is not None:
            self._progress(len(data))

    def zeros(self, count: int) -> None:
        self.write(bytes(count))

    def header(self, name: str, payload: int) -> None:
        """Everything of a custom section that stands before its payload."""
        encoded = name.encode()
        contents = 1 + len(encoded) + payload
        if contents > MAX_CONTENTS:
            raise ArtifactError(
                f"the section '{name}' would have {payload} bytes; a section holds less than 4 GiB"
            )
        self.write(b"\0" + _leb5(contents) + bytes([len(encoded)]) + encoded)

    def align(self, section: FileRange) -> None:
        """Fills up with a padding section and starts the weights section whose payload is ``section``."""
        gap = section.offset - _header_length(WEIGHTS) - self.position - _header_length(PADDING)
        self.header(PADDING, gap)
        self.zeros(gap)
        self.header(WEIGHTS, section.length)

    def blob(self, blob: Blob) -> None:
        for chunk in chunks(blob):
            self.write(chunk)


def chunks(blob: Blob) -> Iterator[memoryview]:
    """The bytes of ``blob``, a few MiB at a time; each chunk is valid until the next.

    Raises:
        ArtifactError: there are fewer than ``blob.length``.
        OSError: the source cannot be read.
    """
    if callable(blob.source):
        data = blob.source()
        if len(data) != blob.length:
            raise ArtifactError(f"expected {blob.length} bytes, got {len(data)}")
        yield memoryview(data)
        return
    path, offset = blob.source
    left = blob.length
    buffer = memoryview(bytearray(min(left, _CHUNK)))
    with path.open("rb", buffering=0) as source:
        source.seek(offset)
        while left:
            count = source.readinto(buffer[: min(left, _CHUNK)])
            if not count:
                raise ArtifactError(f"'{path.name}' ends {left} bytes too early")
            yield buffer[:count]
            left -= count


def _leb5(value: int) -> bytes:
    """LEB128 in five bytes, whatever the value, so that a header's length is known before its payload's."""
    return bytes((value >> 7 * i & 0x7F) | (0x80 if i < 4 else 0) for i in range(5))


def _header_length(name: str) -> int:
    return 1 + 5 + 1 + len(name.encode())


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
