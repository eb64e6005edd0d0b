"""Deadlines between the operators of an exported program, and what they may not write to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import torch

from kserve_wasm.backends.torch.exchange import memory
from kserve_wasm.backends.torch.program import Stopped


class _Run(threading.local):
    """The run of the calling thread."""

    deadline = 0.0
    protected: frozenset[int] | set[int] = frozenset()


_run = _Run()


def run_until(
    forward: Callable[..., Sequence[Any]], weights: frozenset[int], arguments: list[Any], deadline: float
) -> Sequence[Any]:
    """Calls ``forward``, a lowered program, in which :func:`check` and :func:`writable` stand between the operators.

    Args:
        forward: the program.
        weights: the memory of its weights, if it has operators that write in place.
        arguments: what it is called with; of those, too, none is written to.
        deadline: ``time.monotonic()`` seconds.

    Raises:
        Stopped: the deadline passed.
    """
    _run.deadline = deadline
    _run.protected = weights
    if weights:
        _run.protected = weights.union(memory(a) for a in arguments if isinstance(a, torch.Tensor))
    return forward(*arguments)


def check() -> None:
    """Raises Stopped after the deadline of the thread's run."""
    if monotonic() >= _run.deadline:
        raise Stopped


def writable(value: Any) -> Any:
    """``value``, which an operator is going to write to, unless it is memory of the weights or of the request.

    Raises:
        RuntimeError: it is. What a request writes there would change other requests' answers, or its sender's data.
    """
    for tensor in value if isinstance(value, list | tuple) else (value,):
        if isinstance(tensor, torch.Tensor) and tensor.numel() and memory(tensor) in _run.protected:
            raise RuntimeError(
                "an operator writes to a weight or an input in place; export the program with "
                "run_decompositions(), which makes such operators pure"
            )
    return value
