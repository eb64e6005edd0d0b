"""What one instance of a guest has while it answers, and the policy for host functions that fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from kserve_wasm.artifact.config import Limits
from kserve_wasm.batching import Caller, GraphScheduler
from kserve_wasm.errors import (
    GuestError,
    GuestLimitExceeded,
    GuestRejected,
    InvalidRequest,
    ModelNotFound,
    NotSupported,
    PayloadTooLarge,
    QueueFull,
    WasmServingError,
    printable,
)
from kserve_wasm.guest.building import Building
from kserve_wasm.guest.pending import PendingResponse, check_complete
from kserve_wasm.request import InferenceRequest, InferenceResponse, Parameter
from kserve_wasm.tensors import Tensor
from kserve_wasm.wasi_nn.borrowed import AnyTensor, BorrowedTensor
from kserve_wasm.wasi_nn.host_function import (
    BUSY,
    ERRNO_NAMES,
    INVALID_ARGUMENT,
    MISSING_MEMORY,
    NOT_FOUND,
    RUNTIME_ERROR,
    TOO_LARGE,
    UNSUPPORTED_OPERATION,
    HostFunction,
    MemoryFault,
)
from kserve_wasm.wasi_nn.registry import GraphRegistry
from kserve_wasm.wasi_nn.state import NNState

logger = logging.getLogger(__name__)

NO_REQUEST = InferenceRequest({})
INFO = 1
"""``KW_LOG_INFO``."""


class InstanceState(NNState):
    """One instance's request, answer and handles. Used by one thread at a time.

    Attributes:
        request: the request being answered; one without inputs before the first.
        inputs: its tensors in the request's order.
        parameters: parameters of every request of this model, below the request's own.
        outputs: the tensors that the guest made outputs, by name.
        output_parameters: the response's parameters.
        put_off: a graph that runs when the guest has ended, and its inputs.
        text_left: bytes of names and parameters that the guest may still put into the response.
        log_left: bytes that the request may still write to the log.
        failure: what the guest said of its failure, or None.
        abort: an exception that no host function may turn into an errno (KeyboardInterrupt); set by the binding.
    """

    __slots__ = (
        "_building",
        "_log",
        "abort",
        "failure",
        "inputs",
        "log_left",
        "output_parameters",
        "outputs",
        "parameters",
        "put_off",
        "request",
        "text_left",
    )

    TEXT_BYTES = 1 << 20

    def __init__(
        self,
        registry: GraphRegistry,
        limits: Limits,
        parameters: Mapping[str, str],
        log: Callable[[int, str], None],
    ) -> None:
        super().__init__(registry, limits)
        self.parameters = parameters
        self._log = log
        self._building: Building | None = None
        self.abort: BaseException | None = None
        self._reset(NO_REQUEST)

    def _reset(self, request: InferenceRequest) -> None:
        self.request = request
        self.inputs: tuple[tuple[str, Tensor], ...] = tuple(request.inputs.items())
        self.outputs: dict[str, AnyTensor] = {}
        self.output_parameters: dict[str, Parameter] = {}
        self.text_left = self.TEXT_BYTES
        self.log_left = self.limits.log_bytes
        self.put_off: tuple[GraphScheduler, Mapping[str, Tensor]] | None = None
        self.failure: GuestRejected | GuestError | None = None

    def begin(self, request: InferenceRequest, caller: Caller) -> None:
        """Starts a request. What the guest opened before the first one stays, all else of the previous one goes.

        Args:
            request: the request.
            caller: who waits for the answer.
        """
        for tensor in self.outputs.values():
            self.release(tensor)
        if self._building is not None:
            self.tensor_bytes -= self._building.clear()
        self.begin_request()
        self._reset(request)
        self.caller = caller

    @property
    def building(self) -> Building:
        """What the guest has in the making; a graph that is not built when the request ends is dropped."""
        if self._building is None:
            self._building = Building()
        return self._building

    def finish(self, errno: int, export: str = "infer") -> InferenceResponse | PendingResponse:
        """Ends the request that the guest's ``export`` answered with ``errno``.

        Returns:
            The outputs that the client asked for; a pending response where a graph is still to run. Outputs that the
            guest only lent are copied out of its memory.

        Raises:
            GuestRejected, GuestError: the guest failed, in its own words if it gave any.
            DeadlineExceeded: it answered too late, which only host calls let it do.
            WasmServingError: what a graph raised last, if the guest failed without words.
        """
        self.check_deadline()
        if errno:
            raise self.told() or GuestError(self._unexplained(errno, export))
        outputs: dict[str, Tensor] = {}
        wanted = self.request.outputs
        copied = 0
        for name, tensor in self.outputs.items():
            if wanted is not None and name not in wanted:
                continue
            if isinstance(tensor, BorrowedTensor):
                copied += tensor.nbytes  # one range may be lent many times over
                if not self.has_room(copied):
                    raise GuestLimitExceeded(self.reason)
                tensor = tensor.copied(self.memory)
                self.from_guest += tensor.nbytes
            elif tensor.memory is not None:
                tensor.numpy()  # an answer is for the host: it comes there on this thread
            outputs[name] = tensor
        response = InferenceResponse(outputs, self.output_parameters)
        if self.put_off is not None:
            scheduler, inputs = self.put_off
            room = self.limits.tensor_bytes - self.tensor_bytes
            return PendingResponse(scheduler, inputs, self.request, response, room)
        check_complete(self.request, outputs)
        return response

    def told(self) -> WasmServingError | None:
        """Why the guest failed, as far as it said so itself or a graph did; None when neither did."""
        return self.failure or self.cause

    def _unexplained(self, errno: int, export: str) -> str:
        name = f" ({ERRNO_NAMES[errno]})" if errno < len(ERRNO_NAMES) else ""
        reason = f"; the last host call that failed: {self.reason}" if self.reason else ""
        return f"the guest's {export} returned {errno}{name} without a message{reason}"

    def close(self) -> None:
        """Frees everything."""
        self._building = None
        super().close()
        self._reset(NO_REQUEST)

    def log(self, severity: int, text: str) -> bool:
        """Writes a line to the log, as far as the request's share of it goes; whether it did."""
        if len(text) >= self.log_left:
            self.log_left = 0
            return False
        text = printable(text)
        self.log_left -= len(text.encode()) + 1
        if self.log_left < 0:
            return False
        self._log(severity, text)
        return True

    def print(self, text: str) -> None:
        """Logs what a WASI guest wrote to a standard stream; what passes the limit is dropped."""
        for line in text.splitlines():
            self.log(INFO, line)


