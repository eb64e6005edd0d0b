"""What the REST half works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kserve_wasm.server.peers import Peers
    from kserve_wasm.server.repository import WasmModelRepository

MAX_REQUEST_BYTES = 256 << 20
"""The default limit of a request's body, in bytes."""


@dataclass(frozen=True, slots=True)
class RestContext:
    """What the REST half works with.

    Attributes:
        repository: the models.
        peers: all processes that answer on this port.
        max_request_bytes: the largest body that is accepted, as it comes and decompressed.
    """

    repository: WasmModelRepository
    peers: Peers
    max_request_bytes: int = MAX_REQUEST_BYTES
