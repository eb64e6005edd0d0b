"""Reads an ONNX file without the weights in it: memory stays flat, however large the file.

A protobuf message is a row of fields, each a key (number and wire type) and a value; nested messages are
length-prefixed bytes. So the file is walked down to ``ModelProto.graph.initializer[i].raw_data``, large ones are noted
by their place and left out, and everything else is parsed by the onnx package. Sources: Protocol Buffers, "Encoding";
onnx.proto.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError

from kserve_wasm.artifact.manifest import FileRange
from kserve_wasm.convert.errors import ConversionError

LARGE = 1024
"""Initializers from this many bytes on are kept out of the graph."""

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An ONNX file, parsed without its large initializers.

    Attributes:
        path: the file.
        model: all else of it; the initializers in ``raw`` have no data.
        raw: where in the file the data of an initializer is, by its index in ``model.graph.initializer``.
    """

    path: Path
    model: onnx.ModelProto
    raw: dict[int, FileRange]


def read_onnx(path: Path) -> OnnxFile:
    """Reads the file at ``path``.

    Raises:
        ConversionError: it is not an ONNX model, or it is damaged.
    """
    walk = _Walk()
    try:
        with path.open("rb") as file:
            skeleton = walk.message(
                file, 0, os.fstat(file.fileno()).st_size, (_MODEL_GRAPH, _GRAPH_INITIALIZER)
            )
        model = onnx.ModelProto.FromString(skeleton)
    except (EOFError, DecodeError) as error:
        raise ConversionError(f"'{path}' is not an ONNX model, or it is damaged: {error}") from None
    except OSError as error:
        raise ConversionError(f"cannot read '{path}': {error.strerror}") from error
    if not model.graph.node and not model.graph.output:
        raise ConversionError(f"'{path}' is not an ONNX model: it has no graph")
    return OnnxFile(path, model, walk.raw)


@dataclass(slots=True)
class _Walk:
    raw: dict[int, FileRange] = field(default_factory=dict)
    initializers: int = 0

    def message(self, file: BinaryIO, start: int, end: int, into: tuple[int, ...]) -> bytes:
        """The message at ``start`` without large data; follows the fields ``into``, down to initializers."""
        kept: list[bytes] = []
        copied = start
        for number, wire, at, value, after in _fields(file, start, end):
            if wire != _LEN or number != into[0]:
                continue
            file.seek(value)
            if len(into) > 1:
                inner = self.message(file, value, after, into[1:])
            else:
                inner = self._initializer(file, value, after)
            kept += (_read(file, copied, at), _key(number), _varint(len(inner)), inner)
            copied = after
        kept.append(_read(file, copied, end))
        return b"".join(kept)

    def _initializer(self, file: BinaryIO, start: int, end: int) -> bytes:
        index, self.initializers = self.initializers, self.initializers + 1
        raw = [f for f in _fields(file, start, end) if f[0] == _TENSOR_RAW_DATA and f[1] == _LEN]
        if len(raw) != 1 or raw[0][4] - raw[0][3] < LARGE:
            return _read(file, start, end)
        _, _, at, value, after = raw[0]
        self.raw[index] = FileRange(value, after - value)
        return _read(file, start, at) + _read(file, after, end)


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type and three offsets (of the key, of the value, after it) of each field of a message."""
    at = start
    while at < end:
        file.seek(at)
        key, value = _read_varint(file, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, after = _read_varint(file, value)
        elif wire == _I64:
            after = value + 8
        elif wire == _I32:
            after = value + 4
        elif wire == _LEN:
            length, value = _read_varint(file, value)
            after = value + length
        else:
            raise EOFError(f"unknown wire type {wire} at offset {at}")
        if after > end or number == 0:
            raise EOFError(f"the field at offset {at} does not fit its message")
        yield number, wire, at, value, after
        at = after


def _read_varint(file: BinaryIO, at: int) -> tuple[int, int]:
    """The number at the file's position, which is ``at``, and the offset after it."""
    value = 0
    for i in range(10):
        byte = file.read(1)
        if not byte:
            raise EOFError("the file is truncated")
        value |= (byte[0] & 0x7F) << 7 * i
        if byte[0] < 0x80:
            return value, at + i + 1
    raise EOFError(f"the number at offset {at} is too long")


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _key(number: int) -> bytes:
    return _varint(number << 3 | _LEN)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
