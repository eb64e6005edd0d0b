"""Programs of ``torch.export``, read from their archive.

``torch.export.load`` is not used. As the archive says, it unpickles objects, evaluates expressions as Python, takes any
function below ``torch`` for an operator and loads compiled code; its documentation warns of untrusted archives. What an
archive has to say is which operators to call with what, and that is read here: JSON, and weights as they lie in the
file. Source: ``torch/_export/serde/schema.py``, version 8.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from kserve_wasm.backends.torch.archive import Archive
from kserve_wasm.backends.torch.exchange import TORCH_DTYPES
from kserve_wasm.backends.torch.lowering import SCALAR_TYPES, Lowering, union
from kserve_wasm.backends.torch.program import Program
from kserve_wasm.backends.torch.sizes import Checks, size, symbol
from kserve_wasm.backends.torch.stop import run_until
from kserve_wasm.errors import BackendError
from kserve_wasm.tensors import DTYPES, TensorSpec

_SCHEMA = 8
_INT64 = DTYPES["INT64"]
_STRIDED = 7  # schema.Layout


def open_program(archive: Archive, device: torch.device) -> Program:
    """Opens the archive's one program on ``device``.

    Raises:
        BackendError: it is damaged, of another version, or has what is not allowed here.
    """
    models = [name for name in archive.names if name.startswith("models/")]
    if len(models) != 1:
        raise BackendError(f"the archive holds {len(models)} programs; save each in a file of its own")
    if "byteorder" in archive and archive.read("byteorder") != b"little":
        raise BackendError("the archive's weights are big-endian; save it on a little-endian machine")
    try:
        document = json.loads(archive.read(models[0]))
        major = document["schema_version"]["major"]
        if major != _SCHEMA:
            raise BackendError(
                f"the program is written in version {major} of its format, not {_SCHEMA}; save it again with PyTorch "
                f"{torch.__version__.partition('+')[0]} or one near it"
            )
        model = models[0].removeprefix("models/").removesuffix(".json")
        return _open(document, _Weights(archive, model, device), device)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise BackendError(f"the program cannot be read: {type(error).__name__} {error}") from error


def _open(document: Mapping[str, Any], weights: _Weights, device: torch.device) -> Program:
    module = document["graph_module"]
    graph, signature = module["graph"], module["signature"]
    lowering = Lowering(device)
    fixed: list[Any] = []
    inputs: list[TensorSpec] = []
    numbers: set[str] = set()
    derived = []
    sources = [_input(spec) for spec in signature["input_specs"]]
    for kind, name, where in sources:
        if kind != "user_input":
            lowering.fixed(name)
            fixed.append(weights.constant(where) if kind == "constant_input" else weights.get(kind, where))
    for kind, name, where in sources:
        if kind == "user_input" and where == "as_tensor":
            lowering.placeholder(name)
            spec, open_sizes = _spec(name, graph["tensor_values"][name])
            derived += [(len(inputs), axis, found) for axis, found in open_sizes]
            inputs.append(spec)
        elif kind == "user_input" and where == "as_sym_int":
            lowering.placeholder(name)
            inputs.append(TensorSpec(name, _INT64, ()))
            numbers.add(name)
        elif kind == "user_input":
            raise BackendError(f"input '{name}' is {where[3:]}; a request brings tensors")
    given, outputs = _outputs(module)
    forward = lowering.finish(graph, given)
    symbols = {d for spec in inputs for d in spec.shape if isinstance(d, str)}
    derived = [entry for entry in derived if _known(entry[2], symbols)]
    ranges = {
        name: (_bound(r["min_val"]), _bound(r["max_val"]))
        for name, r in document["range_constraints"].items()
    }
    return Program(
        functools.partial(run_until, functools.partial(forward, *fixed), lowering.protected(fixed)),
        tuple(inputs),
        tuple(outputs),
        frozenset(numbers),
        Checks(inputs, derived, ranges),
    )


def _input(spec: Mapping[str, Any]) -> tuple[str, str, Any]:
    """Kind, name in the graph, and where it comes from: the weight's name, the constant, or the argument's kind."""
    kind, entry = union(spec)
    if kind == "user_input":
        argument, value = union(entry["arg"])
        name = value.get("name", value.get("as_name", "")) if isinstance(value, Mapping) else ""
        return kind, name, argument
    if kind == "constant_input":
        return kind, entry["name"], entry["value"]
    names = {
        "parameter": "parameter_name",
        "buffer": "buffer_name",
        "tensor_constant": "tensor_constant_name",
    }
    if kind not in names:
        raise BackendError(f"the program takes a {kind}, which only code of its own could make")
    return kind, entry["arg"]["name"], entry[names[kind]]


def _outputs(module: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[TensorSpec]]:
    """What the program gives to its caller, without the state that it would write back, and how that is named."""
    graph, specs = module["graph"], module["signature"]["output_specs"]
    given = [union(entry["arg"]) for kind, entry in map(union, specs) if kind == "user_output"]
    names = _names(module, len(given))
    arguments, outputs = [], []
    for name, (kind, value) in zip(names, given, strict=True):
        if kind == "as_none":
            continue
        if kind == "as_tensor":
            outputs.append(_spec(name, graph["tensor_values"][value["name"]], "output")[0])
        elif kind in ("as_sym_int", "as_int"):
            outputs.append(TensorSpec(name, _INT64, ()))
        else:
            raise BackendError(f"output '{name}' is {kind[3:]}, which no V2 datatype holds")
        arguments.append({kind: value})
    return arguments, outputs


def _names(module: Mapping[str, Any], count: int) -> list[str]:
    """The outputs' names: keys and fields where the program returned such; ``output``, or ``output_0`` and so on."""
    entry = next(e for e in module["module_call_graph"] if e["fqn"] == "")
    tree = json.loads(entry["signature"]["out_spec"])[1]
    fields = module.get("treespec_namedtuple_fields") or {}
    names = ["_".join(map(str, path)) for path in _leaves(tree, fields)]
    names = [f"output_{name}" if name[:1].isdecimal() else name or "output" for name in names]
    if len(names) != count or len(set(names)) != count:
        return [f"output_{i}" for i in range(count)]
    return names


