"""V2 REST bodies and tensors.

Sources: Open Inference Protocol, "Inference Request JSON Object" and "Inference Response JSON Object"; Triton's
"Binary Tensor Data Extension" (``binary_data_size``, ``binary_data``, ``binary_data_output`` and the header
``Inference-Header-Content-Length``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from kserve_wasm.errors import InvalidRequest, NotSupported, PayloadTooLarge
from kserve_wasm.protocol import json_values
from kserve_wasm.protocol.checks import (
    brief,
    check_parameters,
    dtype_of,
    not_json,
    shape_of,
    timeout_of,
)
from kserve_wasm.request import InferenceRequest, InferenceResponse
from kserve_wasm.server.rest.answer import BINARY_TYPE, JSON_TYPE, Answer
from kserve_wasm.tensors import Tensor
from kserve_wasm.tensors.tensor import BytesLike

JSON_LENGTH = b"inference-header-content-length"
MAX_JSON_BYTES = 32 << 20
"""The largest JSON part of a request. Read, it takes some thirty times its size; binary tensors take none."""
Headers = Mapping[bytes, bytes]


@dataclass(slots=True)
class Wanted:
    """How the client wants the outputs.

    Attributes:
        binary: whether outputs are binary where nothing is said of one.
        outputs: the outputs asked for, and whether each is to be binary; None for all of them.
        timeout: seconds that the client gives the request (Triton's parameter ``timeout``, in µs there).
    """

    binary: bool = False
    outputs: dict[str, bool] | None = None
    timeout: float = math.inf


def decode_request(body: BytesLike, headers: Headers) -> tuple[InferenceRequest, Wanted]:
    """Read a request.

    Args:
        body: JSON, then the binary tensors; without any content coding. Binary tensors are views of it, copied only
            where they lie at an address that their element type cannot have.
        headers: names in lower case.

    Raises:
        InvalidRequest: with the input or field that is wrong, what was expected and what came.
        NotSupported: it asks for classification or shared memory.
        PayloadTooLarge: the JSON is larger than :data:`MAX_JSON_BYTES`.
    """
    data = memoryview(body)
    split = json_length(headers, len(data))
    if split > MAX_JSON_BYTES:
        raise PayloadTooLarge(
            f"the JSON of the request has {split} bytes; at most {MAX_JSON_BYTES} are accepted: send large tensors "
            "as binary data ('binary_data_size')"
        )
    try:
        message = orjson.loads(data[:split])
    except orjson.JSONDecodeError as error:
        hint = (
            ""
            if JSON_LENGTH in headers
            else " (binary data needs the header Inference-Header-Content-Length)"
        )
        raise not_json(error, data, hint) from None
    if type(message) is not dict:
        raise InvalidRequest(f"the request must be a JSON object, got {brief(message)}")

    inputs = message.get("inputs")
    if type(inputs) is not list:
        raise InvalidRequest(f"'inputs' must be a list, got {brief(inputs)}")
    tensors: dict[str, Tensor] = {}
    at = split
    for position, item in enumerate(inputs):
        name = _name("inputs", position, item)
        if name in tensors:
            raise InvalidRequest(f"input '{name}' is given twice")
        tensors[name], at = _input(name, item, data, at)
    if at != len(data):
        raise InvalidRequest(
            f"{len(data) - at} bytes follow the last input; each binary input must give its 'binary_data_size'"
        )

    parameters = check_parameters(message.get("parameters"))
    wanted = _wanted(message.get("outputs"), parameters)
    request_id = message.get("id", "")
    if type(request_id) is not str:
        raise InvalidRequest(f"'id' must be a string, got {brief(request_id)}")
    return InferenceRequest(tensors, wanted.outputs and list(wanted.outputs), parameters, request_id), wanted


def encode_response(
    response: InferenceResponse, wanted: Wanted, model_name: str, model_version: str, request_id: str
) -> Answer:
    """Make the answer; binary outputs are the tensors' own memory.

    An output that is empty is written like any other. A request without an id gets one, as the SDK does it.

    Raises:
        InvalidRequest: an output was asked for that the model did not give, or one that JSON cannot carry.
    """
    names: Mapping[str, Any] = response.outputs if wanted.outputs is None else wanted.outputs
    outputs: list[dict[str, Any]] = []
    body: list[BytesLike] = [b""]
    for name in names:
        tensor = response.outputs.get(name)
        if tensor is None:
            given = ", ".join(f"'{name}'" for name in response.outputs)
            raise InvalidRequest(f"the model gave no output '{name}'; it gave {given or 'none'}")
        output: dict[str, Any] = {"name": name, "shape": tensor.shape, "datatype": tensor.dtype.name}
        if wanted.binary if wanted.outputs is None else wanted.outputs[name]:
            raw = tensor.buffer()
            output["parameters"] = {"binary_data_size": raw.nbytes}
            body.append(raw)
        else:
            output["data"] = json_values.flat_values(name, tensor)
        outputs.append(output)
    message: dict[str, Any] = {
        "model_name": model_name,
        "model_version": model_version,
        "id": request_id or _new_id(),
        "outputs": outputs,
    }
    if response.parameters:
        message["parameters"] = response.parameters
    body[0] = text = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    if len(body) == 1:
        return Answer(200, [JSON_TYPE], body)
    return Answer(200, [BINARY_TYPE, (JSON_LENGTH, b"%d" % len(text))], body)


def _new_id() -> str:
    """A random id in the form of a UUID; not from the system's source of secrets, which costs 3 µs a call."""
    text = f"{random.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def json_length(headers: Headers, length: int) -> int:
    """Tell how many of the ``length`` bytes of a body are JSON."""
    text = headers.get(JSON_LENGTH)
    if text is None:
        return length
    if not text.isdigit() or len(text) > 18 or int(text) > length:
        raise InvalidRequest(
            f"Inference-Header-Content-Length must be a number of at most the body's {length} bytes, "
            f"got '{text[:40].decode('latin-1')}'"
        )
    return int(text)


def _name(field: str, position: int, item: Any) -> str:
    name = item.get("name") if type(item) is dict else None
    if type(name) is not str:
        what = brief(item) if type(item) is not dict else f"'name': {brief(name)}"
        raise InvalidRequest(
            f"'{field}' must hold objects with a string 'name'; element {position} has {what}"
        )
    return name


def _input(name: str, item: dict[str, Any], body: memoryview, at: int) -> tuple[Tensor, int]:
    """Read one input; gives it, and where the next one's binary data begins."""
    dtype = dtype_of(name, item.get("datatype"))
    dims = item.get("shape")
    if type(dims) is not list:
        raise InvalidRequest(f"input '{name}': 'shape' must be a list, got {brief(dims)}")
    shape = shape_of(name, dims)
    parameters = item.get("parameters")
    size = None
    if parameters is not None:
        size = check_parameters(parameters, f"input '{name}'").get("binary_data_size")
        if "shared_memory_region" in parameters:
            raise NotSupported(
                f"input '{name}': shared memory is not supported; send the data in the request"
            )
    if size is None:
        if "data" not in item:
            raise InvalidRequest(f"input '{name}' has neither 'data' nor the parameter 'binary_data_size'")
        return json_values.decode(name, dtype, shape, item["data"]), at
    if type(size) is not int or size < 0:
        raise InvalidRequest(f"input '{name}': 'binary_data_size' must be 0 or more, got {brief(size)}")
    if "data" in item:
        raise InvalidRequest(f"input '{name}' has both 'data' and 'binary_data_size'; send one of them")
    if size > len(body) - at:
        raise InvalidRequest(
            f"input '{name}' says it has {size} bytes of binary data, but only {len(body) - at} are left"
        )
    return _binary(name, dtype, shape, body[at : at + size]), at + size


def _binary(name: str, dtype: Any, shape: tuple[int, ...], raw: memoryview) -> Tensor:
    # Each BYTES element takes four bytes at least: asked before room is made for a number that the client only claims.
    if dtype.itemsize == 0 and math.prod(shape) * 4 > len(raw):
        raise InvalidRequest(
            f"input '{name}': BYTES with shape {list(shape)} needs {math.prod(shape)} elements, each behind its "
            f"length in 4 bytes; got {len(raw)} bytes"
        )
    try:
        tensor = Tensor.from_buffer(dtype, shape, raw)
    except InvalidRequest as error:
        raise InvalidRequest(f"input '{name}': {error}") from None
    # The JSON before them puts tensors at any address, and native code may take natural alignment for granted.
    if not tensor.numpy().flags.aligned:
        tensor = Tensor.from_numpy(tensor.numpy().copy())
    return tensor


def _wanted(outputs: Any, parameters: dict[str, Any]) -> Wanted:
    """Read 'outputs' and the request's parameters on outputs; the latter are taken out of ``parameters``."""
    wanted = Wanted()
    if parameters:
        binary = parameters.pop("binary_data_output", False)
        if type(binary) is not bool:
            raise InvalidRequest(f"parameter 'binary_data_output' must be true or false, got {brief(binary)}")
        wanted.binary = binary
        wanted.timeout = timeout_of(parameters)
    if outputs is None or outputs == []:
        return wanted
    if type(outputs) is not list:
        raise InvalidRequest(f"'outputs' must be a list, got {brief(outputs)}")
    wanted.outputs = {}
    for position, item in enumerate(outputs):
        name = _name("outputs", position, item)
        if name in wanted.outputs:
            raise InvalidRequest(f"output '{name}' is asked for twice")
        asked = check_parameters(item.get("parameters"), f"output '{name}'")
        if asked.get("classification") or "shared_memory_region" in asked:
            raise NotSupported(f"output '{name}': classification and shared memory are not supported")
        binary = asked.get("binary_data", wanted.binary)
        if type(binary) is not bool:
            raise InvalidRequest(f"output '{name}': 'binary_data' must be true or false, got {brief(binary)}")
        wanted.outputs[name] = binary
    return wanted
