"""Which inputs of a graph leave even their number of dimensions open; ONNX Runtime reports those as scalars."""

from __future__ import annotations

from kserve_wasm.backends.onnx import wire

_GRAPH, _INPUT, _NAME, _TYPE, _TENSOR_TYPE, _SHAPE = 7, 11, 1, 2, 1, 2  # field numbers, onnx.proto


def unranked_inputs(model: bytes) -> set[str]:
    """Names of the inputs without a shape.

    Raises:
        BackendError: ``model`` is no protobuf message.
    """
    inputs = _contents(model, [(0, len(model))], _GRAPH, _INPUT)
    unranked = set()
    for value_info in inputs:
        names = _contents(model, [value_info], _NAME)
        if names and not _contents(model, [value_info], _TYPE, _TENSOR_TYPE, _SHAPE):
            start, end = names[-1]
            unranked.add(model[start:end].decode(errors="replace"))
    return unranked


def _contents(data: bytes, ranges: list[tuple[int, int]], *path: int) -> list[tuple[int, int]]:
    """Ranges of the fields at the end of ``path`` below the messages in ``ranges``."""
    for step in path:
        ranges = [
            (first, last)
            for start, end in ranges
            for number, _, first, last in wire.submessages(data, start, end)
            if number == step
        ]
    return ranges
