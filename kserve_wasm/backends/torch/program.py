"""What both formats come to: something to call, and what it takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from kserve_wasm.tensors import Tensor, TensorSpec

Call: TypeAlias = Callable[[list[Any], float], Sequence[Any]]
"""Arguments (tensors, and numbers where the program takes them), and a deadline in ``time.monotonic()`` seconds; gives
the outputs. Raises :class:`Stopped` once the deadline has passed."""


class Stopped(Exception):
    """The deadline passed, and the run was given up between two operators."""


@dataclass(frozen=True, slots=True)
class Program:
    """An opened program.

    Attributes:
        call: runs it, on the calling thread; any number of threads may.
        inputs: what it takes, in order.
        outputs: what it gives, in order.
        numbers: the inputs that it takes as Python numbers, by name; clients send them as scalars.
        check: raises InvalidRequest where the sizes of the inputs' dimensions do not go together.
    """

    call: Call
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    numbers: frozenset[str] = frozenset()
    check: Callable[[Sequence[Tensor]], None] = field(default=lambda _: None)
