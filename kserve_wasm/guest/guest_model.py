"""A model as its guest sees it: a compiled module, its graphs, and a fresh instance for every request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import wasmtime

from kserve_wasm.artifact.config import ModelConfig
from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.backends.base import device_of
from kserve_wasm.backends.cpus import available_cpus
from kserve_wasm.batching import Caller, DirectScheduler, GraphScheduler, OpenScheduler, open_in_process
from kserve_wasm.errors import (
    ArtifactError,
    DeadlineExceeded,
    GuestTrap,
    ModelNotReady,
    NotSupported,
)
from kserve_wasm.guest.binding import Binding, Instance, ModuleShape, check_shape
from kserve_wasm.guest.engine import POOL_SLOTS, engine
from kserve_wasm.guest.module_cache import ModuleCache
from kserve_wasm.guest.pending import PendingResponse
from kserve_wasm.guest.state import NO_REQUEST, InstanceState
from kserve_wasm.guest.ticker import ticks
from kserve_wasm.guest.unchecked import UncheckedBinding
from kserve_wasm.metrics import ModelMetrics
from kserve_wasm.request import InferenceRequest, InferenceResponse
from kserve_wasm.tensors import TensorSpec
from kserve_wasm.wasi_nn import GraphRegistry
from kserve_wasm.wasi_nn.built import BuiltGraphs
from kserve_wasm.webnn import Program
from kserve_wasm.webnn.program import SESSION

logger = logging.getLogger(__name__)

MAX_KEPT = POOL_SLOTS // 4
"""Instances that are kept for further requests, in the whole process."""
_SHARED_OPTIONS = ("device_id", "fallback")
"""Options of a model's first graph that those have which its guests build: where they run."""
BUILT = "webnn"
"""The name, in metrics and messages, of graphs that guests have built."""
_kept = [0]
_kept_lock = threading.Lock()

_UNCHECKED = frozenset({"pytorch"})
"""Encodings of graphs that are not taken from guests: some operators of PyTorch read beyond a tensor's memory when they
are told to."""

_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


@dataclass(slots=True)
class Timing:
    """Where one request's time went, in nanoseconds: making the sandbox, the guest, taking its outputs; all of it.

    Attributes:
        start: ``time.monotonic_ns()`` when it began; kept by whoever asks for the timing, as ``total`` is.
    """

    start: int = 0
    instantiate: int = 0
    infer: int = 0
    finish: int = 0
    total: int = 0


