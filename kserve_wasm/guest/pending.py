"""An answer that only a graph's outputs are missing from, after its guest has ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kserve_wasm.batching import GraphScheduler
from kserve_wasm.errors import GuestError, GuestLimitExceeded
from kserve_wasm.request import InferenceRequest, InferenceResponse
from kserve_wasm.tensors import Tensor
from kserve_wasm.wasi_nn.borrowed import apart, host_bytes


def check_complete(request: InferenceRequest, outputs: Collection[str]) -> None:
    """Raises GuestError where the client asked for an output that is not there."""
    wanted = request.outputs
    if wanted is not None and len(outputs) < len(wanted):
        missing = [f"'{name}'" for name in wanted if name not in outputs]
        if missing:
            raise GuestError(f"the guest did not set the requested output {', '.join(missing)}")


@dataclass(slots=True)
class PendingResponse:
    """What a guest leaves that passes its request on to a graph (``run_graph``) and looks at nothing that comes back.

    The graph runs when the guest has ended, so that a request that waits for its batch holds neither an instance nor a
    thread.

    Attributes:
        scheduler: the graph's.
        inputs: the graph's inputs: tensors of the request.
        request: the request.
        response: what the guest has set besides.
        room: bytes of outputs that the guest's limits allow.
    """

    scheduler: GraphScheduler
    inputs: Mapping[str, Tensor]
    request: InferenceRequest
    response: InferenceResponse
    room: int

    def fetch(self, outputs: Mapping[str, Tensor]) -> None:
        """Brings what the client asked for to the host, on a thread that may wait for it."""
        wanted = self.request.outputs
        for name, tensor in outputs.items():
            if tensor.memory is not None and (wanted is None or name in wanted):
                tensor.numpy()

    def complete(self, outputs: Mapping[str, Tensor]) -> InferenceResponse:
        """The answer with the graph's ``outputs`` in it.

        Raises:
            GuestLimitExceeded: there is no room for them.
            GuestError: an output that the client asked for is none of them.
        """
        wanted = self.request.outputs
        needed = sum(map(host_bytes, outputs.values()))
        if needed > self.room:
            raise GuestLimitExceeded(
                f"the graph's outputs have {needed} bytes, and {self.room} are allowed: raise limits.tensor_bytes"
            )
        result = self.response.outputs
        for name, tensor in outputs.items():
            if wanted is None or name in wanted:
                result[name] = apart(tensor, self.inputs)
        check_complete(self.request, result)
        return self.response
