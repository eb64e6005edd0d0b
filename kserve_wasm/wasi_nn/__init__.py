"""The WASI-NN host: named graphs, execution contexts, and the dialects of the core-module ABI.

``registry`` holds a model's graphs, ``state`` what one instance has open, ``tensor_types`` and ``encodings`` tell the
dialects' numbers apart, and ``witx`` and ``wamr`` are the tables of host functions.
"""

from kserve_wasm.wasi_nn.registry import GraphRegistry
from kserve_wasm.wasi_nn.state import NNState

__all__ = ["GraphRegistry", "NNState"]
