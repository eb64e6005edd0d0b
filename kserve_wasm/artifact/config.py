"""What is known of a model before it is opened: manifest and ``model.yaml``, merged. Every default is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kserve_wasm.backends.base import Device, GraphSource
from kserve_wasm.tensors import TensorSpec

MIB = 1 << 20

NN_LOAD_BYTES = 64 * MIB
"""What WASI-NN ``load`` takes where ``model.yaml`` allows it without a size (``nn: {allow_load: true}``)."""


MAX_TABLE_ELEMENTS = 100_000
"""What an instance's table may hold at most: the room that the engine keeps for every instance."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one instance of a guest may take.

    Attributes:
        memory: bytes of linear memory.
        table_elements: elements of its table, of which it may have one; at most :data:`MAX_TABLE_ELEMENTS`.
        handles: tensors, graphs and execution contexts alive at once.
        tensor_bytes: bytes of host memory in tensors the guest made or received from graphs.
        load_bytes: bytes given to WASI-NN ``load``; 0 refuses every such call.
        log_bytes: bytes a request may write to the log.
        timeout: seconds from a request's arrival to its answer.
    """

    memory: int = 256 * MIB
    table_elements: int = 10_000
    handles: int = 1024
    tensor_bytes: int = 1024 * MIB
    load_bytes: int = 0
    log_bytes: int = 64 * 1024
    timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Instances:
    """How instances of a guest are made and how many run.

    Attributes:
        reuse: keep an instance for further requests. Off by default: what one request leaves in the guest's
            memory would then meet the next.
        workers: threads that run guests of this model; 0 takes the number of CPUs, or what two full batches need.
        queue: requests that may wait for a worker; more are answered with 429.
        inline: run requests that proved quick on the server's event loop. Switch it off for a model whose work
            depends on the values that it gets (a loop's count, a size): one such request would hold the loop.
    """

    reuse: bool = False
    workers: int = 0
    queue: int = 256
    inline: bool = True


@dataclass(frozen=True, slots=True)
class Padding:
    """How a named dimension of a graph's inputs is brought to one size for all requests of a batch.

    Attributes:
        sizes: requests are merged when their sizes along the dimension lie between the same two of these; those beyond
            the last are merged only with their like. Ascending.
        values: what is put behind the shorter ones, by the input's name; 0 where it says nothing.
    """

    sizes: tuple[int, ...]
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batching:
    """How computations on a graph that come together are merged into one run.

    Attributes:
        max_batch_size: entries along the first dimension in one run; 1 merges nothing. What has more is run alone.
        preferred_batch_size: sizes that are made where enough requests wait. Ascending.
        max_queue_delay: seconds that requests may wait for others to join them, once they have to wait at all. One that
            finds the graph idle runs at once in any case.
        max_queue_size: computations that may wait; more are refused. 0: any number.
        queue_timeout: seconds that a computation may wait before it is given up. 0: up to its deadline.
        max_concurrent_batches: runs at a time; 0 chooses by the device.
        priority_levels: how many there are, 1 being the most urgent; 0: priorities are ignored.
        default_priority_level: of requests that name none; 0 takes the middle one.
        padding: named dimensions that may be brought to one size, by their names in the graph.
        adaptive: merge as many as the times of past runs show to pay, and none where none does; otherwise always as
            many as wait. Beside preferred sizes or a delay, ``model.yaml`` has to say it.
        declared: ``model.yaml`` says that entries along the first dimension are independent of each other, by giving a
            ``max_batch_size`` above 1, for the graph or in general. Otherwise the graph's signature must suggest it,
            and the first merged runs are compared with runs of each alone. A manifest's hints declare nothing.
    """

    max_batch_size: int = 32
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay: float = 0.0
    max_queue_size: int = 0
    queue_timeout: float = 0.0
    max_concurrent_batches: int = 0
    priority_levels: int = 0
    default_priority_level: int = 0
    padding: Mapping[str, Padding] = field(default_factory=dict)
    adaptive: bool = True
    declared: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One version of one model, ready to be opened.

    Attributes:
        name: the model's own name; the server may serve it under another.
        version: the version, "1" when the directory has no numbered versions.
        module: the ``.wasm`` file.
        code_length: the first bytes of ``module`` that are code: all the engine is given.
        digest: ``sha256:…`` of those bytes.
        abi: the guest ABI.
        inputs: the inputs that a client sends; empty where the artefact does not say.
        outputs: the outputs that a client gets; empty where the artefact does not say.
        graphs: the graphs that WASI-NN ``load_by_name`` finds, by name.
        device: where graphs run.
        limits: caps on an instance.
        instances: how instances are made.
        parameters: key and text that every request of this model carries, below the client's own.
        batching: how the graphs' computations are merged, by graph; under "" for those that are not named.
        raw: the manifest and model.yaml merged; of batching, what is in effect for each graph.
    """

    name: str
    version: str
    module: Path
    code_length: int
    digest: str
    abi: Literal["tensor"] = "tensor"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    graphs: tuple[GraphSource, ...] = ()
    device: Device = "cpu"
    limits: Limits = field(default_factory=Limits)
    instances: Instances = field(default_factory=Instances)
    parameters: Mapping[str, str] = field(default_factory=dict)
    batching: Mapping[str, Batching] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)

    def batching_of(self, graph: str) -> Batching:
        """How computations on the graph of this name are merged."""
        return self.batching.get(graph) or self.batching.get("") or Batching()

    @property
    def priorities(self) -> tuple[int, int]:
        """How many levels of priority a request may name, and which it has when it names none; 0 and 0: it may not.

        They are those of the graph that knows the most, or the general ones.
        """
        known = [self.batching_of(name) for name in ("", *(graph.name for graph in self.graphs))]
        return max((batching.priority_levels, batching.default_priority_level) for batching in known)
