"""The WASI-NN host: named graphs, execution contexts, and the dialects of the core-module ABI.

``registry`` holds a model's graphs and ``state`` what one instance has open. ``witx`` and ``wamr`` are the tables of
host functions, ``transfer`` moves tensors in and out of the guest's memory, ``tensor_types`` and ``encodings`` tell
the dialects' numbers apart.
"""

from kserve_wasm.wasi_nn.registry import GraphRegistry
from kserve_wasm.wasi_nn.state import NNState

__all__ = ["GraphRegistry", "NNState"]
