"""The binding that serves: wasmtime's C API without the checks and conversions of its public Python classes.

A fresh instance costs about 15 µs here and 108 µs there, a host call 0.5 µs and 13 µs. What the public classes check at
every call is checked once when a module is loaded: the types of exports in :func:`binding.check_shape`, those of
imports by the linker. Everything below the public API that guests' calls need is in this file, pinned to one release
of wasmtime, and tested against :mod:`~kserve_wasm.guest.reference`.

Two libraries are the same file: ``PyDLL`` calls keep the interpreter lock and are for what takes a microsecond;
``CDLL`` calls give it up and are for whatever runs guest code.
"""

from __future__ import annotations

import ctypes
import logging
import operator
import threading
from collections.abc import Callable, Iterable
from ctypes import c_double, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from kserve_wasm.errors import WasmServingError
from kserve_wasm.guest.binding import I32, VALUE_TYPES, ModuleShape, Unbound, to_error
from kserve_wasm.guest.engine import MEMORIES, TABLES, Engine
from kserve_wasm.guest.host_functions import BASIC, HOST_FUNCTIONS
from kserve_wasm.guest.memory import LinearMemory
from kserve_wasm.guest.state import InstanceState, invoke
from kserve_wasm.guest.wasi import REPLACED
from kserve_wasm.wasi_nn.host_function import HostFunction

logger = logging.getLogger(__name__)

_kept = ctypes.PyDLL(ffi.dll._name)
_released = ctypes.CDLL(ffi.dll._name)


def _function(library: ctypes.CDLL, name: str, result: Any, *parameters: Any) -> Callable[..., Any]:
    function = library[name]
    function.restype = result
    function.argtypes = parameters
    return function


_store_new = _function(_kept, "wasmtime_store_new", c_void_p, c_void_p, c_void_p, c_void_p)
_store_context = _function(_kept, "wasmtime_store_context", c_void_p, c_void_p)
_store_delete = _function(_released, "wasmtime_store_delete", None, c_void_p)
_store_delete_kept = _function(_kept, "wasmtime_store_delete", None, c_void_p)
_store_limiter = _function(_kept, "wasmtime_store_limiter", None, c_void_p, *[c_int64] * 5)
_set_epoch_deadline = _function(_kept, "wasmtime_context_set_epoch_deadline", None, c_void_p, c_uint64)
_set_wasi = _function(_kept, "wasmtime_context_set_wasi", c_void_p, c_void_p, c_void_p)
_instantiate = _function(_released, "wasmtime_instance_pre_instantiate", c_void_p, *[c_void_p] * 4)
_instantiate_kept = _function(_kept, "wasmtime_instance_pre_instantiate", c_void_p, *[c_void_p] * 4)
_export_get = _function(
    _kept,
    "wasmtime_instance_export_get",
    ctypes.c_bool,
    c_void_p,
    c_void_p,
    ctypes.c_char_p,
    c_size_t,
    c_void_p,
)
_memory_data = _function(_kept, "wasmtime_memory_data", c_void_p, c_void_p, c_void_p)
_memory_size = _function(_kept, "wasmtime_memory_data_size", c_size_t, c_void_p, c_void_p)
_call = _function(
    _released, "wasmtime_func_call_unchecked", c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p
)
_trap_new = _function(_kept, "wasmtime_trap_new", c_size_t, ctypes.c_char_p, c_size_t)


LARGE_MEMORY = 4 << 20
"""Bytes of memory above which an instance is freed without the interpreter lock: the system takes 0.1 ms a MB back."""


class _Scratch(ctypes.Structure):
    """The out-parameters of one instance's calls, in one allocation."""

    _fields_ = (
        ("instance", ffi.wasmtime_instance_t),
        ("memory", ffi.wasmtime_extern_t),
        ("function", ffi.wasmtime_extern_t),
        ("values", ffi.wasmtime_val_raw_t * 1),
        ("trap", c_void_p),
    )


_INSTANCE = _Scratch.instance.offset
_MEMORY = _Scratch.memory.offset
_FUNCTION = _Scratch.function.offset
_VALUES = _Scratch.values.offset
_TRAP = _Scratch.trap.offset
_OF = ffi.wasmtime_extern_t.of.offset  # an extern is a kind, then the item itself

# The state of the guest that runs on a thread: host functions are shared by all instances and find theirs here.
_running: dict[int, InstanceState] = {}
_thread = threading.get_ident

