"""The Prometheus metrics, each defined once.

Names begin with ``kserve_wasm_``; KServe's own ``request_predict_seconds`` stays the SDK's and is fed through
:class:`ModelMetrics`. Looking a labelled child up costs about a microsecond, so each model version
holds its children in a :class:`ModelMetrics`.
"""

from __future__ import annotations

import os
import threading
from collections import Counter as Multiset
from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar, Literal

from prometheus_client import Counter, Gauge, Histogram

from kserve_wasm.statistics import Statistics

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COMPUTE = (0.00001, 0.00005, 0.0001, 0.00025, *_SECONDS)
_LOAD = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MODEL = ("model", "version")
_GRAPH = (*_MODEL, "graph")

REQUESTS = Counter("kserve_wasm_requests", "Requests answered", (*_MODEL, "protocol", "code"))
REQUEST_SECONDS = Histogram(
    "kserve_wasm_request_seconds",
    "From a request's arrival to its answer",
    (*_MODEL, "protocol"),
    buckets=_SECONDS,
)
RECEIVED_BYTES = Counter("kserve_wasm_received_bytes", "Bytes of request bodies", (*_MODEL, "protocol"))
SENT_BYTES = Counter("kserve_wasm_sent_bytes", "Bytes of answer bodies", (*_MODEL, "protocol"))
QUEUE_SECONDS = Histogram(
    "kserve_wasm_queue_seconds", "Time a request waited for a worker", _MODEL, buckets=_COMPUTE
)
COMPUTE_SECONDS = Histogram(
    "kserve_wasm_compute_seconds", "Time of one run of a graph", _GRAPH, buckets=_COMPUTE
)
BATCH_SIZE = Histogram(
    "kserve_wasm_batch_size", "Entries along the first dimension in one run", _GRAPH, buckets=_BATCH_SIZES
)
BATCH_QUEUE_SECONDS = Histogram(
    "kserve_wasm_batch_queue_seconds",
    "Time a computation that could not run at once waited for the run that it was part of",
    _GRAPH,
    buckets=_COMPUTE,
)
BATCH_QUEUE_DEPTH = Gauge(
    "kserve_wasm_batch_queue_depth",
    "Computations that wait for a run of a graph",
    _GRAPH,
    multiprocess_mode="livesum",
)
BATCH_RETRIES = Counter(
    "kserve_wasm_batch_retries", "Computations run again alone, because the run they shared failed", _GRAPH
)
RAY_RETRIES = Counter(
    "kserve_wasm_ray_retries", "Computations sent to another Ray executor, because theirs was lost", _GRAPH
)
BATCH_REJECTED = Counter("kserve_wasm_batch_rejected", "Computations that were not run", (*_GRAPH, "reason"))
DEVICE_COPY_BYTES = Counter(
    "kserve_wasm_device_copy_bytes",
    "Bytes of tensors copied to a device, to the host, or from one place of the device to another",
    ("device", "direction"),
)
GRAPH_DEVICE = Gauge(
    "kserve_wasm_graph_device",
    "1 for the device that runs a graph",
    (*_GRAPH, "device"),
    multiprocess_mode="livemax",
)
GUEST_COPY_BYTES = Counter(
    "kserve_wasm_guest_copy_bytes",
    "Bytes of tensors copied into guest memory (to_guest) and out of it (from_guest)",
    (*_MODEL, "direction"),
)
INSTANCES = Counter("kserve_wasm_instances_started", "Guest instances started", _MODEL)
TRAPS = Counter(
    "kserve_wasm_instances_trapped", "Guest instances that ended with a trap", (*_MODEL, "reason")
)
LOAD_SECONDS = Histogram(
    "kserve_wasm_model_load_seconds", "Time to load a model, compilation included", _MODEL, buckets=_LOAD
)
COMPILE_SECONDS = Histogram(
    "kserve_wasm_compile_seconds",
    "Time to compile a module that the cache did not hold",
    _MODEL,
    buckets=_LOAD,
)
IN_FLIGHT = Gauge(
    "kserve_wasm_requests_in_flight",
    "Requests accepted and not yet answered",
    _MODEL,
    multiprocess_mode="livesum",
)
QUEUE_DEPTH = Gauge(
    "kserve_wasm_queue_depth", "Requests that wait for a worker", _MODEL, multiprocess_mode="livesum"
)

_IN_FILES = "PROMETHEUS_MULTIPROC_DIR" in os.environ
"""Whether prometheus_client keeps values in files that several workers share: it asks no functions then, and removes no
series."""

