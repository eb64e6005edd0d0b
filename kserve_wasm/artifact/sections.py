"""The sections of a ``.wasm`` file, found without reading what is in them.

A module is a preamble of 8 bytes and then sections: an id byte, the length of the contents as LEB128 u32, the
contents. Those of a custom section (id 0) start with its name. Source: WebAssembly core specification,
"Binary Format".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kserve_wasm.errors import ArtifactError

MAGIC = b"\0asm"
MODULE_PREAMBLE = MAGIC + b"\x01\0\0\0"
PREFIX = "kserve-wasm."
"""The engine is given what stands before the first custom section whose name starts so."""

CUSTOM = 0
SECTION_NAMES = (
    "custom",
    "type",
    "import",
    "function",
    "table",
    "memory",
    "global",
    "export",
    "start",
    "element",
    "code",
    "data",
    "data count",
    "tag",
)
"""By section id."""

MAX_CONTENTS = 2**32 - 1
_MAX_SECTIONS = 10_000
_MAX_NAME = 1024
_LAYER_COMPONENT = 1


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a file.

    Attributes:
        id: the section id; 0 is a custom section.
        name: a custom section's name, else the specification's name for the id.
        start: offset of the id byte in the file.
        offset: offset of the payload: of the contents, or for a custom section of what follows its name.
        length: bytes of the payload.
    """

    id: int
    name: str
    start: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """Offset of the first byte after the section."""
        return self.offset + self.length

    @property
    def ours(self) -> bool:
        """Whether this project wrote it: a custom section named ``kserve-wasm.…``."""
        return self.id == CUSTOM and self.name.startswith(PREFIX)


def read_sections(path: Path) -> tuple[Section, ...]:
    """Every section of the module at ``path``, in file order. Reads headers alone.

    Raises:
        ArtifactError: the file is no core module in the binary format, or it is truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            return parse_sections(file)
    except OSError as error:
        raise ArtifactError(f"cannot read '{path.name}': {error.strerror}") from error


def parse_sections(file: BinaryIO) -> tuple[Section, ...]:
    """Every section of the module in ``file``, which is at its start; raises as :func:`read_sections` does."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    check_preamble(file.read(len(MODULE_PREAMBLE)))
    sections: list[Section] = []
    for section in _walk(file, size):
        if len(sections) == _MAX_SECTIONS:
            raise ArtifactError(f"the module has more than {_MAX_SECTIONS} sections")
        sections.append(section)
    return tuple(sections)


def check_preamble(head: bytes) -> None:
    """Raises ArtifactError, saying what it is instead, unless ``head`` starts a core module."""
    if head[:8] == MODULE_PREAMBLE:
        return
    if not head:
        raise ArtifactError("the file is empty; expected a WebAssembly module")
    if head[:4] != MAGIC:
        text = (
            " It looks like the text format: assemble it first (wat2wasm)."
            if head.lstrip()[:1] in (b"(", b";")
            else ""
        )
        raise ArtifactError(
            f"expected a WebAssembly module (first bytes 00 61 73 6d), got {head[:4].hex(' ')}.{text}"
        )
    if len(head) < 8:
        raise ArtifactError("the file ends inside its preamble of 8 bytes: it is truncated")
    version, layer = int.from_bytes(head[4:6], "little"), int.from_bytes(head[6:8], "little")
    if layer == _LAYER_COMPONENT:
        raise ArtifactError("this is a WebAssembly component; expected a core module")
    raise ArtifactError(f"expected WebAssembly version 1, got version {version}, layer {layer}")


def _walk(file: BinaryIO, size: int) -> Iterator[Section]:
    at = len(MODULE_PREAMBLE)
    while at < size:
        start = at
        section_id = file.read(1)[0]
        if section_id >= len(SECTION_NAMES):
            raise ArtifactError(f"unknown section id {section_id} at offset {start}: the file is damaged")
        what = f"the {SECTION_NAMES[section_id]} section at offset {start}"
        length, used = _leb_u32(file, size - at - 1, what)
        at += 1 + used
        end = at + length
        if end > size:
            raise ArtifactError(
                f"{what} says it has {length} bytes, but the file ends after {size - at}: truncated"
            )
        name = SECTION_NAMES[section_id]
        if section_id == CUSTOM:
            name_length, used = _leb_u32(file, length, what)
            if name_length > length - used:
                raise ArtifactError(f"{what} has a name that is longer than itself: the file is damaged")
            if name_length > _MAX_NAME:
                raise ArtifactError(f"{what} has a name of {name_length} bytes; at most {_MAX_NAME} are read")
            try:
                name = file.read(name_length).decode()
            except UnicodeDecodeError:
                raise ArtifactError(f"{what} has a name that is not UTF-8: the file is damaged") from None
            at += used + name_length
        yield Section(section_id, name, start, at, end - at)
        file.seek(end)
        at = end


def _leb_u32(file: BinaryIO, available: int, what: str) -> tuple[int, int]:
    """An unsigned LEB128 number below 2³², and the bytes it took; it must lie within ``available`` bytes."""
    value = 0
    for used in range(5):
        byte = file.read(1) if used < available else b""
        if not byte:
            raise ArtifactError(f"{what} ends inside a length: the file is truncated")
        value |= (byte[0] & 0x7F) << 7 * used
        if byte[0] < 0x80:
            if value > MAX_CONTENTS:
                break
            return value, used + 1
    raise ArtifactError(f"{what} has a length above 2^32 - 1: the file is damaged")
