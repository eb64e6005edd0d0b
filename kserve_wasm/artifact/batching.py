"""``batching:`` of ``model.yaml`` and manifests, in this project's words or those of Triton, Ray Serve and MLServer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kserve_wasm.artifact.config import Batching, Padding
from kserve_wasm.artifact.schema import Node, Readers

MAX_BATCH_SIZE = 65_536
_MAX_QUEUE_SIZE = 2**31
_MAX_CONCURRENT_BATCHES = 1024
_MAX_PRIORITY_LEVELS = 1024
_MAX_DIMENSION = 2**31


@dataclass(frozen=True, slots=True)
class Option:
    """A value for a field of :class:`Batching`, or for ``enabled``, and where it is given."""

    value: Any
    node: Node


@dataclass(frozen=True, slots=True)
class BatchingOptions:
    """What one document says.

    Attributes:
        general: options by the field's name.
        graphs: those of one graph, by its name, and where they are given.
    """

    general: Mapping[str, Option]
    graphs: Mapping[str, tuple[Node, Mapping[str, Option]]]


NOTHING = BatchingOptions({}, {})


def read_batching(node: Node) -> BatchingOptions:
    """Reads the value of ``batching:``.

    Raises:
        ModelLoadError, ArtifactError: a key is unknown, or one that another server has and this one does not heed; a
            value is wrong; or something is given under two names.
    """
    values = node.read({**_OPTIONS, "graphs": _graphs})
    graphs = values.pop("graphs", {})
    return BatchingOptions(_by_field(node, values), graphs)


def resolve_batching(
    hints: BatchingOptions, overrides: BatchingOptions, graphs: Collection[str]
) -> dict[str, Batching]:
    """How the computations on each graph are merged, and under "" those on graphs of other names.

    Who names preferred sizes or a delay gets them: then batches are not adapted to past runs, unless that is said too.

    Each option is that of ``overrides`` for the graph or else in general, or that of ``hints``, likewise. Preferred
    sizes and a default level that no longer fit what has been put over them are left out.

    Args:
        hints: the manifest's.
        overrides: those of ``model.yaml``; with a ``max_batch_size`` they declare that entries are independent.
        graphs: the names of the model's graphs.

    Raises:
        ModelLoadError, ArtifactError: there is no graph of a name, or values do not fit together.
    """
    for said in (hints, overrides):
        for name, (node, _) in said.graphs.items():
            if name not in graphs:
                known = ", ".join(f"'{graph}'" for graph in graphs) or "none"
                node.fail(f"the model has no graph of this name, only: {known}")
    resolved = {}
    for name in ("", *graphs):
        values: dict[str, Any] = {"enabled": True, **asdict(Batching()), "adaptive": None}
        for said in (hints, overrides):
            own = said.graphs[name][1] if name in said.graphs else {}
            for layer in (said.general, own):
                _apply(layer, values)
                if said is overrides and "max_batch_size" in layer:
                    values["declared"] = values["max_batch_size"] > 1
        if not values.pop("enabled"):
            values.update(max_batch_size=1, preferred_batch_size=(), declared=False)
        if values["adaptive"] is None:
            values["adaptive"] = not (values["preferred_batch_size"] or values["max_queue_delay"])
        if not values["default_priority_level"]:
            values["default_priority_level"] = (values["priority_levels"] + 1) // 2
        resolved[name] = Batching(**values)
    return resolved


def _apply(layer: Mapping[str, Option], values: dict[str, Any]) -> None:
    """Puts a layer's options over ``values``."""
    values.update({field: option.value for field, option in layer.items()})
    largest, sizes = values["max_batch_size"], values["preferred_batch_size"]
    if sizes and sizes[-1] > largest:
        if "preferred_batch_size" in layer:
            layer["preferred_batch_size"].node.fail(
                f"expected sizes up to max_batch_size, which is {largest}, got {sizes[-1]}"
            )
        values["preferred_batch_size"] = tuple(size for size in sizes if size <= largest)
    levels, default = values["priority_levels"], values["default_priority_level"]
    if default > levels:
        if "default_priority_level" in layer:
            layer["default_priority_level"].node.fail(
                f"expected a level up to priority_levels, which is {levels}, got {default}"
            )
        values["default_priority_level"] = 0


def _graphs(node: Node) -> dict[str, tuple[Node, dict[str, Option]]]:
    return {name: (graph, _by_field(graph, graph.read(_OPTIONS))) for name, graph in node.entries().items()}


