"""The deployment that runs graphs, for any number of models and servers."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import ray

from kserve_wasm.backends import open_graph
from kserve_wasm.errors import BackendError, WasmServingError
from kserve_wasm.tensors import Tensor
from ray_app.hosted import HostedGraph
from ray_app.wire import Answer, Delivery, Description, Wanted, delivered_source, local_source

logger = logging.getLogger(__name__)

MAX_GRAPHS = 64
"""Graphs that one replica keeps open, unless told otherwise."""

_T = TypeVar("_T")


class _NotHere(Exception):
    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted


class GraphExecutor:
    """Opens graphs when they are first computed on, and closes those that were not used for longest.

    Any replica takes any graph. Ray's own multiplexing would send all computations on a graph to the one replica that
    has it, until that has ``max_ongoing_requests`` of them: many, because batches are made of them. So one graph alone
    would never be spread over several replicas.

    Args:
        max_graphs: how many stay open.
    """

    def __init__(self, max_graphs: int = MAX_GRAPHS) -> None:
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[str, HostedGraph] = OrderedDict()
        self._opening: dict[str, asyncio.Task[HostedGraph]] = {}
        # Each run has a slot of its graph besides; this is for all graphs together.
        self._threads = ThreadPoolExecutor(64, "run")

    async def describe(
        self, key: str, delivery: Delivery | None = None
    ) -> Description | Wanted | WasmServingError:
        """Tells the inputs and outputs of a graph.

        Args:
            key: :attr:`~ray_app.wire.GraphOffer.key`.
            delivery: from what to open the graph.
        """

        async def describe() -> Description:
            graph = (await self._hosted(key, delivery)).graph
            return Description(graph.device, tuple(graph.inputs), tuple(graph.outputs))

        return await _as_value(describe)

    async def compute(
        self,
        key: str,
        inputs: Mapping[str, Tensor],
        timeout: float,
        priority: int = 0,
        delivery: Delivery | None = None,
    ) -> Answer | Wanted | WasmServingError:
        """Runs a graph; see :meth:`ray_app.hosted.HostedGraph.compute`.

        Args:
            key: :attr:`~ray_app.wire.GraphOffer.key`.
            inputs: the tensors by name.
            timeout: seconds that are left. Points in time mean nothing on another machine.
            priority: lower is more urgent.
            delivery: from what to open the graph.
        """

        async def compute() -> Answer:
            return await (await self._hosted(key, delivery)).compute(inputs, timeout, priority)

        return await _as_value(compute)

    async def _hosted(self, key: str, delivery: Delivery | None) -> HostedGraph:
        hosted = self._graphs.get(key)
        if hosted is not None:
            self._graphs.move_to_end(key)
            return hosted
        task = self._opening.get(key)
        if task is None:
            if delivery is None:
                raise _NotHere(Wanted())
            task = self._opening[key] = asyncio.create_task(self._open(key, delivery))
            task.add_done_callback(lambda _: self._opening.pop(key))
        # Whoever came first may go away: the others wait for the graph all the same.
        return await asyncio.shield(task)

    async def _open(self, key: str, delivery: Delivery) -> HostedGraph:
        hosted = await asyncio.to_thread(self._open_now, delivery)
        self._graphs[key] = hosted
        logger.info("graph '%s' is open: %s", hosted.graph.name, key)
        for oldest, other in list(self._graphs.items())[: max(0, len(self._graphs) - self._max_graphs)]:
            # One that is in use stays, and goes when a further graph is opened.
            if other is not hosted and other.idle:
                del self._graphs[oldest]
                other.graph.close()
        return hosted

    def _open_now(self, delivery: Delivery) -> HostedGraph:
        offer = delivery.offer
        source = local_source(offer)
        with tempfile.TemporaryDirectory(prefix="kserve_wasm-") as directory:
            if source is None:
                if delivery.content is None:
                    raise _NotHere(Wanted(content=True))
                content = ray.get(delivery.content)
                # Removed when it is open: what is mapped of the weights stays until the graph is closed.
                source = delivered_source(offer, content, Path(directory))
            graph = open_graph(source, offer.device)
        try:
            return HostedGraph(graph, offer.batching, self._threads)
        except BaseException:
            graph.close()
            raise


async def _as_value(call: Callable[[], Awaitable[_T]]) -> _T | Wanted | WasmServingError:
    """The result of ``call`` or its error, as a value of our own type: Ray would add a traceback to what is raised."""
    try:
        return await call()
    except _NotHere as error:
        return error.wanted
    except WasmServingError as error:
        return error.with_traceback(None)
    except Exception:
        logger.exception("a call failed")
        return BackendError("the executor failed for a reason of its own; its log says more")
