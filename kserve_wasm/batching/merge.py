"""Requests that fit together, run as one. No threads and no waiting: whoever collects requests calls this."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from kserve_wasm.artifact.config import Batching
from kserve_wasm.backends.base import Graph
from kserve_wasm.batching.base import Outcome
from kserve_wasm.batching.signature import Fit, batch_signature
from kserve_wasm.batching.stacking import merged_shapes, padding_values, split, stack, stack_on
from kserve_wasm.batching.staging import Shapes, Staging
from kserve_wasm.errors import DeadlineExceeded, WasmServingError
from kserve_wasm.tensors import Tensor

if TYPE_CHECKING:
    from kserve_wasm.tensors.devices import Accelerator

logger = logging.getLogger(__name__)

Inputs: TypeAlias = Mapping[str, Tensor]
TRIALS = 3
"""Merged runs that are compared with runs of each request alone before a graph's signature is believed. Those of
requests that are all alike are counted by themselves, and prove nothing about others: a mean of equals is the same."""

_TOLERANCES = {"FP16": 2e-2, "BF16": 5e-2, "FP32": 1e-3, "FP64": 1e-6}
"""How far two answers may be apart, relative to the largest value: with more rows, sums are formed in another order.
Where rows are not independent, the difference is of the values' own size."""


@dataclass(slots=True)
class Run:
    """What a merged run came to.

    Attributes:
        outcomes: of each request, in their order.
        input_ns: nanoseconds that it took to write the inputs,
        infer_ns: to run the graph,
        output_ns: and to take the outputs apart.
        merged: whether it was one run; otherwise each request's own answer is given, and the times are those.
    """

    outcomes: Sequence[Outcome]
    input_ns: int
    infer_ns: int
    output_ns: int
    merged: bool = True


class MergingGraph:
    """A graph that can be run for several requests at once. Thread-safe.

    Entries along the first dimension must be independent of each other. Where nobody declared that they are, the first
    merged runs are compared with runs of each request alone, whose answers are the ones that are given; after one that
    differs, nothing is merged any more.

    Args:
        graph: the graph.
        batching: what is configured.
        model: whose graph it is, for the log.

    Raises:
        ModelLoadError: the configuration asks for what the graph does not offer.
    """

    def __init__(self, graph: Graph, batching: Batching, model: str = "") -> None:
        self.graph = graph
        self._described = f"graph '{graph.name}'" + (f" of {model}" if model else "")
        self._signature = batch_signature(graph.name, graph.inputs, graph.outputs, batching)
        self._trials = self._trials_alike = 0 if batching.declared else TRIALS
        self._padding = padding_values(batching.padding)
        self._accelerator: Accelerator | None = getattr(graph, "accelerator", None)
        if self._signature is not None:
            self._staging = Staging(self._signature, batching.max_batch_size, self._accelerator)

    @property
    def merges(self) -> bool:
        """Whether there are requests that can be merged, as far as is known."""
        return self._signature is not None

    def fit(self, inputs: Inputs) -> Fit | None:
        """How a request fits into a batch; None when it is to be run alone, by ``graph.run``."""
        signature = self._signature
        return None if signature is None else signature.fit(inputs)

    def rows(self, inputs: Inputs) -> int:
        """The request's entries along the first dimension; 1 where the graph has no such thing."""
        signature = self._signature
        if signature is None:
            return 1
        shape = inputs[signature.inputs[0].name].shape
        return shape[0] if shape else 1

    def run(
        self,
        requests: Sequence[Inputs],
        fits: Sequence[Fit],
        deadline: float = math.inf,
        staged: Callable[[], None] | None = None,
    ) -> Run:
        """Runs the graph once for all requests.

        Args:
            requests: the inputs of each, two or more.
            fits: what :meth:`fit` said of each; their keys are equal, and their rows at most the largest batch.
            deadline: ``time.monotonic()`` seconds after which the run is given up.
            staged: called when the requests' own memory is not needed any more.

        Raises:
            WasmServingError: the run failed; why, and whose fault it was, shows when each is run alone.
        """
        if self._trials:
            alike = _alike(requests)
            if not alike or self._trials_alike:
                return self._try(requests, fits, deadline, alike=alike)
        return self._merged(requests, fits, deadline, staged)

    def run_all(self, requests: Sequence[Inputs], fits: Sequence[Fit], deadline: float = math.inf) -> Run:
        """As :meth:`run`, but when it fails, each request is run alone: only the culprit gets an error."""
        try:
            return self.run(requests, fits, deadline)
        except DeadlineExceeded:
            raise
        except WasmServingError:
            return self._singly(requests, deadline)

    def _merged(
        self,
        requests: Sequence[Inputs],
        fits: Sequence[Fit],
        deadline: float,
        staged: Callable[[], None] | None = None,
    ) -> Run:
        signature = self._signature
        if signature is None:  # another thread's trial ended it
            return self._singly(requests, deadline)
        began = time.perf_counter_ns()
        shapes: Shapes = merged_shapes(signature, fits, requests[0])
        there = self._on_device(requests)
        if there:
            shapes = tuple(
                [
                    None if spec.name in there else shape
                    for spec, shape in zip(signature.inputs, shapes, strict=True)
                ]
            )
        buffers = self._staging.take(shapes)
        try:
            stacked = stack(requests, buffers, self._padding)
            stacked.update(there)
            if staged is not None:
                staged()
            ready = time.perf_counter_ns()
            outputs = self.graph.run(stacked, deadline)
            ran = time.perf_counter_ns()
            # A graph may hand an input through.
            if any(o.may_share_memory(s) for o in outputs.values() for s in stacked.values()):
                outputs = {name: o.copied() for name, o in outputs.items()}
            parts = split(outputs, signature, fits)
        finally:
            self._staging.give_back(shapes, buffers)
        return Run(parts, ready - began, ran - ready, time.perf_counter_ns() - ran)

    def _on_device(self, requests: Sequence[Inputs]) -> dict[str, Tensor]:
        """The inputs that some request has on the graph's device, stacked there; the others go by way of staging."""
        accelerator, signature = self._accelerator, self._signature
        if accelerator is None or signature is None or signature.padding:
            return {}
        return {
            spec.name: stack_on(accelerator, [inputs[spec.name] for inputs in requests])
            for spec in signature.inputs
            if any(inputs[spec.name].memory is not None for inputs in requests)
        }

    def _singly(self, requests: Sequence[Inputs], deadline: float) -> Run:
        """Runs each request alone."""
        began = time.perf_counter_ns()
        outcomes: list[Outcome] = []
        for inputs in requests:
            try:
                outcomes.append(self.graph.run(inputs, deadline))
            except WasmServingError as error:  # noqa: PERF203
                outcomes.append(error.with_traceback(None))
        return Run(outcomes, 0, time.perf_counter_ns() - began, 0, merged=False)

    def _difference_beside_others(
        self, requests: Sequence[Inputs], fits: Sequence[Fit], alone: Sequence[Outcome], deadline: float
    ) -> str | None:
        """As :func:`_difference`, for a request beside one of far larger values: such as hide where all are alike."""
        i = min(range(len(fits)), key=lambda i: fits[i].rows)
        own = requests[i]
        large = {name: _enlarged(tensor) for name, tensor in own.items()}
        try:
            run = self._merged([own, large], [fits[i], fits[i]], deadline)
        except DeadlineExceeded:
            raise
        except WasmServingError:
            return None  # they may be no values for this graph
        return _difference(run.outcomes[:1], alone[i : i + 1])

    def _try(self, requests: Sequence[Inputs], fits: Sequence[Fit], deadline: float, *, alike: bool) -> Run:
        failure: WasmServingError | None = None
        try:
            run = self._merged(requests, fits, deadline)
        except DeadlineExceeded:
            raise
        except WasmServingError as error:
            failure = error.with_traceback(None)
            run = Run((), 0, 0, 0)
        alone = self._singly(requests, deadline)
        errors = [outcome for outcome in alone.outcomes if isinstance(outcome, Exception)]
        if not errors:  # else the trial says nothing: the requests themselves were wrong
            difference = str(failure) if failure else _difference(run.outcomes, alone.outcomes)
            difference = difference or self._difference_beside_others(
                requests, fits, alone.outcomes, deadline
            )
            if difference is None:
                if alike:
                    self._trials_alike = max(0, self._trials_alike - 1)
                else:
                    self._trials = max(0, self._trials - 1)
            else:
                self._signature = None
                logger.warning(
                    "%s is not batched: its signature suggests that it could be, but %s. If its first dimension is no "
                    "batch, say batching: {enabled: false} in model.yaml. A batching.max_batch_size there declares "
                    "that it is one: where that is wrong, clients get each other's answers",
                    self._described,
                    difference,
                )
        return alone


