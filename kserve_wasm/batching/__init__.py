"""When, and together with whom, a computation on a graph runs."""

from kserve_wasm.batching.base import Caller, GraphScheduler
from kserve_wasm.batching.direct import DirectScheduler

__all__ = ["Caller", "DirectScheduler", "GraphScheduler"]
