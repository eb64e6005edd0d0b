"""The graphs that one instance has in the making."""

from __future__ import annotations

from kserve_wasm.webnn import Builder

FAILED = 0xFFFFFFFF
"""``ML_FAILED``: what an operator that failed gives in place of an operand."""


class UnknownOperand(Exception):
    """The guest named an operand that there is not."""


class FailedOperand(UnknownOperand):
    """The guest passed on what a call that failed gave: no reason of its own."""


class Building:
    """Builders and their operands by handle.

    Attributes:
        builders: by handle.
        failures: why the first call failed that was to add to a builder.
        failure: why the last call failed that named no builder that there is.
    """

    __slots__ = ("_constant_bytes", "_operands", "builders", "failure", "failures")

    def __init__(self) -> None:
        self.builders: dict[int, Builder] = {}
        self.failures: dict[Builder, str] = {}
        self.failure = ""
        self._operands: dict[int, tuple[Builder, int]] = {}
        self._constant_bytes: dict[Builder, int] = {}

    def keep(self, handle: int, builder: Builder, number: int) -> int:
        """Gives the operand ``number`` of a builder a handle, which is returned."""
        self._operands[handle] = (builder, number)
        return handle

    def find(self, handle: int, name: str) -> tuple[Builder, int]:
        """The operand's builder, and its number there. Raises UnknownOperand; ``name`` is for its message."""
        found = self._operands.get(handle)
        if found is not None:
            return found
        if handle == FAILED:
            raise FailedOperand(f"{name} is what a call that failed gave")
        raise UnknownOperand(f"{name}: {handle} is not the handle of an operand")

    def add_constant(self, builder: Builder, nbytes: int) -> None:
        """Counts a constant's bytes."""
        self._constant_bytes[builder] = self._constant_bytes.get(builder, 0) + nbytes

    def end(self, builder: Builder) -> int:
        """Forgets a builder's operands; the bytes of its constants are returned."""
        if len(self.builders):
            self._operands = {h: found for h, found in self._operands.items() if found[0] is not builder}
        else:
            self._operands.clear()
        self.failures.pop(builder, None)
        return self._constant_bytes.pop(builder, 0)

    def clear(self) -> int:
        """Forgets everything; the bytes of all constants are returned."""
        freed = sum(self._constant_bytes.values())
        self.builders.clear()
        self._operands.clear()
        self._constant_bytes.clear()
        self.failures.clear()
        self.failure = ""
        return freed