_ALL = (
    REQUESTS,
    REQUEST_SECONDS,
    RECEIVED_BYTES,
    SENT_BYTES,
    QUEUE_SECONDS,
    COMPUTE_SECONDS,
    BATCH_SIZE,
    BATCH_QUEUE_SECONDS,
    BATCH_QUEUE_DEPTH,
    BATCH_RETRIES,
    BATCH_REJECTED,
    RAY_RETRIES,
    GRAPH_DEVICE,
    GUEST_COPY_BYTES,
    INSTANCES,
    TRAPS,
    LOAD_SECONDS,
    COMPILE_SECONDS,
    IN_FLIGHT,
    QUEUE_DEPTH,
)


class ProtocolMetrics:
    """What one model version counts for one protocol: ``v1``, ``v2-rest`` or ``v2-grpc``."""

    __slots__ = ("_codes", "_labels", "_predict", "_received", "_seconds", "_sent")

    def __init__(
        self, model: str, version: str, protocol: str, predict: Callable[[float], None] | None
    ) -> None:
        self._labels = (model, version, protocol)
        self._codes: dict[str, Counter] = {}
        self._seconds = REQUEST_SECONDS.labels(*self._labels)
        self._received = RECEIVED_BYTES.labels(*self._labels)
        self._sent = SENT_BYTES.labels(*self._labels)
        self._predict = predict

    def finished(self, code: str, seconds: float, received: int, sent: int) -> None:
        """Count an answered request.

        Args:
            code: the HTTP status ("200") or the name of the gRPC status ("OK").
            seconds: from its arrival to its answer.
            received: bytes of the request's body.
            sent: bytes of the answer's body.
        """
        requests = self._codes.get(code)
        if requests is None:
            requests = self._codes[code] = REQUESTS.labels(*self._labels, code)
        requests.inc()
        self._seconds.observe(seconds)
        self._received.inc(received)
        self._sent.inc(sent)
        if self._predict is not None:
            self._predict(seconds)


Rejection = Literal["queue_full", "timeout", "cancelled"]


class GraphMetrics:
    """What one model version counts of one of its graphs; thread-safe.

    Attributes:
        model: name and version, for the log.
        watch: names a function that a scrape asks for computations that wait; what it returns ends that.
    """

    __slots__ = ("_batch_size", "_labels", "_queued", "_retries", "_seconds", "_statistics", "model", "watch")

    def __init__(
        self,
        labels: tuple[str, str, str],
        statistics: Statistics | None,
        watch: Callable[[Callable[[], float]], Callable[[], None]],
    ) -> None:
        self._labels = labels
        self.model = f"model '{labels[0]}' version {labels[1]}"
        self._statistics = statistics
        self._batch_size = BATCH_SIZE.labels(*labels).observe
        self._queued = BATCH_QUEUE_SECONDS.labels(*labels).observe
        self._retries = BATCH_RETRIES.labels(*labels)
        self._seconds = COMPUTE_SECONDS.labels(*labels).observe
        self.watch = watch

    def executed(
        self, batch_size: int, queued_ns: Iterable[int], input_ns: int, infer_ns: int, output_ns: int
    ) -> None:
        """Count a run that succeeded.

        Args:
            batch_size: entries along the first dimension; 1 where the graph has no such thing.
            queued_ns: how long each computation in it that had to wait did so, in nanoseconds.
            input_ns: nanoseconds to put the inputs together.
            infer_ns: nanoseconds of the run.
            output_ns: nanoseconds to take the outputs apart.
        """
        self._seconds(infer_ns * 1e-9)
        self._batch_size(batch_size)
        for waited in queued_ns:
            self._queued(waited * 1e-9)
        if self._statistics is not None:
            self._statistics.executed(batch_size, input_ns, infer_ns, output_ns)

    def failed(self, infer_ns: int) -> None:
        """Count a run that failed after this many nanoseconds."""
        self._seconds(infer_ns * 1e-9)

    def retried(self, computations: int) -> None:
        """Count computations whose shared run failed, and that are run again alone."""
        self._retries.inc(computations)

    def lost(self) -> None:
        """Count a computation that is sent again, because the process that ran it ended."""
        RAY_RETRIES.labels(*self._labels).inc()

    def rejected(self, reason: Rejection) -> None:
        """Count a computation that is not run."""
        BATCH_REJECTED.labels(*self._labels, reason).inc()


