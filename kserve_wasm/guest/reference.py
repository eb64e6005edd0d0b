"""The binding over wasmtime's public classes: slower, plainer, and what the fast one is tested against."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import wasmtime

from kserve_wasm.guest.binding import I32, VALUE_TYPES, ModuleShape, Unbound, to_error
from kserve_wasm.guest.engine import MEMORIES, TABLES, Engine
from kserve_wasm.guest.host_functions import HOST_FUNCTIONS
from kserve_wasm.guest.memory import LinearMemory
from kserve_wasm.guest.state import InstanceState, invoke
from kserve_wasm.guest.wasi import REPLACED
from kserve_wasm.wasi_nn.host_function import HostFunction

_MASKS = {"i": 0xFFFFFFFF, "I": 0xFFFFFFFFFFFFFFFF}


class ReferenceBinding:
    """One module and a linker of its own. Implements :class:`~kserve_wasm.guest.binding.Binding`.

    Arguments are those of :class:`~kserve_wasm.guest.unchecked.UncheckedBinding`.
    """

    def __init__(
        self, engine: Engine, module: wasmtime.Module, shape: ModuleShape, *, has_start: bool
    ) -> None:
        del has_start  # the public API gives up the interpreter lock at every call
        self._engine = engine
        self._wasi = shape.wasi
        self._running: dict[int, InstanceState] = {}
        linker = wasmtime.Linker(engine.wasmtime)
        linker.allow_shadowing = True
        if shape.wasi:
            linker.define_wasi()
        for function in (*HOST_FUNCTIONS, *REPLACED) if shape.wasi else HOST_FUNCTIONS:
            kind = wasmtime.FuncType([VALUE_TYPES[p] for p in function.params], [I32])
            linker.define_func(function.module, function.name, kind, self._callback(function))
        self._pre = linker.instantiate_pre(module)

    def _callback(self, function: HostFunction) -> Callable[..., int]:
        masks = [_MASKS.get(p) for p in function.params]

        def call(*values: Any) -> int:
            # The public classes hand over signed integers. What is raised here they keep in one place for the whole
            # process, where another thread's guest may find it: nothing may be.
            state = self._running[threading.get_ident()]
            try:
                return invoke(
                    function,
                    state,
                    tuple(v if m is None else v & m for v, m in zip(values, masks, strict=True)),
                )
            except BaseException as error:
                state.abort = error
                return 5

        return call

    def instantiate(self, state: InstanceState, ticks: int) -> ReferenceInstance:
        """A new instance. See :meth:`~kserve_wasm.guest.binding.Binding.instantiate`."""
        store = wasmtime.Store(self._engine.wasmtime)
        store.set_limits(state.limits.memory, state.limits.table_elements, 1, TABLES, MEMORIES)
        store.set_epoch_deadline(ticks)
        state.memory = Unbound()
        if self._wasi:
            store.set_wasi(wasmtime.WasiConfig())
        instance = self.run(state, lambda: self._pre.instantiate(store))
        return ReferenceInstance(self, store, instance, state)

    def run(self, state: InstanceState, enter: Callable[[], Any]) -> Any:
        """Runs guest code under ``state``; turns what ends it into a typed error."""
        thread = threading.get_ident()
        self._running[thread] = state
        try:
            result = enter()
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            raise to_error(error, state) from None
        finally:
            del self._running[thread]
        if state.abort is not None and not isinstance(state.abort, Exception):
            raise state.abort
        return result


class ReferenceInstance:
    """Implements :class:`~kserve_wasm.guest.binding.Instance`."""

    def __init__(
        self,
        binding: ReferenceBinding,
        store: wasmtime.Store,
        instance: wasmtime.Instance,
        state: InstanceState,
    ) -> None:
        self.state = state
        self._binding = binding
        self._store = store
        self._exports = instance.exports(store)
        memory = self._exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self._memory = memory
        state.memory = LinearMemory(self._locate)

    def _locate(self) -> tuple[int, int]:
        base = ctypes.cast(self._memory.data_ptr(self._store), ctypes.c_void_p).value or 0
        return base, self._memory.data_len(self._store)

    def set_deadline(self, ticks: int) -> None:
        """See :meth:`~kserve_wasm.guest.binding.Instance.set_deadline`."""
        self._store.set_epoch_deadline(ticks)

    def call(self, export: str) -> int:
        """See :meth:`~kserve_wasm.guest.binding.Instance.call`."""
        function = self._exports[export]
        assert isinstance(function, wasmtime.Func)
        result = self._binding.run(self.state, lambda: function(self._store))
        return (result or 0) & 0xFFFFFFFF

    def close(self) -> None:
        """See :meth:`~kserve_wasm.guest.binding.Instance.close`."""
        self.state.memory = Unbound()
        self._store.close()
