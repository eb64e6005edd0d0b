"""``ModelInferRequest`` → tensors → ``ModelInferResponse`` (Open Inference Protocol, "gRPC")."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from kserve_wasm.errors import InvalidRequest, NotSupported
from kserve_wasm.protocol.checks import dtype_of, shape_of
from kserve_wasm.request import InferenceRequest, InferenceResponse, Parameter
from kserve_wasm.server.grpc.messages import ModelInferRequest, ModelInferResponse
from kserve_wasm.tensors import DType, Tensor

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of ``InferTensorContents`` for each element type; FP16 and BF16 have none and must come raw."""

_MAX_BYTES = (1 << 31) - (1 << 20)
"""Of tensors in one message: protobuf ends at 2 GiB, names and shapes included."""

_INLINE_BYTES = 64 * 1024
_INLINE_ELEMENTS = 4096
"""What is read and written on the event loop, in well under a millisecond."""

_UNSUPPORTED = ("shared_memory_region", "classification")


def parse(data: bytes) -> Any:
    """Parse a ``ModelInferRequest``; raises InvalidRequest when it is none."""
    try:
        return ModelInferRequest.FromString(data)
    except DecodeError:
        raise InvalidRequest("the message is not a ModelInferRequest") from None


def is_slow_to_decode(message: Any, length: int) -> bool:
    """Whether to decode a message of ``length`` bytes in a thread; raw numbers cost nothing at any size."""
    if length <= _INLINE_BYTES:
        return False
    return (
        not message.raw_input_contents
        or len(message.inputs) > _INLINE_ELEMENTS
        or any(item.datatype == "BYTES" for item in message.inputs)
    )


def is_slow_to_encode(response: InferenceResponse) -> bool:
    """Whether to encode an answer in a thread: BYTES are written one by one."""
    return any(
        tensor.dtype.itemsize == 0 and tensor.size > _INLINE_ELEMENTS for tensor in response.outputs.values()
    )


def decode(message: Any) -> InferenceRequest:
    """Take the tensors out of a parsed ``ModelInferRequest``, raw or typed.

    Raises:
        InvalidRequest: an input is not what it says it is; the message names it.
        NotSupported: it asks for shared memory or classification.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents must have one entry an input: {len(message.inputs)} expected, got {len(raw)}"
        )
    tensors: dict[str, Tensor] = {}
    for i, item in enumerate(message.inputs):
        name = item.name
        _refuse_unsupported(item)
        if name in tensors:
            raise InvalidRequest(f"input '{name}' is given twice")
        dtype, shape = dtype_of(name, item.datatype), shape_of(name, item.shape)
        if raw and item.HasField("contents"):
            raise InvalidRequest(
                f"input '{name}' has typed contents beside raw_input_contents; send one of them"
            )
        try:
            tensors[name] = (
                Tensor.from_buffer(dtype, shape, raw[i])
                if raw
                else _from_contents(dtype, shape, item.contents)
            )
        except InvalidRequest as error:
            raise InvalidRequest(f"input '{name}': {error}") from None
    for output in message.outputs:
        _refuse_unsupported(output)
    return InferenceRequest(
        tensors,
        [output.name for output in message.outputs] or None,
        _parameters(message.parameters) if message.parameters else {},
        message.id,
    )


def encode(response: InferenceResponse, name: str, version: str, request_id: str) -> Any:
    """Put an answer into a ``ModelInferResponse``, always raw: tritonclient reads nothing else."""
    size = sum(tensor.nbytes for tensor in response.outputs.values())
    if size > _MAX_BYTES:
        raise NotSupported(f"the answer has {size} bytes; a gRPC message holds less than 2 GiB")
    message = ModelInferResponse(model_name=name, model_version=version, id=request_id)
    for output, tensor in response.outputs.items():
        message.outputs.add(name=output, datatype=tensor.dtype.name, shape=tensor.shape)
        message.raw_output_contents.append(bytes(tensor.buffer()))
    for key, value in response.parameters.items():
        _set_parameter(message.parameters[key], value)
    return message


def _from_contents(dtype: DType, shape: tuple[int, ...], contents: Any) -> Tensor:
    field = _CONTENTS.get(dtype.name)
    if field is None:
        raise InvalidRequest(f"{dtype} has no typed contents in this protocol; send it in raw_input_contents")
    values = getattr(contents, field)
    count = int(np.prod(shape, dtype=object))
    if len(values) != count:
        raise InvalidRequest(
            f"{dtype} with shape {list(shape)} needs {count} elements in {field}, got {len(values)}"
        )
    if dtype.itemsize == 0:
        array = np.empty(count, dtype=object)
        array[:] = values
        return Tensor.from_numpy(array.reshape(shape))
    if dtype.numpy.kind in "iu" and count and dtype.itemsize < 4:
        # int_contents and uint_contents are 32 bits wide, whatever the element type.
        low, high, limits = min(values), max(values), np.iinfo(dtype.numpy)
        if low < limits.min or high > limits.max:
            raise InvalidRequest(f"{high if high > limits.max else low} does not fit {dtype}")
    return Tensor.from_numpy(np.array(values, dtype=dtype.numpy).reshape(shape))


def _refuse_unsupported(item: Any) -> None:
    for key in item.parameters:
        if key in _UNSUPPORTED:
            raise NotSupported(f"'{item.name}' asks for '{key}', which this server does not have")


def _parameters(parameters: Any) -> dict[str, Parameter]:
    values: dict[str, Parameter] = {}
    for key, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"parameter '{key[:80]}' has no value")
        values[key] = getattr(value, choice)
    return values


def _set_parameter(field: Any, value: Parameter) -> None:
    # bool first: it is an int to Python.
    if isinstance(value, bool):
        field.bool_param = value
    elif isinstance(value, int):
        if value < 1 << 63:
            field.int64_param = value
        else:
            field.uint64_param = value
    elif isinstance(value, float):
        field.double_param = value
    else:
        field.string_param = value