_CALLBACK = ctypes.CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_void_p, c_size_t)
_LETTERS: dict[str, tuple[Any, Any]] = {
    "i": (c_uint32, c_uint32 * 3),
    "I": (c_uint64, c_uint64 * 1),
    "F": (c_double, c_uint64 * 1),
}


def _callback(host_function: HostFunction) -> Any:
    """``host_function`` as a C function over raw values: 16 bytes each, the result in place of the first."""
    fields: list[tuple[str, Any]] = []
    for i, letter in enumerate(host_function.params):
        kind, rest = _LETTERS[letter]
        fields += [(f"value{i}", kind), (f"rest{i}", rest)]
    layout: Any = type("Values", (ctypes.Structure,), {"_fields_": fields})
    names = [f"value{i}" for i in range(len(host_function.params))]
    at = layout.from_address
    get: Callable[[Any], tuple[int, ...]]
    if len(names) == 1:
        get = lambda values: (values.value0,)  # noqa: E731 - attrgetter gives no tuple for one name
    else:
        get = operator.attrgetter(*names) if names else lambda _values: ()
    result_at = c_uint32.from_address

    def call(_environment: Any, _caller: Any, values: int, _count: int) -> int:
        # An exception that left this function would be printed, and the guest would see success.
        try:
            state = _running[_thread()]
            result_at(values).value = invoke(host_function, state, get(at(values)))
        except BaseException as error:
            return _abort(error)
        return 0

    return _CALLBACK(call)


def _abort(error: BaseException) -> int:
    """Keeps what must not be lost (KeyboardInterrupt, say) for the caller, and ends the guest with an empty trap."""
    state = _running.get(_thread())
    if state is not None:
        state.abort = error
    trap: int = _trap_new(b"host", 4)
    return trap


def _linker(engine: Engine, functions: Iterable[HostFunction], *, wasi: bool) -> wasmtime.Linker:
    linker = wasmtime.Linker(engine.wasmtime)
    linker.allow_shadowing = True
    if wasi:
        linker.define_wasi()
    for function in (*functions, *REPLACED) if wasi else functions:
        callback = _callback(function)
        _callbacks.append(callback)
        kind = wasmtime.FuncType([VALUE_TYPES[p] for p in function.params], [I32])
        module, name = function.module.encode(), function.name.encode()
        error = ffi.wasmtime_linker_define_func_unchecked(
            linker.ptr(),
            ctypes.create_string_buffer(module),
            len(module),
            ctypes.create_string_buffer(name),
            len(name),
            kind.ptr(),
            ctypes.cast(callback, ffi.wasmtime_func_unchecked_callback_t),
            None,
            ctypes.cast(0, ctypes.CFUNCTYPE(None, c_void_p)),
        )
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)
    return linker


_callbacks: list[Any] = []  # the linkers below hold bare pointers to them, for as long as the process lives
_linkers: dict[tuple[int, bool, bool], wasmtime.Linker] = {}
_linkers_lock = threading.Lock()


def _address(pointer: Any) -> int:
    return ctypes.cast(pointer, c_void_p).value or 0


