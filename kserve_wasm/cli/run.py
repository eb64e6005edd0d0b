"""``kserve-wasm run``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from kserve_wasm.cli.models import load
from kserve_wasm.errors import InvalidRequest
from kserve_wasm.protocol.checks import check_inputs
from kserve_wasm.protocol.json_values import decode, kinds, nested_shape, nested_values
from kserve_wasm.request import InferenceRequest, InferenceResponse, Parameter
from kserve_wasm.tensors import DTYPES, DType, Tensor, TensorSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("model", type=Path, help="a .wasm file, or a model directory")
    parser.add_argument(
        "--input",
        "-i",
        action="append",
        default=[],
        type=_assignment,
        metavar="NAME=VALUE",
        help="NAME=file.npy, NAME=@file (its bytes as BYTES), or NAME=json:[[1, 2]]",
    )
    parser.add_argument(
        "--parameter",
        "-p",
        action="append",
        default=[],
        type=_assignment,
        metavar="KEY=VALUE",
        help="of the request",
    )
    parser.add_argument(
        "--model-version", metavar="N", help="of a directory with numbered versions; else the highest"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--output-dir", type=Path, metavar="DIR", help="write each output to DIR/NAME.npy")
    shown.add_argument("--json", action="store_true", help="write JSON")


def run(arguments: argparse.Namespace) -> int:
    """Answers one request."""
    from kserve_wasm.guest import GuestModel

    config = load(arguments.model, arguments.model_version)
    specs = {spec.name: spec for spec in config.inputs}
    inputs = {
        name: _tensor(name, value, specs.get(name)) for name, value in _once("input", arguments.input).items()
    }
    parameters: dict[str, Parameter] = {**_once("parameter", arguments.parameter)}
    model = GuestModel(config)
    model.load()
    try:
        check_inputs(inputs, model.inputs)
        response = model.infer(InferenceRequest(inputs, parameters=parameters))
    finally:
        model.close()
    for difference in _differences(response.outputs, model.outputs):
        print(f"warning: {difference}", file=sys.stderr)
    if arguments.json:
        _print_json(response)
    elif arguments.output_dir is not None:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        for name, tensor in response.outputs.items():
            path = arguments.output_dir / f"{quote(name, safe='')}.npy"
            np.save(path, _savable(name, tensor), allow_pickle=False)
            print(path)
    else:
        _print(response)
    return 0


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got '{text}'")
    return name, value


def _once(what: str, assignments: Sequence[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in assignments:
        if name in found:
            raise InvalidRequest(f"{what} '{name}' is given twice")
        found[name] = value
    return found


def _differences(outputs: Mapping[str, Tensor], listed: Sequence[TensorSpec]) -> Iterator[str]:
    """How outputs differ from those that the model lists; the server takes the guest's word for them."""
    specs = {spec.name: spec for spec in listed}
    for name, tensor in outputs.items() if listed else ():
        spec = specs.pop(name, None)
        if spec is None:
            names = ", ".join(f"'{s.name}'" for s in listed)
            yield f"the output {name!r} is not listed; the model lists {names}"
        elif (
            tensor.dtype is not spec.dtype
            or len(tensor.shape) != len(spec.shape)
            or any(want not in (-1, got) for want, got in zip(spec.v2_shape, tensor.shape, strict=True))
        ):
            yield (
                f"the output '{name}' is listed as {spec.dtype} {spec.v2_shape}, "
                f"but came as {tensor.dtype} {list(tensor.shape)}"
            )
    for name in specs:
        yield f"the output '{name}' is listed, but did not come"


def _tensor(name: str, value: str, spec: TensorSpec | None) -> Tensor:
    if value.startswith("json:"):
        try:
            data = json.loads(value.removeprefix("json:"))
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"input '{name}': expected JSON after 'json:': {error}") from None
        return decode(name, spec.dtype if spec else _guess(name, data), nested_shape(data), data)
    try:
        if value.startswith("@"):
            element = np.empty(1, dtype=object)
            element[0] = Path(value[1:]).read_bytes()
            # A file is one element, in as many dimensions as the model wants.
            return Tensor.from_numpy(element.reshape((1,) * len(spec.shape) if spec else (1,)))
        array = np.load(value, allow_pickle=False)
    except OSError as error:
        shown = value if len(value) <= 80 else value[:80] + "…"
        raise InvalidRequest(
            f"input '{name}': cannot read '{shown.removeprefix('@')}': {error.strerror}; values stand behind "
            f"'json:', as in {name}=json:[[1, 2]]"
        ) from None
    except (ValueError, EOFError) as error:
        raise InvalidRequest(
            f"input '{name}': '{value}' is no .npy file with plain values: {error}"
        ) from None
    if not isinstance(array, np.ndarray):
        raise InvalidRequest(f"input '{name}': '{value}' is an archive; give a .npy file")
    if spec is not None and array.dtype.kind == "V" and array.dtype.itemsize == spec.dtype.itemsize:
        array = array.view(spec.dtype.numpy)  # .npy has no name for bfloat16
    try:
        return Tensor.from_numpy(array)
    except TypeError as error:
        raise InvalidRequest(f"input '{name}': {error}") from None


def _guess(name: str, data: Any) -> DType:
    """The element type of JSON values for a model that does not say."""
    found = kinds(data)
    for dtype, types in (("BOOL", {bool}), ("INT64", {int}), ("FP32", {int, float}), ("BYTES", {str})):
        if found and found <= types:
            return DTYPES[dtype]
    raise InvalidRequest(f"input '{name}': the model does not say its type, and these values do not show one")


def _savable(name: str, tensor: Tensor) -> npt.NDArray[Any]:
    array = tensor.numpy()
    if tensor.dtype.itemsize:
        return array
    if any(element.endswith(b"\0") for element in array.reshape(-1)):
        raise InvalidRequest(
            f"output '{name}' has elements that end in a zero byte, which .npy would lose; use --json"
        )
    return array.astype(np.bytes_)


def _print_json(response: InferenceResponse) -> None:
    outputs = [
        {
            "name": name,
            "datatype": t.dtype.name,
            "shape": list(t.shape),
            "data": nested_values(Tensor.from_numpy(t.numpy().reshape(-1))),  # flat, as the server answers
        }
        for name, t in response.outputs.items()
    ]
    print(json.dumps({"outputs": outputs, "parameters": response.parameters}, ensure_ascii=False))


def _print(response: InferenceResponse) -> None:
    for name, tensor in response.outputs.items():
        array = tensor.numpy()
        if not tensor.dtype.itemsize:
            text = np.empty(array.size, dtype=object)
            for i, element in enumerate(array.reshape(-1)):
                text[i] = element.decode(errors="backslashreplace")
            array = text.reshape(array.shape)
        print(f"{name}  {tensor.dtype} {list(tensor.shape)}")
        print(np.array2string(array, threshold=50, edgeitems=4, max_line_width=110))
    for key, value in response.parameters.items():
        print(f"{key} = {re.sub(r'[^ -~]', '?', str(value))}")