def invoke(host_function: HostFunction, state: InstanceState, arguments: Sequence[int]) -> int:
    """Calls a host function; what it raises becomes an errno for the guest, and the cause stays with the instance.

    Args:
        host_function: the function.
        state: the calling instance's.
        arguments: unsigned integers, as many as it has parameters.

    Returns:
        The errno.
    """
    if state.cause is not None and host_function.name not in _AFTER_FAILURE:
        state.cause = None  # the guest went on without what failed: how it ends is its own affair
    try:
        return host_function.function(state, *arguments)
    except MemoryFault as fault:
        return state.fail(MISSING_MEMORY, f"{host_function.name}: {fault}")
    except WasmServingError as error:
        # Frames hold the state that holds the error: a cycle that would keep the request's tensors.
        error.__cause__ = error.__context__ = None
        state.cause = error.with_traceback(None)
        errno = state.fail(_errno(error), str(error))
        error.args = (state.reason,)
        return errno
    except Exception:
        logger.exception("host function %s.%s failed", host_function.module, host_function.name)
        state.cause = WasmServingError(f"internal error in host function '{host_function.name}'")
        return state.fail(RUNTIME_ERROR, str(state.cause))


_AFTER_FAILURE = frozenset(
    {
        "fd_write",  # a panic's message
        "finalize_execution_context",
        "get_output",
        "get_output_tensor",
        "log",
        "tensor_drop",
        "unload",
    }
)
"""What a guest may call between a failure and giving up over it."""


def _errno(error: WasmServingError) -> int:
    for kind, errno in _ERRNOS:
        if isinstance(error, kind):
            return errno
    return RUNTIME_ERROR


_ERRNOS: tuple[tuple[type[WasmServingError], int], ...] = (
    (PayloadTooLarge, TOO_LARGE),
    (InvalidRequest, INVALID_ARGUMENT),
    (QueueFull, BUSY),
    (NotSupported, UNSUPPORTED_OPERATION),
    (ModelNotFound, NOT_FOUND),
)
