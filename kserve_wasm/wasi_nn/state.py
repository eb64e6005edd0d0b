"""What one instance has open: graphs, execution contexts, and the host memory that its tensors take.

Handles count up from 1 over graphs, contexts and tensors alike and are never given twice, so a handle of one kind is
none of another, and a stale one is none at all. Everything ends with the instance.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from kserve_wasm.artifact.config import Limits
from kserve_wasm.batching.base import Caller, GraphScheduler
from kserve_wasm.errors import DeadlineExceeded, GuestError, InvalidRequest, WasmServingError
from kserve_wasm.tensors import Tensor
from kserve_wasm.wasi_nn.borrowed import AnyTensor, apart, host_bytes, text_bytes
from kserve_wasm.wasi_nn.contexts import ExecutionContext, OpenGraph
from kserve_wasm.wasi_nn.host_function import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    RUNTIME_ERROR,
    SUCCESS,
    TOO_LARGE,
    GuestMemory,
)
from kserve_wasm.wasi_nn.registry import GraphRegistry

MAX_NAME = 4096
"""Bytes of a name that a guest may give."""

MAX_TEXT_ELEMENTS = 1 << 20
"""Elements of one ``BYTES`` tensor that a guest makes: a million objects take some tenths of a second, in which no
deadline is seen."""

MAX_REASON = 4096
"""Characters that are kept of why a host function failed: names in it may be the guest's or its graphs' own."""

_LAST_HANDLE = 0xFFFFFFFE  # the next is ML_FAILED


class NNState:
    """WASI-NN's side of an instance.

    Attributes:
        memory: the instance's memory; the engine's binding sets it.
        caller: for whom it computes, and until when.
        limits: the instance's caps.
        registry: the graphs that can be opened by name.
        graphs: open graphs by handle.
        contexts: open execution contexts by handle.
        tensors: tensors by handle (the tensor ABI's; here because all handles are counted together).
        tensor_bytes: memory in tensors that count against ``limits.tensor_bytes``.
        to_guest: bytes of tensors copied into the guest's memory during the request,
        from_guest: and out of it.
        reason: what the last host function that failed found wrong; safe to show to the client.
        cause: the last error of a graph or scheduler; the binding forgets it when the guest goes on after it.
    """

    __slots__ = (
        "_first_of_request",
        "_holders",
        "_next_handle",
        "caller",
        "cause",
        "contexts",
        "from_guest",
        "graphs",
        "limits",
        "memory",
        "reason",
        "registry",
        "tensor_bytes",
        "tensors",
        "to_guest",
    )

    memory: GuestMemory

    def __init__(self, registry: GraphRegistry, limits: Limits) -> None:
        self.registry = registry
        self.limits = limits
        self.caller = Caller()
        self.graphs: dict[int, OpenGraph] = {}
        self.contexts: dict[int, ExecutionContext] = {}
        self.tensors: dict[int, AnyTensor] = {}
        self.tensor_bytes = 0
        self.to_guest = self.from_guest = 0
        self.reason = ""
        self.cause: WasmServingError | None = None
        self._holders: dict[AnyTensor, int] = {}
        self._next_handle = 1
        self._first_of_request = 0

    def fail(self, errno: int, reason: str) -> int:
        """Keeps ``reason`` and returns ``errno``."""
        self.reason = reason[:MAX_REASON]
        return errno

    def no_graph(self, handle: int) -> int:
        """The failure of a call with a handle that is no graph's."""
        return self.fail(
            INVALID_ARGUMENT, f"{handle} is not the handle of an open graph: load or build it first"
        )

    def no_context(self, handle: int) -> int:
        """The failure of a call with a handle that is no execution context's."""
        return self.fail(INVALID_ARGUMENT, f"{handle} is not the handle of an open execution context")

    def no_tensor(self, handle: int) -> int:
        """The failure of a call with a handle that is no tensor's."""
        return self.fail(INVALID_ARGUMENT, f"{handle} is not the handle of a tensor")

    def no_input(self, context: ExecutionContext, index: int) -> int:
        """The failure of a call with an index that is no input's."""
        names = ", ".join(f"{i}: '{spec.name}'" for i, spec in enumerate(context.graph.inputs))
        return self.fail(INVALID_ARGUMENT, f"the graph has the inputs {names}; got index {index}")

    # --- Handles

    def new_handle(self, address: int) -> int:
        """Stores a handle for the guest at ``address``; the caller then puts it into a table.

        Returns:
            The handle, or 0 (with a reason) when the instance has too many open. Raises MemoryFault.
        """
        if not self.has_handles(1):
            return 0
        self.memory.write_u32(address, self._next_handle)
        return self.next_handle()

    def next_handle(self) -> int:
        """A handle for something that ends with the request, and is counted elsewhere. Raises GuestError."""
        handle = self._next_handle
        if handle > _LAST_HANDLE:
            raise GuestError("the instance has given out all handles there are")
        self._next_handle = handle + 1
        return handle

    def has_handles(self, count: int) -> bool:
        """Whether ``count`` more handles are allowed; keeps the reason when not."""
        alive = len(self.tensors) + len(self.contexts) + len(self.graphs)
        if alive + count <= self.limits.handles and self._next_handle + count - 1 <= _LAST_HANDLE:
            return True
        self.reason = (
            f"the guest has {alive} tensors, graphs and contexts open, and may have {self.limits.handles}: "
            "drop some, or raise limits.handles"
        )
        return False

    def hand_out(self, tensor: AnyTensor, address: int) -> int:
        """Stores a handle to ``tensor`` for the guest at ``address``: an errno. Raises MemoryFault."""
        handle = self.new_handle(address)
        if not handle:
            return TOO_LARGE
        self.tensors[handle] = tensor
        return SUCCESS

    def name(self, address: int, length: int) -> str | None:
        """The name at ``address``, or None (with a reason) when it is too long or not UTF-8. Raises MemoryFault."""
        if length > MAX_NAME:
            self.reason = f"a name may have {MAX_NAME} bytes, got {length}"
            return None
        try:
            return str(self.memory.view(address, length), "utf-8")
        except UnicodeDecodeError:
            self.reason = "a name must be UTF-8"
            return None

    # --- The tensors that count against the limit, each once however many hold it

    def has_room(self, nbytes: int) -> bool:
        """Whether ``nbytes`` more of host memory are allowed; keeps the reason when not."""
        if self.tensor_bytes + nbytes <= self.limits.tensor_bytes:
            return True
        self.reason = (
            f"{nbytes} bytes more for tensors pass the limit: {self.tensor_bytes} of {self.limits.tensor_bytes} bytes "
            "are taken; drop tensors, or raise limits.tensor_bytes"
        )
        return False

    def has_text_room(self, encoded: int, elements: int) -> bool:
        """Whether a ``BYTES`` tensor may be made of ``encoded`` bytes; keeps the reason when not.

        Raises:
            DeadlineExceeded: it is too late to start with it.
        """
        self.check_deadline()
        if elements <= MAX_TEXT_ELEMENTS:
            return self.has_room(text_bytes(encoded, elements))
        self.reason = f"a BYTES tensor of a guest may have {MAX_TEXT_ELEMENTS} elements, got {elements}"
        return False

    def check_deadline(self) -> None:
        """Raises DeadlineExceeded. For host calls that take long: while one runs, nothing else looks."""
        if time.monotonic() >= self.caller.deadline:
            raise DeadlineExceeded("the guest passed the request's deadline")

    def hold(self, tensor: Tensor) -> None:
        """Counts ``tensor``, and one holder of it more."""
        holders = self._holders.get(tensor, 0)
        self._holders[tensor] = holders + 1
        if not holders:
            self.tensor_bytes += host_bytes(tensor)

    def share(self, tensor: AnyTensor) -> None:
        """One holder more, if the tensor counts: the request's own and borrowed ones do not."""
        holders = self._holders.get(tensor)
        if holders:
            self._holders[tensor] = holders + 1

    def release(self, tensor: AnyTensor) -> None:
        """One holder less."""
        holders = self._holders.get(tensor)
        if holders == 1:
            del self._holders[tensor]
            assert isinstance(tensor, Tensor)
            self.tensor_bytes -= host_bytes(tensor)
        elif holders:
            self._holders[tensor] = holders - 1

    # --- Execution contexts

    def set_input(self, context: ExecutionContext, name: str, tensor: AnyTensor) -> None:
        """Makes ``tensor`` the input of this name; its bytes are taken as they are when the context computes."""
        self.share(tensor)
        replaced = context.inputs.get(name)
        context.inputs[name] = tensor
        context.copies.pop(name, None)
        if replaced is not None:
            self.release(replaced)

    def compute(self, context: ExecutionContext) -> int:
        """Runs the context's graph, as :meth:`run_open`."""
        graph, inputs = context.graph, context.inputs
        self.drop_outputs(context)
        if len(inputs) < len(graph.inputs):
            missing = [f"'{spec.name}'" for spec in graph.inputs if spec.name not in inputs]
            return self.fail(
                INVALID_ARGUMENT, f"compute needs inputs that the guest did not set: {', '.join(missing)}"
            )
        outputs = self.run_open(graph, inputs)
        if isinstance(outputs, int):
            return outputs
        context.outputs = outputs
        return SUCCESS

    def run_open(self, graph: OpenGraph, inputs: Mapping[str, AnyTensor]) -> Mapping[str, Tensor] | int:
        """Runs a graph on all its inputs: every output, each held once; an errno, with its reason kept, when it fails.

        Raises what the scheduler raises. A refusal of the graph is the client's error only if the inputs are all
        tensors of the request.
        """
        memory = self.memory
        tensors = {name: t if type(t) is Tensor else t.over(memory) for name, t in inputs.items()}
        try:
            if graph.built is not None:
                graph.built.check(tensors)
            outputs = self.run(graph.scheduler, tensors)
        except InvalidRequest as error:
            # Tensors of the request are those that do not count.
            if all(type(t) is Tensor and t not in self._holders for t in inputs.values()):
                raise
            errno = self.fail(INVALID_ARGUMENT, str(error))
            self.cause = GuestError(self.reason)
            return errno
        return TOO_LARGE if outputs is None else outputs

    def run(self, scheduler: GraphScheduler, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """Every output, each held once; None (with a reason) without room. Raises what the scheduler raises.

        Room is a matter of what the guest may keep: while the graph computes, memory is the framework's to take.
        """
        computed = scheduler.compute(inputs, self.caller)
        outputs = {name: apart(tensor, inputs) for name, tensor in computed.items()}
        if not self.has_room(sum(map(host_bytes, outputs.values()))):
            return None
        for tensor in outputs.values():
            self.hold(tensor)
        return outputs

    def named_graph(self, name: int, length: int) -> GraphScheduler | int:
        """The graph whose name is at ``name``; an errno, with its reason kept, when there is none."""
        asked = self.name(name, length)
        if asked is None:
            return INVALID_ARGUMENT
        scheduler = self.registry.get(asked)
        if scheduler is None:
            known = ", ".join(f"'{n}'" for n in self.registry.names) or "none"
            return self.fail(NOT_FOUND, f"no graph is named '{asked}'; the model has: {known}")
        return scheduler

    def open_named(self, name: int, length: int) -> OpenGraph | int:
        """The same, opened for this instance; also of a name that a graph was kept under when it was built."""
        if self.registry.built is not None:
            asked = self.name(name, length)
            kept = None if asked is None else self.registry.built.named(asked)
            if kept is not None:
                return OpenGraph(kept[1], built=kept[0], release=self.registry.built.release)
        scheduler = self.named_graph(name, length)
        return scheduler if isinstance(scheduler, int) else OpenGraph(scheduler)

    def output(self, context: ExecutionContext, index: int) -> Tensor | int:
        """An output of the last computation; an errno, with its reason kept, when there is none."""
        specs = context.graph.outputs
        if index >= len(specs):
            return self.fail(
                INVALID_ARGUMENT, f"the graph has outputs 0 to {len(specs) - 1}, got index {index}"
            )
        if context.outputs is None:
            # After a failed compute its own reason is the one to tell.
            return (
                RUNTIME_ERROR
                if self.cause
                else self.fail(RUNTIME_ERROR, "get_output needs a successful compute first")
            )
        return context.outputs[specs[index].name]

    def drop_outputs(self, context: ExecutionContext) -> None:
        """Forgets what the last computation gave; tensors that the guest has handles for live on."""
        if context.outputs is not None:
            for tensor in context.outputs.values():
                self.release(tensor)
            context.outputs = None

    def close_context(self, handle: int) -> None:
        """Ends a context with its inputs and outputs."""
        context = self.contexts.pop(handle)
        self.drop_outputs(context)
        for tensor in (*context.inputs.values(), *context.standing.values()):
            self.release(tensor)

    def close_graph(self, handle: int) -> None:
        """Ends a graph and all its contexts."""
        graph = self.graphs.pop(handle)
        for of_graph in [h for h, c in self.contexts.items() if c.graph is graph]:
            self.close_context(of_graph)
        self.tensor_bytes -= graph.held
        graph.close()

    # --- From request to request

    def begin_request(self) -> None:
        """Forgets the previous request: what was opened, set and computed since the first call of this.

        What the guest opened and set before the first request stays, for each request as it was then.
        """
        self.reason = ""
        self.cause = None
        first = self._first_of_request
        if not first:
            self._first_of_request = self._next_handle
            for context in self.contexts.values():
                self.drop_outputs(context)
                context.copies.clear()  # they must not be filled anew
                context.standing = dict(context.inputs)
                for tensor in context.standing.values():
                    self.share(tensor)
            return
        for handle in [h for h in self.tensors if h >= first]:
            self.release(self.tensors.pop(handle))
        for handle in [h for h in self.contexts if h >= first]:
            self.close_context(handle)
        for handle in [h for h in self.graphs if h >= first]:
            self.close_graph(handle)
        for context in self.contexts.values():
            self.drop_outputs(context)
            context.copies.clear()
            for tensor in context.inputs.values():
                self.release(tensor)
            context.inputs = dict(context.standing)
            for tensor in context.inputs.values():
                self.share(tensor)

    def close(self) -> None:
        """Frees everything."""
        for graph in self.graphs.values():
            graph.close()
        self.tensors.clear()
        self.contexts.clear()
        self.graphs.clear()
        self._holders.clear()
        self.tensor_bytes = 0
        self.cause = None
