"""Moves a graph's large initializers out of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError
from onnx.external_data_helper import ExternalDataInfo

from kserve_wasm.artifact.write import Blob, chunks
from kserve_wasm.convert.errors import ConversionError
from kserve_wasm.convert.onnx_file import LARGE, OnnxFile
from kserve_wasm.tensors import dtypes

LOCATION = "model.wasm"
"""The external data's file, as the graph names it. Backends put the artefact's real path in its place."""

_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")

INLINE = 64 * 1024
"""Weights that are smaller together stay in the graph: a section of their own would be mostly padding."""


@dataclass(frozen=True, slots=True)
class SlimGraph:
    """A model, and its weights apart from it.

    Attributes:
        model: without the data of ``moved``.
        moved: the tensors of ``model.graph.initializer`` whose data is elsewhere.
        weights: their data, in the same order.
    """

    model: onnx.ModelProto
    moved: Sequence[onnx.TensorProto]
    weights: Sequence[Blob]

    def encode(self, places: Sequence[tuple[str, int]]) -> bytes:
        """The model as ONNX, its external data at these locations: a file's name and an offset in it.

        Raises:
            ConversionError: what is not an initializer is larger than a protobuf message may be (2 GiB).
        """
        for tensor, blob, (location, offset) in zip(self.moved, self.weights, places, strict=True):
            tensor.data_location = onnx.TensorProto.EXTERNAL
            del tensor.external_data[:]
            for key, value in (("location", location), ("offset", str(offset)), ("length", str(blob.length))):
                tensor.external_data.add(key=key, value=value)
        try:
            return self.model.SerializeToString()
        except (EncodeError, ValueError) as error:
            raise ConversionError(
                f"the graph without its initializers is too large for ONNX: {error}"
            ) from error


def slim(source: OnnxFile) -> SlimGraph:
    """Takes the large initializers out of ``source``. Data that is external already is only referred to.

    Tensors elsewhere (in nodes and the bodies of ``If`` and ``Loop``) stay in the graph, or come into it.

    Raises:
        ConversionError: external data is missing, too short, or outside the model's directory.
    """
    graph = source.model.graph
    found = [(tensor, _blob(source, i, tensor)) for i, tensor in enumerate(graph.initializer)]
    large = [(tensor, blob) for tensor, blob in found if blob is not None]
    for tensor in _nested(graph):
        _load(source.path, tensor)
    for function in source.model.functions:
        for tensor in _in_nodes(function.node):
            _load(source.path, tensor)
    if sum(blob.length for _, blob in large) < INLINE:
        for tensor, blob in large:
            _clear(tensor)
            tensor.raw_data = b"".join(chunks(blob))
        large = []
    for tensor, _ in large:
        _clear(tensor)
    return SlimGraph(source.model, [t for t, _ in large], [b for _, b in large])


def _blob(source: OnnxFile, index: int, tensor: onnx.TensorProto) -> Blob | None:
    """Where the data of an initializer is; None when it is small, or cannot leave the graph."""
    if index in source.raw:
        part = source.raw[index]
        blob = Blob(part.length, (source.path, part.offset))
    elif tensor.data_location == onnx.TensorProto.EXTERNAL:
        blob = _external(source.path, tensor)
    else:
        dtype = dtypes.BY_ONNX.get(tensor.data_type)
        if tensor.HasField("raw_data") or dtype is None or dtype.itemsize == 0:
            return None
        size = dtype.itemsize * math.prod(tensor.dims)
        if size < LARGE:
            return None
        # Typed fields: the array is made here once, because encode() needs the fields gone.
        try:
            array = onnx.numpy_helper.to_array(tensor)
        except (TypeError, ValueError) as error:
            raise ConversionError(f"the initializer '{tensor.name}' cannot be read: {error}") from None
        blob = Blob(size, lambda: array.tobytes())
    dtype = dtypes.BY_ONNX.get(tensor.data_type)
    if dtype is not None:
        size = dtype.itemsize * math.prod(tensor.dims)
        if size != blob.length:
            raise ConversionError(
                f"the initializer '{tensor.name}' ({dtype}, {list(tensor.dims)}) needs {size} bytes, "
                f"but the model has {blob.length}"
            )
    return blob


def _external(model: Path, tensor: onnx.TensorProto) -> Blob:
    try:
        info = ExternalDataInfo(tensor)
    except ValueError as error:
        raise ConversionError(f"the place of the data of '{tensor.name}' cannot be read: {error}") from None
    path = (model.parent / info.location).resolve()
    # Model hubs keep files as links into a common folder: the model's own link leads there too.
    if not any(path.is_relative_to(base) for base in (model.parent.resolve(), model.resolve().parent)):
        raise ConversionError(
            f"the data of '{tensor.name}' lies outside the model's directory: '{info.location}'"
        )
    if not path.is_file():
        raise ConversionError(f"the file '{info.location}' with the data of '{tensor.name}' is missing")
    offset = info.offset or 0
    available = path.stat().st_size - offset
    length = info.length if info.length is not None else available
    if offset < 0 or not 0 <= length <= available:
        raise ConversionError(
            f"'{info.location}' is too short: '{tensor.name}' needs {length} bytes at {offset}"
        )
    return Blob(length, (path, offset))


def _load(model: Path, tensor: onnx.TensorProto) -> None:
    """Brings external data into a tensor that stays in the graph."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        data = b"".join(chunks(_external(model, tensor)))
        _clear(tensor)
        tensor.raw_data = data


def _nested(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph that is not an initializer of its own."""
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for body in (attribute.g, *attribute.graphs):
                yield from body.initializer
                yield from _nested(body)


def _clear(tensor: onnx.TensorProto) -> None:
    for name in (*_DATA, "external_data", "data_location"):
        tensor.ClearField(name)
