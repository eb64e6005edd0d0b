"""Weights beside the graph: every external tensor must lie in the one file that the model ships.

ONNX lets each tensor name a file of its own ("External Data", onnx/docs/ExternalData.md). Here that name is never
a path to follow. Whatever it says, it is replaced by the name of the weights file: so a renamed ``model.wasm`` still
finds its weights in itself, and a hostile graph finds nothing else.
"""

from __future__ import annotations

from kserve_wasm.backends.onnx import wire
from kserve_wasm.errors import BackendError

CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
"""The way from a model to its tensors' ``external_data``: message → field number → message (onnx.proto)."""

_KEY = b"location"
_MAX_DEPTH = 100  # protobuf's own limit


def relocate(graph: bytes, location: bytes | None) -> bytes:
    """``graph`` with ``location`` in place of the file that its external tensors name; ``graph`` itself without such.

    Args:
        graph: a serialized ModelProto.
        location: the file's name, without a folder; None where the model has no weights file.

    Raises:
        BackendError: a tensor is external and ``location`` is None, the tensors name several files, or ``graph`` is no
            protobuf message.
    """
    if _KEY not in graph:  # every external tensor spells it out
        return graph
    named: set[bytes] = set()
    relocated = _rewrite(graph, "ModelProto", 0, len(graph), location or b"", named, 0)
    if named and location is None:
        raise BackendError(
            "the graph keeps tensors in another file, and the model has none for them; "
            "convert it with its weights, or save it as one file"
        )
    if len(named) > 1:
        raise BackendError(
            f"the graph keeps its tensors in {len(named)} files; save it with one file of external data"
        )
    return graph if relocated is None else relocated


def _rewrite(
    data: bytes, message: str, start: int, end: int, location: bytes, named: set[bytes], depth: int
) -> bytes | None:
    """The message in ``data[start:end]`` with its locations replaced, or None when it has none."""
    if depth > _MAX_DEPTH:
        raise BackendError(f"the graph's protobuf is nested more than {_MAX_DEPTH} deep")
    if message == "StringStringEntryProto":
        return _rewrite_entry(data, start, end, location, named)
    children = CHILDREN[message]
    parts: list[bytes] = []
    kept = start
    for number, field, first, last in wire.submessages(data, start, end):
        child = children.get(number)
        if child is None or data.find(_KEY, first, last) < 0:
            continue
        changed = _rewrite(data, child, first, last, location, named, depth + 1)
        if changed is not None:
            parts += (data[kept:field], wire.encode(number, changed))
            kept = last
    if not parts:
        return None
    parts.append(data[kept:end])
    return b"".join(parts)


def _rewrite_entry(data: bytes, start: int, end: int, location: bytes, named: set[bytes]) -> bytes | None:
    fields = {number: data[first:last] for number, _, first, last in wire.submessages(data, start, end)}
    if fields.get(1) != _KEY:
        return None
    named.add(fields.get(2, b""))
    return wire.encode(1, _KEY) + wire.encode(2, location)
