"""What goes between schedulers and executors. All of it is pickled; none of it holds anything of an engine."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kserve_wasm.artifact.config import Batching
from kserve_wasm.backends import Device, GraphSource
from kserve_wasm.batching.base import Outcome
from kserve_wasm.tensors import TensorSpec

Bytes: TypeAlias = npt.NDArray[np.uint8]
"""A file's content: an array, because Ray keeps arrays in shared memory and gives them out without a copy."""


@dataclass(frozen=True, slots=True)
class GraphOffer:
    """A graph that a scheduler has computations for, without its bytes.

    Attributes:
        key: names it, for all that its answers depend on: its bytes, its weights, how it is opened and merged.
        source: where its files are on the scheduler's machine; an executor that finds the same there opens those.
        device: what it is to run on.
        batching: how its computations are merged.
        graph_digest: SHA-256 of the graph.
        weights_digest: SHA-256 of the file that holds its weights, or None when it has none.
    """

    key: str
    source: GraphSource
    device: Device
    batching: Batching
    graph_digest: str
    weights_digest: str | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """An offer, and perhaps what it offers.

    Attributes:
        offer: the offer.
        content: Ray's reference to a pair of :data:`Bytes`, the graph and its weights (None without such). Inside of
            this class Ray leaves it a reference: only who opens the graph fetches it.
    """

    offer: GraphOffer
    content: Any = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The executor has not that graph: the call is to be made again, with a :class:`Delivery`.

    Attributes:
        content: the offer alone did not do, its files are not on the executor's machine.
    """

    content: bool = False


@dataclass(frozen=True, slots=True)
class Description:
    """What an opened graph is."""

    device: Device
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class RunReport:
    """What one run came to, for whoever counts it.

    Attributes:
        rows: entries along the first dimension.
        queued_ns: how long each computation in it waited.
        input_ns: nanoseconds to put the inputs together,
        infer_ns: to run the graph,
        output_ns: and to take the outputs apart.
    """

    rows: int
    queued_ns: tuple[int, ...]
    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass(frozen=True, slots=True)
class Answer:
    """How a computation ended.

    Attributes:
        outcome: its outputs or its error. An error is a value here: one that an actor raises is wrapped by Ray, with a
            traceback that names the executor's files.
        queued_ns: nanoseconds that it waited for its run.
        report: of its run, in the answer to one of those that shared it.
    """

    outcome: Outcome
    queued_ns: int = 0
    report: RunReport | None = None


def make_offer(source: GraphSource, device: Device, batching: Batching) -> GraphOffer:
    """Names a graph by its content; reads its files once.

    Raises:
        OSError: a file cannot be read.
    """
    graph, weights = read_content(source)
    graph_digest = _digest(graph)
    weights_digest = None if weights is None else _digest(weights)
    settings: Mapping[str, Any] = {
        "name": source.name,
        "encoding": source.encoding,
        "options": dict(source.options),
        "device": device,
        "batching": asdict(batching),
    }
    identity = json.dumps([graph_digest, weights_digest, settings], sort_keys=True, default=str)
    return GraphOffer(
        hashlib.sha256(identity.encode()).hexdigest(),
        replace(source, data=None),
        device,
        batching,
        graph_digest,
        weights_digest,
    )


def read_content(source: GraphSource) -> tuple[Bytes, Bytes | None]:
    """The graph and the file of its weights; files are mapped.

    Raises:
        OSError: a file cannot be read.
    """
    if source.data is not None:
        graph = np.frombuffer(source.data, np.uint8)
    else:
        assert source.path is not None
        end = None if source.length is None else source.offset + source.length
        graph = _map(source.path)[source.offset : end]
    return graph, None if source.weights is None else _map(source.weights)


def local_source(offer: GraphOffer) -> GraphSource | None:
    """The offer's source, if the very same files lie at the same paths here."""
    source = offer.source
    if source.path is None:
        return None
    try:
        graph, weights = read_content(source)
    except OSError:
        return None
    if _digest(graph) != offer.graph_digest:
        return None
    if weights is not None and _digest(weights) != offer.weights_digest:
        return None
    return source


def delivered_source(offer: GraphOffer, content: tuple[Bytes, Bytes | None], directory: Path) -> GraphSource:
    """The offer's source with its content: the graph in memory, the weights in a new file in ``directory``."""
    graph, weights = content
    file = None
    if weights is not None:
        file = directory / "weights"
        weights.tofile(file)
    return replace(offer.source, path=None, offset=0, length=None, data=graph.tobytes(), weights=file)


def _map(path: Path) -> Bytes:
    with path.open("rb") as file:
        if not path.stat().st_size:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _digest(content: Bytes) -> str:
    return hashlib.sha256(content.data).hexdigest()
