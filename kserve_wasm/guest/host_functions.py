"""Every function that a guest can import from this host, WASI preview 1 aside."""

from kserve_wasm.guest import tensor_abi
from kserve_wasm.wasi_nn import wamr, witx
from kserve_wasm.wasi_nn.host_function import HostFunction

HOST_FUNCTIONS: tuple[HostFunction, ...] = (*tensor_abi.FUNCTIONS, *witx.FUNCTIONS, *wamr.FUNCTIONS)