class GuestModel:
    """One version of one model, free of any protocol.

    Args:
        config: what to open.
        cache: where compiled modules are kept; None compiles at every load.
        metrics: what is counted.
        binding: the way to the engine.
        open_scheduler: opens the graphs.
    """

    def __init__(
        self,
        config: ModelConfig,
        cache: Path | None = None,
        metrics: ModelMetrics | None = None,
        binding: Callable[..., Binding] = UncheckedBinding,
        open_scheduler: OpenScheduler = open_in_process,
    ) -> None:
        self.config = config
        self.metrics = metrics or ModelMetrics(config.name, config.version)
        self._cache = ModuleCache(cache)
        self._bind = binding
        self._open_scheduler = open_scheduler
        self._binding: Binding | None = None
        self._shape: ModuleShape | None = None
        self._schedulers: dict[str, GraphScheduler] = {}
        self._registry = GraphRegistry({})
        self._built: BuiltGraphs | None = None
        self._ticker = engine().ticker
        self._idle: list[Instance] = []

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a client sends; empty where the model does not say."""
        return self.config.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a client gets; empty where the model does not say."""
        return self.config.outputs

    @property
    def workers(self) -> int:
        """Requests that may be inside guests at once, which whoever calls :meth:`infer` is to heed."""
        return self.config.instances.workers or max(
            2, available_cpus(), *(scheduler.concurrency for scheduler in self._schedulers.values())
        )

    @property
    def ready(self) -> bool:
        """Whether there is something that runs each of the graphs."""
        for scheduler in self._schedulers.values():  # noqa: SIM110  # asked for every request: a generator costs more
            if not scheduler.ready:
                return False
        return True

    @property
    def schedulers(self) -> dict[str, GraphScheduler]:
        """The open graphs by name."""
        return self._schedulers

    @property
    def merging_pays(self) -> bool:
        """Whether a graph runs better for several requests at once."""
        return any(map(_merging_pays, self._schedulers.values()))

    def load(self) -> None:
        """Opens the graphs, compiles the module (or maps it from the cache) and checks it.

        Raises:
            ArtifactError: the module is not one that this host can run.
            BackendError, DeviceUnavailable: a graph cannot be opened.
        """
        config = self.config
        started = time.monotonic()
        try:
            compiled = self._cache.load(engine(), config.module, config.code_length, config.digest)
            if not compiled.from_cache:
                self.metrics.compiled(time.monotonic() - started)
            self._shape = check_shape(compiled.module, config.module.name)
            try:
                self._binding = self._bind(
                    engine(), compiled.module, self._shape, has_start=compiled.has_start
                )
            except wasmtime.WasmtimeError as error:
                raise ArtifactError(f"{config.module.name} cannot be linked: {error}") from None
            for source in config.graphs:
                scheduler = self._open_scheduler(source, config, self.metrics)
                self._schedulers[source.name] = scheduler
                self.metrics.runs_on(source.name, device_of(scheduler.graph))
        except BaseException:
            self.close()
            raise
        if self._shape.operators:
            import_module("kserve_wasm.webnn.emit")  # which takes long, and no request is to wait for
            self._built = BuiltGraphs(self._open_program)
        self._registry = GraphRegistry(
            self._schedulers, self._open_bytes if config.limits.load_bytes else None, self._built
        )
        self.metrics.loaded(time.monotonic() - started)

    def probe(self) -> None:
        """Makes one instance as a request would, and drops it: finds out what no request should have to.

        Raises:
            WasmServingError: what every request would end with.
        """
        caller = Caller(time.monotonic() + self.config.limits.timeout)
        self._ticker.enter()
        try:
            self._discard(self._instance(NO_REQUEST, caller, ticks(self.config.limits.timeout)))
        finally:
            self._ticker.exit()

    def _open_bytes(self, encoding: str, buffers: tuple[bytes, ...]) -> GraphScheduler:
        """Opens a graph from a guest's own bytes, for WASI-NN ``load``.

        An ONNX graph is not optimized: folding its constants would compute, before any deadline or limit counts.
        """
        if len(buffers) != 1:
            raise NotSupported(f"{encoding} graphs of {len(buffers)} buffers are not supported")
        if encoding in _UNCHECKED:
            raise NotSupported(
                f"{encoding} graphs are not opened from a guest's own bytes: ship them with the model, under 'graphs' "
                "in model.yaml"
            )
        options = {"graph_optimization": "none"} if encoding == "onnx" else {}
        source = GraphSource("load", encoding, data=buffers[0], options=options)
        graph = open_graph(source, self.config.device)
        return DirectScheduler(graph, self.metrics.compute("load"))

    def _open_program(self, program: Program) -> GraphScheduler:
        """Opens a graph that guests have built: here, whatever runs the model's own, and as the first of those."""
        options = self.config.graphs[0].options if self.config.graphs else {}
        source = GraphSource(
            BUILT,
            "onnx",
            data=program.model_bytes(),
            options={
                **{key: options[key] for key in _SHARED_OPTIONS if key in options},
                "intra_op_threads": 1,  # more would be threads of each graph's own, and there may be hundreds
                "session": SESSION,
            },
        )
        merges = program.merges()
        batching = replace(self.config.batching_of(""), padding={}, declared=merges)
        if not merges:
            batching = replace(batching, max_batch_size=1)
        config = replace(self.config, batching={BUILT: batching})
        if self._open_scheduler is not open_in_process:
            config = replace(config, device="cpu")
        return open_in_process(source, config, self.metrics)

    def infer(self, request: InferenceRequest, caller: Caller | None = None) -> InferenceResponse:
        """Answers one request on the calling thread; as :meth:`begin`, without anything put off."""
        response = self.begin(request, Caller() if caller is None else caller)
        assert isinstance(response, InferenceResponse)
        return response

    def begin(
        self, request: InferenceRequest, caller: Caller, timing: Timing | None = None
    ) -> InferenceResponse | PendingResponse:
        """Runs the guest for one request on the calling thread.

        Args:
            request: the tensors; whether they are those that the model declares is for the caller to check
                (:func:`kserve_wasm.protocol.checks.check_inputs`).
            caller: who waits; its deadline becomes no later than the model's own timeout says.
            timing: is filled in.

        Returns:
            The answer; or, where ``caller.defers``, perhaps one that waits for a graph still to be run.

        Raises:
            WasmServingError: see :mod:`kserve_wasm.errors`; never anything else for what a guest or client does.
        """
        start = time.monotonic()
        deadline = caller.deadline = min(caller.deadline, start + self.config.limits.timeout)
        if deadline <= start:
            raise DeadlineExceeded("the deadline passed before the guest was started")
        ticker = self._ticker
        instance: Instance | None = None
        ticker.enter()
        try:
            instance = self._instance(request, caller, ticks(deadline - start))
            began = time.monotonic_ns()
            errno = instance.call("infer")
            ended = time.monotonic_ns()
            response = instance.state.finish(errno)
            if timing is not None:
                timing.instantiate = began - int(start * 1e9)
                timing.infer = ended - began
                timing.finish = time.monotonic_ns() - ended
        except GuestTrap as trap:
            self.metrics.instance_trapped(trap.code)
            self._discard(instance)
            raise
        except BaseException:
            self._discard(instance)
            raise
        finally:
            ticker.exit()
            if instance is not None:
                self._count_copies(instance.state)
        self._release(instance)
        return response

    def _count_copies(self, state: InstanceState) -> None:
        if state.to_guest or state.from_guest:
            self.metrics.copied(state.to_guest, state.from_guest)
            state.to_guest = state.from_guest = 0

    def _instance(self, request: InferenceRequest, caller: Caller, epoch_ticks: int) -> Instance:
        """A new instance that is ready for ``infer``, or a kept one where the model allows it."""
        if self.config.instances.reuse:
            kept = None
            with _kept_lock:
                if self._idle:
                    kept = self._idle.pop()
                    _kept[0] -= 1
            if kept is not None:
                kept.set_deadline(epoch_ticks)
                kept.state.begin(request, caller)
                return kept
        if self._binding is None or self._shape is None:
            raise ModelNotReady(f"model '{self.config.name}' is not loaded")
        state = InstanceState(self._registry, self.config.limits, self.config.parameters, self._log)
        self.metrics.instance_started()
        instance = self._binding.instantiate(state, epoch_ticks)
        try:
            # What the guest opens before the first request is there for every one that the instance answers.
            state.caller = caller
            if self._shape.initialize:
                instance.call("_initialize")
            if self._shape.load:
                errno = instance.call("load")
                if errno:
                    state.finish(errno, "load")
            state.begin(request, caller)
        except BaseException:
            self._discard(instance)
            raise
        return instance

    def _release(self, instance: Instance) -> None:
        if self.config.instances.reuse and self._binding is not None:
            instance.state.begin(NO_REQUEST, Caller())  # it must not keep the request's tensors
            with _kept_lock:
                # A model keeps no more than can run at once, and all models together leave room for fresh ones.
                keep = self._binding is not None and len(self._idle) < self.workers and _kept[0] < MAX_KEPT
                if keep:
                    _kept[0] += 1
                    self._idle.append(instance)
            if keep:
                return
        self._discard(instance)

    @staticmethod
    def _discard(instance: Instance | None) -> None:
        if instance is not None:
            instance.state.close()
            instance.close()

    def _log(self, severity: int, message: str) -> None:
        logger.log(_LEVELS[min(severity, 3)], "guest %s: %s", self.config.name, message)

    def close(self) -> None:
        """Frees graphs and kept instances.

        Computations that run end first; a guest that comes to its graph later gets ModelNotReady.
        """
        with _kept_lock:
            self._binding = None
            idle, self._idle = self._idle, []
            _kept[0] -= len(idle)
        for instance in idle:
            self._discard(instance)
        if self._built is not None:
            self._built.close()
        schedulers, self._schedulers = self._schedulers, {}
        for scheduler in schedulers.values():
            scheduler.close()


def _merging_pays(scheduler: GraphScheduler) -> bool:
    return scheduler.merging_pays
