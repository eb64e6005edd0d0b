"""The SDK's own request and answer types, for what reaches a model through the SDK's code (transformers in process)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse
from kserve.protocol.infer_type import to_http_parameters

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.protocol import json_values
from kserve_wasm.protocol.checks import check_parameters, dtype_of, shape_of
from kserve_wasm.request import InferenceRequest, InferenceResponse
from kserve_wasm.tensors import Tensor


def from_infer_request(request: InferRequest) -> InferenceRequest:
    """The SDK's request as ours; raises InvalidRequest where an input is not what it says it is."""
    tensors: dict[str, Tensor] = {}
    for item in request.inputs:
        if item.name in tensors:
            raise InvalidRequest(f"input '{item.name}' is given twice")
        tensors[item.name] = _tensor(item)
    outputs = [output.name for output in request.request_outputs or ()] or None
    return InferenceRequest(tensors, outputs, _parameters(request.parameters), request.id or "")


def to_infer_response(
    response: InferenceResponse, request: InferRequest, model_name: str, model_version: str | None = None
) -> InferResponse:
    """Our answer as the SDK's, with raw outputs."""
    outputs = []
    for name, tensor in response.outputs.items():
        output = InferOutput(name, list(tensor.shape), tensor.dtype.name, parameters={})
        output._raw_data = bytes(tensor.buffer())
        outputs.append(output)
    return InferResponse(
        request.id,
        model_name,
        outputs,
        model_version,
        parameters=dict(response.parameters) or None,
        use_binary_outputs=request.use_binary_outputs,
        requested_outputs=request.request_outputs or None,
    )


def _tensor(item: Any) -> Tensor:
    dtype, shape = dtype_of(item.name, item.datatype), shape_of(item.name, item.shape)
    if item._raw_data is not None:
        return Tensor.from_buffer(dtype, shape, item._raw_data)
    if not isinstance(item.data, np.ndarray):
        return json_values.decode(item.name, dtype, shape, list(item.data or ()))
    tensor = Tensor.from_numpy(item.data)
    if tensor.dtype is not dtype or tensor.shape != shape:
        raise InvalidRequest(
            f"input '{item.name}' says {dtype} {list(shape)}, but its data is {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor


def _parameters(parameters: Any) -> Mapping[str, Any]:
    return check_parameters(to_http_parameters(parameters)) if parameters else {}