def _leaves(tree: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The paths to the leaves of a pytree's specification."""
    if tree["type"] is None:
        yield ()
        return
    children = tree["children_spec"]
    named = fields.get(tree["context"])  # a named tuple: the name of its type
    keys = named["field_names"] if named else _json(tree["context"])
    if not isinstance(keys, list) or len(keys) != len(children):
        keys = range(len(children))
    for key, child in zip(keys, children, strict=True):
        for path in _leaves(child, fields):
            yield (key, *path)


def _bound(value: Any) -> int | None:
    return None if value is None else int(value)


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):  # types that others have registered may put anything there
        return None


def _spec(
    name: str, meta: Mapping[str, Any], kind: str = "input"
) -> tuple[TensorSpec, list[tuple[int, Any]]]:
    """A tensor's specification, and the sizes among its dimensions that are expressions of several symbols."""
    dtype = TORCH_DTYPES.get(SCALAR_TYPES[meta["dtype"]])
    if dtype is None or meta["layout"] != _STRIDED:
        raise BackendError(f"{kind} '{name}' is sparse or of a type that no V2 datatype holds")
    shape: list[int | str | None] = []
    derived = []
    for axis, (how, value) in enumerate(map(union, meta["sizes"])):
        if how == "as_int":
            shape.append(int(value))
            continue
        shape.append(symbol(value["expr_str"]))
        found = size(value["expr_str"])
        if shape[-1] is None and found is not None:
            derived.append((axis, found))
    return TensorSpec(name, dtype, tuple(shape)), derived


def _known(derived: Any, symbols: set[str]) -> bool:
    try:
        derived(dict.fromkeys(symbols, 2))
    except (KeyError, ZeroDivisionError, TypeError):
        return False
    return True


class _Weights:
    """Parameters, buffers and constants, as views of the archive's memory, or copied to the device."""

    def __init__(self, archive: Archive, model: str, device: torch.device) -> None:
        self._archive = archive
        self._device = device
        self._records: dict[str, torch.Tensor] = {}  # tied weights share one
        self._weights = self._config(f"data/weights/{model}_weights_config.json")
        self._constants = self._config(f"data/constants/{model}_constants_config.json")

    def _config(self, name: str) -> Mapping[str, Any]:
        config: Mapping[str, Any] = json.loads(self._archive.read(name))["config"]
        return config

    def get(self, kind: str, name: str) -> torch.Tensor:
        """The weight ``name``; buffers that are not persistent lie among the constants."""
        folder, entry = "data/weights/", self._weights.get(name) if kind != "tensor_constant" else None
        if entry is None:
            folder, entry = "data/constants/", self._constants[name]
        meta = entry["tensor_meta"]
        if entry["use_pickle"] or meta is None:
            raise BackendError(f"'{name}' is a pickled object; only plain tensors are read")
        if meta["layout"] != _STRIDED:
            raise BackendError(f"'{name}' is no dense tensor")
        dtype = SCALAR_TYPES[meta["dtype"]]
        shape, strides = ([int(union(d)[1]) for d in meta[key]] for key in ("sizes", "strides"))
        record = self._record(folder + entry["path_name"])
        if record is None and 0 in shape:  # what memory happens to hold is no weight
            return torch.empty(shape, dtype=dtype, device=self._device)
        if record is None:
            raise BackendError(f"'{name}' has no bytes in the archive")
        # PyTorch refuses what would reach beyond the record.
        return record.view(dtype).as_strided(shape, strides, int(union(meta["storage_offset"])[1]))

    def _record(self, name: str) -> torch.Tensor | None:
        if name not in self._records:
            memory = self._archive.view(name)
            if not memory:
                return None
            record = torch.frombuffer(memory, dtype=torch.uint8)
            if record.data_ptr() % 16:  # the largest element there is
                record = record.clone()
            self._records[name] = record.to(self._device)
        return self._records[name]

    def constant(self, value: Mapping[str, Any]) -> Any:
        """A Python value that the program was exported with."""
        kind, found = union(value)
        return None if kind == "as_none" else found