class ModelMetrics:
    """What one model version counts; thread-safe.

    Attributes:
        v1, v2_rest, v2_grpc: requests by protocol.
        statistics: the same facts as Triton's statistics extension tells them.
        queued: takes the seconds that a request waited for a worker.
        loaded: takes the seconds that loading took.
        compiled: takes the seconds that compiling took.
        instance_started: counts a guest instance.
    """

    _holders: ClassVar[Multiset[tuple[str, str]]] = Multiset()
    _holders_lock = threading.Lock()
    _watched: ClassVar[dict[Gauge, Callable[[], float]]] = {}

    def __init__(self, model: str, version: str, predict: Callable[[float], None] | None = None) -> None:
        """Make the metrics of one model version.

        Args:
            model: the name it is served under.
            version: its version.
            predict: takes the seconds of each V2 request besides: KServe's ``request_predict_seconds``.
        """
        self._labels = (model, version)
        with self._holders_lock:
            self._holders[self._labels] += 1
        self._removed = False
        self._own: dict[Gauge, list[Callable[[], float]]] = {}
        self._totals: dict[Gauge, Callable[[], float]] = {}
        # V1 goes through the SDK, which observes its own histogram.
        self.v1 = ProtocolMetrics(model, version, "v1", None)
        self.v2_rest = ProtocolMetrics(model, version, "v2-rest", predict)
        self.v2_grpc = ProtocolMetrics(model, version, "v2-grpc", predict)
        self.statistics = Statistics()
        self.queued: Callable[[float], None] = QUEUE_SECONDS.labels(model, version).observe
        self.loaded: Callable[[float], None] = LOAD_SECONDS.labels(model, version).observe
        self.compiled: Callable[[float], None] = COMPILE_SECONDS.labels(model, version).observe
        self.instance_started: Callable[[], None] = INSTANCES.labels(model, version).inc
        self._to_guest = GUEST_COPY_BYTES.labels(model, version, "to_guest")
        self._from_guest = GUEST_COPY_BYTES.labels(model, version, "from_guest")

    def graph(self, name: str, *, first: bool = False) -> GraphMetrics:
        """Return what counts the runs of a graph.

        Args:
            name: the graph's name.
            first: it is the model's first: its runs are the executions that the statistics tell.
        """
        self.statistics.counts_runs |= first
        labels = (*self._labels, name)
        watch = partial(self._watch, BATCH_QUEUE_DEPTH.labels(*labels))
        return GraphMetrics(labels, self.statistics if first else None, watch)

    def compute(self, graph: str) -> Callable[[float], None]:
        """Return what takes the seconds of each run of ``graph``, of which nothing else is counted."""
        return COMPUTE_SECONDS.labels(*self._labels, graph).observe

    def copied(self, to_guest: int, from_guest: int) -> None:
        """Count bytes of tensors that were copied into guest memory, and out of it."""
        self._to_guest.inc(to_guest)
        self._from_guest.inc(from_guest)

    def runs_on(self, graph: str, device: str) -> None:
        """Tell what runs ``graph``: ``cpu``, ``gpu``, or a device such as ``cuda:0``."""
        self._watch(GRAPH_DEVICE.labels(*self._labels, graph, device), lambda: 1.0)

    def instance_trapped(self, reason: str) -> None:
        """Count an instance that trapped; ``reason`` is one of a few words, such as ``stack_overflow``."""
        TRAPS.labels(*self._labels, reason).inc()

    def watch(self, in_flight: Callable[[], float], queue_depth: Callable[[], float]) -> None:
        """Name the functions that a scrape asks for the requests in flight and in the queue."""
        self._watch(IN_FLIGHT.labels(*self._labels), in_flight)
        self._watch(QUEUE_DEPTH.labels(*self._labels), queue_depth)

    def _watch(self, gauge: Gauge, value: Callable[[], float]) -> Callable[[], None]:
        """Has a scrape ask for the sum of all that are watched for a gauge; what is returned ends it for this one."""
        with self._holders_lock:
            values = self._own.setdefault(gauge, [])
            values.append(value)
            if len(values) == 1:
                total = self._totals[gauge] = lambda: sum([one() for one in values])
                gauge.set_function(total)
                self._watched[gauge] = total
        return partial(values.remove, value)

    @classmethod
    def refresh(cls) -> None:
        """Write what the watched functions say to where the other workers read it."""
        for gauge, value in list(cls._watched.items()):
            gauge.set(value())

    @classmethod
    def holds(cls, model: str, version: str) -> bool:
        """Tell whether this process counts that version, and :meth:`remove` has not ended it."""
        return (model, version) in cls._holders

    def remove(self) -> None:
        """Take the series out of the exposition, unless a newer load of the version counts them."""
        with self._holders_lock:
            if self._removed:
                return
            self._removed = True
            for gauge, total in self._totals.items():
                if self._watched.get(gauge) is total:  # no newer load has named its own
                    del self._watched[gauge]
                    gauge.set_function(lambda: 0.0)
                    gauge.set(0)
            self._holders[self._labels] -= 1
            if self._holders[self._labels]:
                return
            del self._holders[self._labels]
            if _IN_FILES:
                return
            for metric in _ALL:
                metric.remove_by_labels(dict(zip(_MODEL, self._labels, strict=True)))


UNKNOWN_MODEL = ModelMetrics("", "")
"""Counts requests for models that do not exist: a client's invented names must not become series."""
