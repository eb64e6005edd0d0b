"""Running guests: a sandboxed instance for every request, with limits and a deadline.

``guest_model`` is the way in. Below it: ``binding`` and its two implementations ``unchecked`` and ``reference`` join
instances to the engine; ``state``, ``tensor_abi`` and ``host_functions`` are what a guest can reach; ``engine``,
``ticker`` and ``module_cache`` are the process's; ``pool`` has the threads.
"""

from kserve_wasm.guest.guest_model import GuestModel, Timing
from kserve_wasm.guest.host_functions import HOST_FUNCTIONS

__all__ = ["HOST_FUNCTIONS", "GuestModel", "Timing"]
