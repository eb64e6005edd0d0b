"""What a ``.wasm`` model says of itself: JSON in the custom section ``kserve-wasm.manifest``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from kserve_wasm.artifact.batching import NOTHING, BatchingOptions, read_batching
from kserve_wasm.artifact.schema import NAME, VERSION, Node, Where, dump_specs
from kserve_wasm.errors import ArtifactError
from kserve_wasm.tensors import TensorSpec

ABIS = ("tensor",)
MAX_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes of a file: where they start, and how many."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """A graph that the file carries.

    Attributes:
        name: as WASI-NN ``load_by_name`` asks for it.
        encoding: WASI-NN's name of its format.
        weights: where the payloads of its ``kserve-wasm.weights`` sections must be. The graph refers to its
            weights by absolute offset: a tool that moved them has broken the model, and so it is noticed.
        options: the backend's options.
    """

    name: str
    encoding: str
    weights: tuple[FileRange, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest. Empty fields are left out of the JSON.

    Attributes:
        abi: the guest ABI, one of ``ABIS``.
        name: the model's name, or "".
        version: its version, or "".
        inputs: what a client sends.
        outputs: what a client gets.
        graphs: the graphs, in the order of their sections.
        batching: hints, as in ``model.yaml``.
        producer: what wrote the file, for people.
    """

    abi: str
    name: str = ""
    version: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    graphs: tuple[GraphEntry, ...] = ()
    batching: Mapping[str, Any] = field(default_factory=dict)
    producer: str = ""

    def document(self) -> dict[str, Any]:
        """The manifest as plain data."""
        graphs = [
            {
                "name": g.name,
                "encoding": g.encoding,
                "weights": [{"offset": w.offset, "length": w.length} for w in g.weights],
                "options": dict(g.options),
            }
            for g in self.graphs
        ]
        fields: dict[str, Any] = {
            "abi": self.abi,
            "name": self.name,
            "version": self.version,
            "inputs": dump_specs(self.inputs),
            "outputs": dump_specs(self.outputs),
            "graphs": [_without_empty(g) for g in graphs],
            "batching": dict(self.batching),
            "producer": self.producer,
        }
        return _without_empty(fields)

    def encode(self) -> bytes:
        """The section's payload."""
        return json.dumps(self.document(), ensure_ascii=False, separators=(",", ":")).encode()

    def batching_options(self) -> BatchingOptions:
        """What the hints say; raises ArtifactError where they are wrong."""
        return read_batching(Node(self.batching, _complain, ("batching",))) if self.batching else NOTHING


def parse_manifest(data: bytes) -> Manifest:
    """Reads the section's payload.

    Raises:
        ArtifactError: it is not JSON, or an entry is unknown, missing or of the wrong type.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(
            value, ensure_ascii=False
        ).encode()  # refuses lone surrogates, which JSON's escapes can spell
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"manifest: expected JSON in UTF-8: {error}") from None
    fields = Node(value, _complain).mapping(_KEYS, required=("abi",))
    abi = fields["abi"].text()
    if abi not in ABIS:
        fields["abi"].fail(
            f"expected the guest ABI {' or '.join(ABIS)}, got '{abi[:80]}'; update kserve_wasm"
        )
    manifest = Manifest(
        abi=abi,
        name=fields["name"].text(NAME) if "name" in fields else "",
        version=fields["version"].text(VERSION) if "version" in fields else "",
        inputs=fields["inputs"].tensor_specs() if "inputs" in fields else (),
        outputs=fields["outputs"].tensor_specs() if "outputs" in fields else (),
        graphs=_graphs(fields["graphs"]) if "graphs" in fields else (),
        batching=fields["batching"].free() if "batching" in fields else {},
        producer=fields["producer"].text() if "producer" in fields else "",
    )
    manifest.batching_options()
    return manifest


_KEYS = ("abi", "name", "version", "inputs", "outputs", "graphs", "batching", "producer")


def _graphs(node: Node) -> tuple[GraphEntry, ...]:
    entries: dict[str, GraphEntry] = {}
    for item in node.items():
        fields = item.mapping(("name", "encoding", "weights", "options"), required=("name", "encoding"))
        name = fields["name"].text()
        if name in entries:
            fields["name"].fail(f"the graph '{name}' is listed twice")
        weights = fields["weights"].items() if "weights" in fields else []
        entries[name] = GraphEntry(
            name=name,
            encoding=fields["encoding"].text(NAME),
            weights=tuple(_range(w) for w in weights),
            options=fields["options"].free() if "options" in fields else {},
        )
    return tuple(entries.values())


def _range(node: Node) -> FileRange:
    fields = node.mapping(("offset", "length"), required=("offset", "length"))
    return FileRange(fields["offset"].integer(0), fields["length"].integer(0))


def _complain(where: Where, message: str) -> NoReturn:
    raise ArtifactError(f"manifest{place(where)}: {message}")


def place(where: Where) -> str:
    """Keys and indices as in ``, inputs[0].shape``; nothing for the document itself."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in where)
    return f", {path[1:]}" if path else ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _without_empty(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value or isinstance(value, int)}
