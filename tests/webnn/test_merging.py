"""Graphs that say they can run requests together give each request what it gets alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from kserve_wasm.webnn import OperatorError
from kserve_wasm.webnn.operator import OPERATORS
from tests.support.counts import count
from tests.webnn.strategies import batched
from tests.webnn.test_operators import USES
from tests.webnn.uses import Graph, Use, assert_close

EXAMPLES = 20

NEVER = {"gru", "lstm", "nonMaxSuppression", "scatterND", "shape"}
"""Operators that never keep requests apart; the first dimension of a recurrent network's operands is time."""


def merging(use: Use) -> Graph | None:
    """The use as a graph, if it can run requests together."""
    try:
        graph = Graph([use])
    except OperatorError:
        return None
    return graph if graph.program.merges() else None


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_merged_requests_get_what_they_get_alone(name: str) -> None:
    @settings(max_examples=EXAMPLES, derandomize=True)
    @given(batched(USES[name]), st.integers(0, 4))
    def agrees(use: Use, turn: int) -> None:
        graph = merging(use)
        if graph is None:
            return
        first = graph.feeds
        # Other rows of the same operands: whatever the operator takes, it takes them in any order, and repeated.
        second = {key: np.concatenate([np.roll(array, turn, 0), array[:1]]) for key, array in first.items()}
        together = graph.run_with({key: np.concatenate([first[key], second[key]]) for key in first})
        for whole, *parts in zip(together, graph.run_with(first), graph.run_with(second), strict=True):
            assert_close(whole, np.concatenate(parts))
        count("uses of WebNN operators merged")

    agrees()


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_operators_that_can_keep_requests_apart_do(name: str) -> None:
    drawn = settings(max_examples=300, phases=[Phase.generate], derandomize=True, database=None)
    try:
        find(batched(USES[name]), lambda use: merging(use) is not None, settings=drawn)
        found = True
    except NoSuchExample:
        found = False
    assert found == (name not in NEVER)
