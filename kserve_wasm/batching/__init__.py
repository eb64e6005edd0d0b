"""When, and together with whom, a computation on a graph runs."""

from kserve_wasm.batching.base import Caller, GraphScheduler
from kserve_wasm.batching.direct import DirectScheduler
from kserve_wasm.batching.open import OpenScheduler, open_in_process
from kserve_wasm.batching.scheduler import BatchScheduler

__all__ = [
    "BatchScheduler",
    "Caller",
    "DirectScheduler",
    "GraphScheduler",
    "OpenScheduler",
    "open_in_process",
]
