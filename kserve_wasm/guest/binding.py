"""What a binding to the engine gives: instances of one module, joined to their state.

Two bindings do the same: :mod:`~kserve_wasm.guest.unchecked` calls the C API directly and is what serves;
:mod:`~kserve_wasm.guest.reference` uses wasmtime's public classes, is a few times slower, runs where the other cannot,
and is what the other is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import wasmtime

from kserve_wasm.errors import (
    ArtifactError,
    DeadlineExceeded,
    GuestError,
    GuestLimitExceeded,
    GuestTrap,
    WasmServingError,
    printable,
)
from kserve_wasm.guest.host_functions import HOST_FUNCTIONS, OPERATOR_MODULES
from kserve_wasm.guest.state import InstanceState
from kserve_wasm.guest.wasi import MODULE as WASI
from kserve_wasm.wasi_nn.host_function import MemoryFault

I32 = wasmtime.ValType.i32()
VALUE_TYPES = {"i": I32, "I": wasmtime.ValType.i64(), "F": wasmtime.ValType.f64()}
"""The engine's types for the letters of :attr:`~kserve_wasm.wasi_nn.host_function.HostFunction.params`."""


class Instance(Protocol):
    """One instance of a guest. Used by one thread at a time, and not after :meth:`close`."""

    state: InstanceState

    def set_deadline(self, ticks: int) -> None:
        """Lets the guest run for this many ticks from now. Called before every use of the instance."""

    def call(self, export: str) -> int:
        """Calls an exported function without parameters; its i32 result, or 0 when it has none.

        Raises:
            WasmServingError: the guest trapped, passed its deadline, or exited.
        """

    def close(self) -> None:
        """Frees the instance and its memory."""


class Binding(Protocol):
    """A module with all its imports resolved."""

    def instantiate(self, state: InstanceState, ticks: int) -> Instance:
        """A new instance; runs the module's start function, if it has one, for ``ticks`` at most.

        Raises:
            WasmServingError: the start function failed, or the instance does not fit its limits.
        """


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """What a guest module exports and needs.

    Attributes:
        initialize: whether it exports ``_initialize``.
        load: whether it exports ``load``.
        wasi: whether it imports WASI preview 1.
        operators: whether it imports operators to build graphs of.
    """

    initialize: bool
    load: bool
    wasi: bool
    operators: bool


def check_shape(module: wasmtime.Module, name: str) -> ModuleShape:
    """Checks the module against the tensor ABI; ``name`` is for messages.

    Raises:
        ArtifactError: an export is missing or of another type, or an import is not offered.
    """
    exports = {e.name: e.type for e in module.exports}
    if not isinstance(exports.get("memory"), wasmtime.MemoryType):
        raise ArtifactError(f'{name} must export its memory as "memory"')
    for export, results, needed in (
        ("infer", [["i32"]], True),
        ("load", [["i32"]], False),
        ("_initialize", [[]], False),
    ):
        found = exports.get(export)
        if found is None and not needed:
            continue
        if (
            not isinstance(found, wasmtime.FuncType)
            or found.params
            or [str(r) for r in found.results] not in results
        ):
            wanted = f"() → {' '.join(results[0]) or '()'}"
            came = "nothing" if found is None else type(found).__name__
            if isinstance(found, wasmtime.FuncType):
                came = f"{[str(p) for p in found.params]} → {[str(r) for r in found.results]}"
            raise ArtifactError(f'{name} must export the function "{export}" of type {wanted}, got {came}')
    offered = {(f.module, f.name) for f in HOST_FUNCTIONS}
    missing = [
        _name(f"{i.module}.{i.name}")
        for i in module.imports
        if (i.module, i.name) not in offered and i.module != WASI
    ]
    if missing:
        raise ArtifactError(
            f"{name} imports what this host does not offer: {', '.join(missing[:5])}"
            f"{' …' if len(missing) > 5 else ''}; see kserve_wasm.h for what it does"
        )
    modules = {i.module for i in module.imports}
    return ModuleShape(
        "_initialize" in exports, "load" in exports, WASI in modules, not OPERATOR_MODULES.isdisjoint(modules)
    )


_LONGEST_NAME = 100


def _name(text: str) -> str:
    """A name of the guest's own choice, fit for a message."""
    cut = text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"
    return printable(cut)


_TRAPS = {
    wasmtime.TrapCode.STACK_OVERFLOW: "its call stack overflowed",
    wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS: "it accessed memory out of bounds",
    wasmtime.TrapCode.TABLE_OUT_OF_BOUNDS: "it accessed a table out of bounds",
    wasmtime.TrapCode.INDIRECT_CALL_TO_NULL: "it called a null function",
    wasmtime.TrapCode.BAD_SIGNATURE: "it called a function of another type",
    wasmtime.TrapCode.INTEGER_OVERFLOW: "an integer overflowed",
    wasmtime.TrapCode.INTEGER_DIVISION_BY_ZERO: "it divided by zero",
    wasmtime.TrapCode.BAD_CONVERSION_TO_INTEGER: "it converted a number that no integer can hold",
    wasmtime.TrapCode.UNREACHABLE: "it reached an unreachable instruction (a panic or an abort)",
}


def trap_reason(trap: wasmtime.Trap) -> str:
    """A short name for metrics: the trap code in lower case, or ``host``."""
    code = trap.trap_code
    return "host" if code is None else code.name.lower()


def to_error(error: wasmtime.Trap | wasmtime.WasmtimeError, state: InstanceState) -> WasmServingError:
    """The typed error for what ended a guest. Only the wasm function's name, never its data, is in the message."""
    if state.abort is not None:
        return GuestError("the request was interrupted")
    if isinstance(error, wasmtime.Trap):
        code = error.trap_code
        if code is wasmtime.TrapCode.INTERRUPT:
            return DeadlineExceeded("the guest passed the request's deadline")
        told = state.told()
        if code is wasmtime.TrapCode.UNREACHABLE and told is not None:
            # A guest that panics over an errno has been told why by the host, or has said why itself.
            return told
        # A trap without a code is an exception of the guest's own that it did not catch.
        reason = _last_line(error) if code is None else _TRAPS.get(code, trap_reason(error).replace("_", " "))
        frames = error.frames
        where = f" in {_name(frames[0].func_name)}" if frames and frames[0].func_name else ""
        return GuestTrap(f"the guest trapped{where}: {reason}", trap_reason(error))
    if isinstance(error, wasmtime.ExitTrap):
        return GuestError(f"the guest exited with code {error.code} instead of returning from infer")
    text = _last_line(error)
    if "limit" in text or "exceeds" in text or "grow" in text:
        return GuestLimitExceeded(f"the guest does not fit its limits: {text}")
    return GuestError(f"the guest could not run: {text}")


def _last_line(error: Exception) -> str:
    """The root of ``error``: wasmtime gives it last, below a backtrace with the guest's names."""
    lines = str(error).splitlines()
    return lines[-1].strip()[:300] if lines else "unknown"


class Unbound:
    """The memory of an instance that does not exist yet: a start function calls the host with it."""

    def view(self, _address: int, _length: int) -> memoryview:
        """Raises MemoryFault."""
        raise MemoryFault("a start function cannot hand memory to the host; use _initialize or load")

    def read_u32(self, address: int) -> int:
        """Raises MemoryFault."""
        return self.view(address, 4)[0]

    def write_u32(self, address: int, value: int) -> None:
        """Raises MemoryFault."""
        self.view(address, value)
