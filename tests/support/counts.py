"""How much the fuzzing and property tests tried: printed at the end of the run (see ``tests/conftest.py``)."""

from __future__ import annotations

from collections import Counter

TRIED: Counter[str] = Counter()


def count(what: str, number: int = 1) -> None:
    """Counts ``number`` tries of ``what`` (a plural noun)."""
    TRIED[what] += number