def _enlarged(tensor: Tensor) -> Tensor:
    """Its values ten thousandfold, where they are of floating point."""
    if tensor.dtype.name not in _TOLERANCES:
        return tensor
    with np.errstate(over="ignore"):
        return Tensor.from_numpy((tensor.numpy() * 1e4).astype(tensor.dtype.numpy))


def _alike(requests: Sequence[Inputs]) -> bool:
    """Whether all requests are equal, to the bit."""
    first, *others = requests
    return all(_equal(tensor, other[name]) for other in others for name, tensor in first.items())


def _equal(a: Tensor, b: Tensor) -> bool:
    x, y = a.numpy(), b.numpy()
    if a.dtype.itemsize:  # NaN is equal to itself here
        x, y = x.reshape(-1).view(np.uint8), y.reshape(-1).view(np.uint8)
    return a.shape == b.shape and bool(np.array_equal(x, y))


def _difference(merged: Sequence[Outcome], alone: Sequence[Outcome]) -> str | None:
    """In which output answers of a merged run differ from those of each alone; None when they agree."""
    for one, other in zip(merged, alone, strict=True):
        assert isinstance(one, Mapping)
        assert isinstance(other, Mapping)
        for name, tensor in other.items():
            got = one[name]
            if got.shape != tensor.shape or not _close(got, tensor):
                return f"output '{name}' of a merged run differs from that of each request alone"
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = _TOLERANCES.get(a.dtype.name)
    x, y = a.numpy(), b.numpy()
    if tolerance is None:
        return bool(np.array_equal(x, y))
    x, y = x.astype(np.float64), y.astype(np.float64)
    finite = np.isfinite(y)
    scale = float(np.abs(y[finite]).max(initial=0.0))
    return bool(np.allclose(x, y, rtol=0.0, atol=tolerance * scale + 1e-12, equal_nan=True))
