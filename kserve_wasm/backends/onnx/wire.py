"""The little of the protobuf wire format that a graph needs before ONNX Runtime gets it.

Importing ``onnx`` takes longer than opening a graph. Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator

from kserve_wasm.errors import BackendError

_FIXED = {1: 8, 5: 4}  # wire type → bytes
_MAX_TAG = (1 << 32) - 1


def submessages(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The length-delimited fields of the message in ``data[start:end]``.

    Yields:
        Field number, offset of the field's tag, and the range of its content.

    Raises:
        BackendError: the bytes are no protobuf message. Groups, which ONNX has none of, are refused too.
    """
    at = start
    while at < end:
        field = at
        tag, at = _varint(data, at, end)
        number, wire_type = tag >> 3, tag & 7
        if number == 0 or tag > _MAX_TAG:
            raise BackendError(_DAMAGED)
        if wire_type == 2:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise BackendError(_DAMAGED)
            yield number, field, at, at + length
            at += length
        elif wire_type == 0:
            _, at = _varint(data, at, end)
        elif wire_type in _FIXED:
            at += _FIXED[wire_type]
            if at > end:
                raise BackendError(_DAMAGED)
        else:
            raise BackendError(_DAMAGED)


def encode(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return _encode_varint(number << 3 | 2) + _encode_varint(len(content)) + content


_DAMAGED = "the graph is no ONNX model: its protobuf encoding is damaged"


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise BackendError(_DAMAGED)


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
