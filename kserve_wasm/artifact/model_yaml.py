"""``model.yaml``: what an operator says of a model, over what its file says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from kserve_wasm.artifact.batching import NOTHING, BatchingOptions, read_batching
from kserve_wasm.artifact.config import MAX_TABLE_ELEMENTS, NN_LOAD_BYTES, Instances, Limits
from kserve_wasm.artifact.manifest import place
from kserve_wasm.artifact.schema import NAME, VERSION, Node, Readers, Where
from kserve_wasm.backends.base import Device
from kserve_wasm.errors import ModelLoadError
from kserve_wasm.tensors import TensorSpec

FILE_NAME = "model.yaml"
MAX_BYTES = 1 << 20
_WASM32 = 2**32
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_LONGEST_NUMBER = 140  # characters: 64 binary digits with underscores between them are 129 and a prefix


@dataclass(frozen=True, slots=True)
class GraphOverride:
    """An entry of ``graphs:``; with ``path``, a graph in a file of its own, and perhaps its weights in another."""

    name: str
    path: str | None = None
    weights: str | None = None
    encoding: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Overrides:
    """What ``model.yaml`` says; None and empty where it is silent.

    Attributes:
        document: the file as plain data.
        lines: the line, from 1, of every key and list item.
    """

    document: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[Where, int] = field(default_factory=dict)
    module: str | None = None
    name: str | None = None
    version: str | None = None
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    graphs: tuple[GraphOverride, ...] = ()
    device: Device | None = None
    limits: Limits = field(default_factory=Limits)
    instances: Instances = field(default_factory=Instances)
    parameters: Mapping[str, str] = field(default_factory=dict)
    batching: BatchingOptions = NOTHING

    def fail(self, where: Where, message: str) -> NoReturn:
        """Raises ModelLoadError that names the line and key."""
        while where not in self.lines and where:
            where = where[:-1]
        line = f", line {self.lines[where]}" if where in self.lines else ""
        raise ModelLoadError(f"{FILE_NAME}{line}{place(where)}: {message}")


def read_model_yaml(path: Path) -> Overrides:
    """Reads the ``model.yaml`` at ``path``.

    Raises:
        ModelLoadError: it is not YAML, or a key is unknown or a value is wrong. The message has a
            line for each mistake, which names its line in the file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelLoadError(f"cannot read {FILE_NAME}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ModelLoadError(f"{FILE_NAME} is larger than {MAX_BYTES} bytes")
    return parse_model_yaml(data)


def parse_model_yaml(data: bytes) -> Overrides:
    """Reads the contents of a ``model.yaml``; raises as :func:`read_model_yaml` does."""
    lines: dict[Where, int] = {}
    try:
        loader = yaml.SafeLoader(data)
        try:
            node = loader.get_single_node()
            if node is None:
                return Overrides()
            _index(node, (), lines, set())
            # yaml.safe_load is these two steps; the lines are known only between them.
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ModelLoadError(f"{FILE_NAME}{line}: expected YAML: {problem}") from None
    return _parse(Node(value, Overrides(lines=lines).fail), lines)


def _index(node: yaml.Node, where: Where, lines: dict[Where, int], seen: set[int]) -> None:
    """Notes the line of every key. Refuses doubled keys (the last would win) and aliases (they blow up)."""
    line = node.start_mark.line + 1
    lines.setdefault(where, line)
    if id(node) in seen:
        raise ModelLoadError(
            f"{FILE_NAME}{place(where)}: anchors and aliases are not read here; write the value out"
        )
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _index(item, (*where, i), lines, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            if isinstance(key, yaml.ScalarNode):
                _check_scalar(key)
            inner = (*where, str(key.value))
            if inner in lines:
                raise ModelLoadError(
                    f"{FILE_NAME}, line {key.start_mark.line + 1}{place(inner)}: the key is there twice"
                )
            lines[inner] = key.start_mark.line + 1
            _index(item, inner, lines, seen)


def _check_scalar(node: yaml.ScalarNode) -> None:
    """Refuses what Python takes and nothing after it: text that has no UTF-8, and numbers of any length."""
    line = f"{FILE_NAME}, line {node.start_mark.line + 1}"
    if not node.value.isascii() and any("\ud800" <= c <= "\udfff" for c in node.value):
        raise ModelLoadError(
            f"{line}: expected Unicode text, got half of a surrogate pair ('\\ud800' or the like)"
        )
    if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
        raise ModelLoadError(f"{line}: expected a number of 64 bits, got one of {len(node.value)} characters")


def _version(node: Node) -> str:
    """``version: 3`` is an integer to YAML; 1.10 would be 1.1 and has to be quoted."""
    if type(node.value) is int:
        return str(node.integer(0))
    if isinstance(node.value, float):
        node.fail("expected text; put the version in quotes")
    return node.text(VERSION)


def _graphs(node: Node) -> tuple[GraphOverride, ...]:
    graphs: dict[str, GraphOverride] = {}
    for item in node.items():
        fields = item.mapping(("name", "path", "weights", "encoding", "options"), required=("name",))
        name = fields["name"].text()
        if name in graphs:
            fields["name"].fail(f"the graph '{name}' is listed twice")
        graphs[name] = GraphOverride(
            name=name,
            path=fields["path"].text() if "path" in fields else None,
            weights=fields["weights"].text() if "weights" in fields else None,
            encoding=fields["encoding"].text(NAME) if "encoding" in fields else None,
            options=fields["options"].free() if "options" in fields else {},
        )
    return tuple(graphs.values())


def _nn(node: Node) -> int:
    """Bytes that WASI-NN ``load`` takes."""
    fields = node.read(_NN)
    return int(fields.get("max_load_bytes", NN_LOAD_BYTES)) if fields.get("allow_load") else 0


def _parameters(node: Node) -> dict[str, str]:
    """Parameters as guests read them, as text: numbers in decimal, booleans as in ``kserve_wasm.h``."""
    found = {}
    for key in node.free():
        value = node.child(key)
        if isinstance(value.value, bool):
            found[key] = "true" if value.value else "false"
        elif isinstance(value.value, (int, float)):
            found[key] = str(value.value)
        elif isinstance(value.value, str):
            found[key] = value.value
        else:
            value.fail("expected text, a number, true or false")
    return found


_LIMITS: Readers = {
    "memory": lambda node: node.size(_WASM32),
    "table_elements": lambda node: node.integer(0, MAX_TABLE_ELEMENTS),
    "handles": lambda node: node.integer(0, _WASM32 - 1),
    "tensor_bytes": Node.size,
    "log_bytes": Node.size,
    "timeout": Node.seconds,
}
_INSTANCES: Readers = {
    "reuse": Node.boolean,
    "inline": Node.boolean,
    "workers": lambda node: node.integer(0, 1024),
    "queue": lambda node: node.integer(0, 2**31),
}
_NN: Readers = {"allow_load": Node.boolean, "max_load_bytes": Node.size}
_MODEL: Readers = {
    "module": Node.text,
    "name": lambda node: node.text(NAME),
    "version": _version,
    "inputs": Node.tensor_specs,
    "outputs": Node.tensor_specs,
    "graphs": _graphs,
    "device": lambda node: node.choice(("cpu", "gpu")),
    "limits": lambda node: node.read(_LIMITS),
    "instances": lambda node: Instances(**node.read(_INSTANCES)),
    "parameters": _parameters,
    "batching": read_batching,
    "nn": _nn,
    "version_policy": lambda node: node.value,  # the server's to read: which versions it serves
}


def _parse(node: Node, lines: Mapping[Where, int]) -> Overrides:
    values = node.read(_MODEL)
    values.pop("version_policy", None)
    limits = Limits(load_bytes=values.pop("nn", 0), **values.pop("limits", {}))
    return Overrides(document=node.value, lines=lines, limits=limits, **values)
