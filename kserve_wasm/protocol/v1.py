"""The V1 protocol (KServe V1 and TensorFlow Serving's REST API): payloads to tensors and back.

    rows      {"instances": [row, …]}          → {"predictions": [row, …]}
    columns   {"inputs": {name: values, …}}    → {"outputs": {name: values, …}}

A row is an object ``{input: value, …}``, or for a model with one input the bare value; rows are stacked along a new
first dimension. Columns hold whole tensors; a model with one input or output takes and gives the bare tensor. BYTES are
strings, or ``{"b64": "…"}`` where they are not UTF-8, both ways. How numbers are read and written:
:mod:`kserve_wasm.protocol.json_values`.

Where a model does not say what its inputs are, integers become INT64, other numbers FP32, ``true`` and ``false`` BOOL,
strings BYTES, and bare values the input ``"input"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.protocol import json_values
from kserve_wasm.protocol.checks import MAX_RANK, brief, check_inputs, check_parameters, shape_of
from kserve_wasm.request import InferenceRequest, InferenceResponse
from kserve_wasm.tensors import DTYPES, DType, Tensor, TensorSpec


@dataclass(frozen=True, slots=True)
class V1Shape:
    """The form of a V1 request, which its answer takes too.

    Attributes:
        rows: row format (``instances``), else columns (``inputs``).
    """

    rows: bool


def decode_v1(payload: Any, inputs: Sequence[TensorSpec]) -> tuple[InferenceRequest, V1Shape]:
    """Reads a V1 payload.

    Args:
        payload: the parsed JSON, or its bytes.
        inputs: the model's inputs; empty where it does not say.

    Raises:
        InvalidRequest: with what is wrong, and where.
    """
    if isinstance(payload, (bytes, bytearray, memoryview, str)):
        try:
            payload = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(payload, Mapping) or ("instances" in payload) == ("inputs" in payload):
        raise InvalidRequest(
            'expected an object with either "instances" (a list of rows) or "inputs" (columns by input name), '
            f"got {_keys(payload)}"
        )
    rows = "instances" in payload
    columns = _rows(payload["instances"], inputs) if rows else _columns(payload["inputs"], inputs)
    specs = {spec.name: spec for spec in inputs}
    tensors = {name: _tensor(name, values, specs.get(name)) for name, values in columns.items()}
    check_inputs(tensors, inputs)
    return InferenceRequest(tensors, parameters=check_parameters(payload.get("parameters"))), V1Shape(rows)


def encode_v1(response: InferenceResponse, shape: V1Shape) -> dict[str, Any]:
    """The answer in the request's form, of plain Python values.

    Raises:
        InvalidRequest: several outputs that do not agree in their first dimension cannot be cut into rows.
    """
    outputs = response.outputs
    values = {name: json_values.nested_values(tensor) for name, tensor in outputs.items()}
    if len(values) == 1:
        (only,) = values.values()
        return {"predictions" if shape.rows else "outputs": only}
    if not shape.rows:
        return {"outputs": values}
    if len({tensor.shape[:1] for tensor in outputs.values()} | {()}) > 2 or any(
        not tensor.shape for tensor in outputs.values()
    ):
        shapes = ", ".join(f"'{name}' {list(tensor.shape)}" for name, tensor in outputs.items())
        raise InvalidRequest(
            f"the outputs ({shapes}) differ in their first dimension and cannot be given in rows; "
            'send the request in columns: {"inputs": {…}}'
        )
    return {
        "predictions": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    }


def _rows(rows: Any, inputs: Sequence[TensorSpec]) -> dict[str, list[Any]]:
    """Rows turned into columns."""
    if not isinstance(rows, list):
        raise InvalidRequest(f"'instances' must be a list of rows, got {brief(rows)}")
    if not rows or not _is_object(rows[0]):
        return {_only_input(inputs, "instances", "an object with a value for each"): rows}
    names = rows[0].keys()
    for i, row in enumerate(rows):
        if not _is_object(row) or row.keys() != names:
            raise InvalidRequest(
                f"'instances' must all have the same inputs: row 0 has {sorted(names)}, row {i} has {_keys(row)}"
            )
    return {name: [row[name] for row in rows] for name in names}


def _columns(columns: Any, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    if _is_object(columns):
        return dict(columns)
    return {_only_input(inputs, "inputs", "an object with a tensor for each"): columns}


def _only_input(inputs: Sequence[TensorSpec], key: str, instead: str) -> str:
    if len(inputs) > 1:
        names = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise InvalidRequest(f"the model has the inputs {names}: '{key}' must hold {instead}")
    return inputs[0].name if inputs else "input"


def _tensor(name: str, values: Any, spec: TensorSpec | None) -> Tensor:
    values = _with_bytes(name, values)
    shape = json_values.nested_shape(values)
    if spec is None:
        return json_values.decode(name, _guess(name, values), shape_of(name, shape), values)
    if 0 in shape and len(shape) < len(spec.shape):
        # An empty list says nothing of the dimensions inside it.
        shape += tuple(dim if isinstance(dim, int) else 0 for dim in spec.shape[len(shape) :])
    return json_values.decode(name, spec.dtype, shape_of(name, shape), values)


def _with_bytes(name: str, values: Any, depth: int = 0) -> Any:
    """``values`` with each ``{"b64": …}`` replaced by its bytes; raises InvalidRequest where lists lie too deep."""
    if isinstance(values, list):
        # Asked here and not of the finished shape: JSON may nest deeper than Python's calls can.
        if depth == MAX_RANK:
            raise InvalidRequest(
                f"input '{name}' has more than {MAX_RANK} dimensions; at most these are accepted"
            )
        # Only lists that hold lists or objects are rebuilt: numbers and strings stay where they are.
        if {list, dict} & set(map(type, values)):
            return [_with_bytes(name, value, depth + 1) for value in values]
        return values
    if isinstance(values, dict) and values.keys() == {"b64"}:
        return json_values.from_b64(name, values["b64"])
    return values


def _guess(name: str, values: Any) -> DType:
    """The element type for an input of which the model says nothing."""
    kinds = json_values.kinds(values)
    if kinds and kinds <= {str, bytes}:
        return DTYPES["BYTES"]
    if kinds == {bool}:
        return DTYPES["BOOL"]
    if kinds == {int}:
        return DTYPES["INT64"]
    if kinds <= {int, float, type(None)}:
        return DTYPES["FP32"]
    raise InvalidRequest(
        f"input '{name}' must hold numbers, strings or true and false, and only one of these"
    )


def _is_object(value: Any) -> bool:
    """Whether ``value`` maps input names, rather than being the value ``{"b64": "…"}``."""
    return isinstance(value, dict) and not (value.keys() == {"b64"} and isinstance(value["b64"], str))


def _keys(value: Any) -> str:
    if not isinstance(value, dict):
        return brief(value)
    return f"one with {sorted(str(key)[:40] for key in list(value)[:8])}" if value else "an empty object"
