"""The process's one Wasmtime engine: its configuration, and how much room the instances of all guests have."""

from __future__ import annotations

import functools
import hashlib
import platform
import resource
import threading
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import wasmtime
from wasmtime import _ffi as ffi

from kserve_wasm.artifact.config import MAX_TABLE_ELEMENTS
from kserve_wasm.guest.ticker import Ticker, start_ticker

POOL_SLOTS = 512
"""Instances that may be alive at once, over all models, with the pooling allocator."""

KEEP_RESIDENT = 128 * 1024
"""Bytes of a slot's memory that are cleared by hand instead of being given back to the system (11 to 13 µs a MB)."""

WASM_STACK = 512 * 1024
"""Bytes of stack for guest code. Threads that run guests need more than this: see :data:`THREAD_STACK`."""

THREAD_STACK = 4 * 1024 * 1024
"""Bytes of stack for threads that run guests. Below about 1 MB a deeply recursive guest ends the process."""

MEMORIES = TABLES = 1
"""What an instance may have of each: the engine counts the limits of :class:`~kserve_wasm.artifact.config.Limits` for
every memory and every table by itself."""

_MEMORY_RESERVATION = 1 << 32  # the 4 GiB that a 32-bit memory can have: its base then never moves


@dataclass(frozen=True)
class Engine:
    """What all guests of the process share.

    Attributes:
        wasmtime: the engine itself.
        ticker: advances its epoch.
        pooled: whether instances come from the pooling allocator.
        identity: names all that an AOT artefact depends on besides the module: engine version, settings and CPU.
    """

    wasmtime: wasmtime.Engine
    ticker: Ticker
    pooled: bool
    identity: str


_lock = threading.Lock()


def engine() -> Engine:
    """The process's engine, made on first use.

    Hazard: ``faulthandler`` must not be enabled after this (nor Ray be connected, which enables it): its handler
    would then take the signals by which Wasmtime catches a guest's faults, and the process would end.
    """
    with _lock:
        return _engine()


@functools.cache
def _engine() -> Engine:
    config = wasmtime.Config()
    config.epoch_interruption = True
    # A compiler pool does not survive a fork: compiling in the child would hang.
    config.parallel_compilation = False
    config.wasm_threads = False  # a shared memory could change under the host's hands
    config.wasm_memory64 = False  # addresses in the ABI are 32-bit
    config.wasm_multi_memory = False  # each would have the whole limit
    config.wasm_gc = False  # its heap would come on top of the limit
    config.wasm_function_references = False
    config.memory_may_move = False
    config.memory_reservation = _MEMORY_RESERVATION
    config.max_wasm_stack = WASM_STACK
    pooled = _use_pooling(config)
    wasmtime_engine = wasmtime.Engine(config)
    settings = f"pool={pooled} stack={WASM_STACK} table={MAX_TABLE_ELEMENTS}"
    identity = f"wasmtime {version('wasmtime')} {settings} {_cpu()}"
    return Engine(wasmtime_engine, start_ticker(wasmtime_engine), pooled, identity)


def _use_pooling(config: wasmtime.Config) -> bool:
    """Switches the pooling allocator on (not in the public API), unless the address space is too small for it."""
    # A pool larger than the address space aborts the process; 4 GiB and the guard regions a slot.
    needed = POOL_SLOTS * 2 * _MEMORY_RESERVATION
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < 2 * needed:
        return False
    pool = ffi.wasmtime_pooling_allocation_config_new()
    ffi.wasmtime_pooling_allocation_config_total_core_instances_set(pool, POOL_SLOTS)
    ffi.wasmtime_pooling_allocation_config_total_memories_set(pool, POOL_SLOTS)
    ffi.wasmtime_pooling_allocation_config_total_tables_set(pool, POOL_SLOTS)
    ffi.wasmtime_pooling_allocation_config_max_memories_per_module_set(pool, MEMORIES)
    ffi.wasmtime_pooling_allocation_config_max_tables_per_module_set(pool, TABLES)
    ffi.wasmtime_pooling_allocation_config_table_elements_set(pool, MAX_TABLE_ELEMENTS)
    ffi.wasmtime_pooling_allocation_config_max_memory_size_set(pool, _MEMORY_RESERVATION)
    ffi.wasmtime_pooling_allocation_config_linear_memory_keep_resident_set(pool, KEEP_RESIDENT)
    ffi.wasmtime_pooling_allocation_config_table_keep_resident_set(pool, KEEP_RESIDENT)
    ffi.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    ffi.wasmtime_pooling_allocation_config_delete(pool)
    return True


def _cpu() -> str:
    """The architecture and a digest of the CPU's features: native code for one CPU may not run on another."""
    features = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                features = " ".join(sorted(line.split(":", 1)[1].split()))
                break
    return f"{platform.machine()} {hashlib.sha256(features.encode()).hexdigest()[:16]}"
