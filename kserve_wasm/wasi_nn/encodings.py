"""Which format a graph has: told from its bytes, because the numbers of the dialects contradict each other."""

from __future__ import annotations

from collections.abc import Sequence

_DECLARED = ("openvino", "onnx", "tensorflow", "pytorch", "tensorflowlite")
"""The numbers that the specification gives. 5 and 6 are autodetect in one dialect and ggml in another."""


def recognise(builders: Sequence[bytes], declared: int) -> str | None:
    """WASI-NN's name of a graph's format, or None when neither its bytes nor ``declared`` tell.

    Args:
        builders: the buffers that a guest gave to ``load``.
        declared: the encoding's number, which counts only where the bytes say nothing.
    """
    first = builders[0] if builders else b""
    if first[4:8] == b"TFL3":
        return "tensorflowlite"
    if first.startswith(b"GGUF"):
        return "ggml"
    if len(builders) == 2 and first[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "openvino"
    if first.startswith(b"PK\x03\x04"):
        return "pytorch"
    name = _DECLARED[declared] if declared < len(_DECLARED) else None
    # Protobuf, field 1 a varint: the ir_version of an ONNX model, or the schema version of a TensorFlow SavedModel.
    if first.startswith(b"\x08") and name != "tensorflow":
        return "onnx"
    return name