def _by_field(node: Node, values: Mapping[str, Any]) -> dict[str, Option]:
    """Options by the names of this project. Fails where one is given under two names."""
    found: dict[str, Option] = {}
    for key, value in values.items():
        child = node.child(key)
        if key in _GROUPS:
            options: Mapping[str, Option] = value
        elif key in _NOT_HEEDED:
            continue
        else:
            options = {_ALIASES.get(key, key): Option(value, child)}
        for field, option in options.items():
            if field in found:
                option.node.fail(f"this is {field}, which is given already; keep one of the two")
            found[field] = option
    return found


def _batch_sizes(node: Node) -> tuple[int, ...]:
    return _ascending(node, MAX_BATCH_SIZE)


def _ascending(node: Node, maximum: int) -> tuple[int, ...]:
    sizes = tuple(item.integer(1, maximum) for item in node.items())
    if list(sizes) != sorted(set(sizes)):
        node.fail(f"expected ascending sizes, got {list(sizes)}")
    return sizes


def _padding(node: Node) -> dict[str, Padding]:
    found = {}
    for name, entry in node.entries().items():
        values = entry.read({"sizes": _sizes, "values": _values})
        if "sizes" not in values:
            entry.fail("the key 'sizes' is missing, such as sizes: [32, 64, 128]")
        found[name] = Padding(**values)
    return found


def _sizes(node: Node) -> tuple[int, ...]:
    return _ascending(node, _MAX_DIMENSION) or node.fail("expected at least one size")


def _values(node: Node) -> dict[str, float]:
    return {name: value.number() for name, value in node.entries().items()}


def _duration(node: Node) -> float:
    return node.seconds(zero=True)


def _microseconds(node: Node) -> float:
    return node.integer(0, 10**15) / 1e6


def _group(options: Readers) -> Callable[[Node], dict[str, Option]]:
    return lambda node: _by_field(node, node.read(options))


def _not_heeded(what_happens: str, but: object = None) -> Callable[[Node], None]:
    """Refuses an option of other servers, unless it says ``but``: what happens here anyway."""

    def read(node: Node) -> None:
        if but is None or type(node.value) is not type(but) or node.value != but:
            node.fail(f"this option of other servers is not heeded here: {what_happens}; remove it")

    return read


_ALIASES = {
    "max_queue_delay_microseconds": "max_queue_delay",  # Triton
    "batch_wait_timeout_s": "max_queue_delay",  # Ray Serve
    "max_batch_time": "max_queue_delay",  # MLServer, in seconds
    "default_timeout_microseconds": "queue_timeout",  # Triton
}
_NOT_HEEDED = {
    "preserve_ordering": _not_heeded("each answer is given as soon as it is there", but=False),
    "timeout_action": _not_heeded("what waited too long is refused", but="REJECT"),
    "allow_timeout_override": _not_heeded("a request's own timeout counts where it is shorter", but=True),
    "priority_queue_policy": _not_heeded("one queue policy holds for all priorities"),
}
_POLICY: Readers = {
    "max_queue_size": lambda node: node.integer(0, _MAX_QUEUE_SIZE),
    "default_timeout_microseconds": _microseconds,
    "timeout_action": _NOT_HEEDED["timeout_action"],
    "allow_timeout_override": _NOT_HEEDED["allow_timeout_override"],
}
_DYNAMIC: Readers = {
    "preferred_batch_size": _batch_sizes,
    "max_queue_delay_microseconds": _microseconds,
    "preserve_ordering": _NOT_HEEDED["preserve_ordering"],
    "priority_levels": lambda node: node.integer(0, _MAX_PRIORITY_LEVELS),
    "default_priority_level": lambda node: node.integer(0, _MAX_PRIORITY_LEVELS),
    "default_queue_policy": _group(_POLICY),
    "priority_queue_policy": _NOT_HEEDED["priority_queue_policy"],
}
_OPTIONS: Readers = {
    "enabled": Node.boolean,
    "max_batch_size": lambda node: node.integer(0, MAX_BATCH_SIZE) or 1,
    "max_queue_delay": _duration,
    "max_queue_size": _POLICY["max_queue_size"],
    "queue_timeout": _duration,
    "max_concurrent_batches": lambda node: node.integer(0, _MAX_CONCURRENT_BATCHES),
    "padding": _padding,
    "adaptive": Node.boolean,
    **_DYNAMIC,
    "dynamic_batching": _group(_DYNAMIC),
    "batch_wait_timeout_s": _duration,
    "max_batch_time": _duration,
}
_GROUPS = ("dynamic_batching", "default_queue_policy")