class UncheckedBinding:
    """One module, pre-linked. Implements :class:`~kserve_wasm.guest.binding.Binding`.

    Args:
        engine: the process's engine.
        module: a module that :func:`~kserve_wasm.guest.binding.check_shape` accepted as ``shape``.
        shape: what it exports and needs.
        has_start: whether the module has a start function, so that instantiating it runs guest code.
    """

    def __init__(
        self, engine: Engine, module: wasmtime.Module, shape: ModuleShape, *, has_start: bool
    ) -> None:
        with _linkers_lock:
            key = (id(engine), shape.wasi, shape.operators)
            functions = HOST_FUNCTIONS if shape.operators else BASIC
            linker = _linkers.get(key) or _linkers.setdefault(
                key, _linker(engine, functions, wasi=shape.wasi)
            )
        pre = ctypes.POINTER(ffi.wasmtime_instance_pre_t)()
        error = ffi.wasmtime_linker_instantiate_pre(linker.ptr(), module.ptr(), ctypes.byref(pre))
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)
        self._pre = wasmtime.InstancePre._from_ptr(pre)  # owns it
        self._module = module
        self._engine_address = _address(engine.wasmtime.ptr())
        self._pre_address = _address(self._pre.ptr())
        self._wasi = shape.wasi
        self._has_start = has_start

    def instantiate(self, state: InstanceState, ticks: int) -> UncheckedInstance:
        """A new instance. See :meth:`~kserve_wasm.guest.binding.Binding.instantiate`."""
        store = _store_new(self._engine_address, None, None)
        try:
            return UncheckedInstance(self, store, state, ticks)
        except BaseException:
            _store_delete(store)
            raise

    def _start(self, store: int, context: int, state: InstanceState, ticks: int, scratch: int) -> int:
        """Fills the new store with an instance."""
        limits = state.limits
        _store_limiter(store, limits.memory, limits.table_elements, 1, TABLES, MEMORIES)
        _set_epoch_deadline(context, ticks)
        state.memory = _UNBOUND
        if self._wasi:
            config = wasmtime.WasiConfig()  # grants nothing
            error = _set_wasi(context, _address(config._consume()))
            if error:
                _raise(error, 0, state)
        if not self._has_start:
            return _instantiate_kept(self._pre_address, context, scratch + _INSTANCE, scratch + _TRAP)  # type: ignore[no-any-return]
        thread = _thread()
        _running[thread] = state
        try:
            return _instantiate(self._pre_address, context, scratch + _INSTANCE, scratch + _TRAP)  # type: ignore[no-any-return]
        finally:
            del _running[thread]


_UNBOUND = Unbound()


class UncheckedInstance:
    """Implements :class:`~kserve_wasm.guest.binding.Instance`."""

    __slots__ = ("_binding", "_context", "_scratch", "_scratch_address", "_store", "state")

    def __init__(self, binding: UncheckedBinding, store: int, state: InstanceState, ticks: int) -> None:
        self.state = state
        self._binding = binding  # keeps the module alive
        self._store = store
        self._scratch = _Scratch()
        self._scratch_address = scratch = ctypes.addressof(self._scratch)
        self._context = context = _store_context(store)
        error = binding._start(store, context, state, ticks, scratch)
        if error or self._scratch.trap:
            _raise(error, self._scratch.trap, state)
        _export_get(context, scratch + _INSTANCE, b"memory", 6, scratch + _MEMORY)
        state.memory = LinearMemory(self._locate)

    def _locate(self) -> tuple[int, int]:
        memory = self._scratch_address + _MEMORY + _OF
        return _memory_data(self._context, memory), _memory_size(self._context, memory)

    def set_deadline(self, ticks: int) -> None:
        """See :meth:`~kserve_wasm.guest.binding.Instance.set_deadline`."""
        _set_epoch_deadline(self._context, ticks)

    def call(self, export: str) -> int:
        """See :meth:`~kserve_wasm.guest.binding.Instance.call`."""
        scratch = self._scratch_address
        name = export.encode()
        _export_get(self._context, scratch + _INSTANCE, name, len(name), scratch + _FUNCTION)
        values = self._scratch.values[0]
        values.i32 = 0
        thread = _thread()
        _running[thread] = self.state
        try:
            error = _call(self._context, scratch + _FUNCTION + _OF, scratch + _VALUES, 1, scratch + _TRAP)
        finally:
            del _running[thread]
        if error or self._scratch.trap:
            _raise(error, self._scratch.trap, self.state)
        result: int = values.i32
        return result & 0xFFFFFFFF

    def close(self) -> None:
        """See :meth:`~kserve_wasm.guest.binding.Instance.close`."""
        store, self._store = self._store, 0
        if store:
            self.state.memory = _UNBOUND
            memory = self._scratch_address + _MEMORY + _OF
            large = _memory_size(self._context, memory) > LARGE_MEMORY
            (_store_delete if large else _store_delete_kept)(store)


def _raise(error: int | None, trap: int | None, state: InstanceState) -> None:
    """Raises the typed error for a C error or trap, which it takes over."""
    cause: wasmtime.Trap | wasmtime.WasmtimeError
    if trap:
        cause = wasmtime.Trap._from_ptr(ctypes.cast(trap, ctypes.POINTER(ffi.wasm_trap_t)))
    else:
        cause = wasmtime.WasmtimeError._from_ptr(
            ctypes.cast(error or 0, ctypes.POINTER(ffi.wasmtime_error_t))
        )
    abort = state.abort
    if abort is not None and not isinstance(abort, Exception):
        raise abort
    typed: WasmServingError = to_error(cause, state)
    raise typed
