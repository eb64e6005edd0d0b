"""Every function that a guest can import from this host, WASI preview 1 aside."""

from kserve_wasm.guest import graph_abi, operator_abi, tensor_abi
from kserve_wasm.wasi_nn import wamr, witx
from kserve_wasm.wasi_nn.host_function import HostFunction

BASIC: tuple[HostFunction, ...] = (
    *tensor_abi.FUNCTIONS,
    *graph_abi.FUNCTIONS,
    *witx.FUNCTIONS,
    *wamr.FUNCTIONS,
)
"""What all guests are linked with."""
HOST_FUNCTIONS: tuple[HostFunction, ...] = (*BASIC, *operator_abi.FUNCTIONS)
"""Every function."""
OPERATOR_MODULES = frozenset({operator_abi.MODULE, operator_abi.OWN_MODULE})
"""The modules of those that only guests with operators are linked with: they are over a hundred."""
