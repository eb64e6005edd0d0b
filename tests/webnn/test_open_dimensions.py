"""Operators whose operands have open dimensions give, for each size of them, what they give for that size."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_wasm.webnn import OperatorError
from kserve_wasm.webnn.operator import OPERATORS
from tests.webnn.strategies import opened
from tests.webnn.test_operators import USES
from tests.webnn.uses import Graph, Use, check

EXAMPLES = 20


def refusal(use: Use) -> str | None:
    """Why the operator does not take the open dimensions, where it does not."""
    try:
        Graph([use])
    except OperatorError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_open_dimensions_give_what_sizes_give(name: str) -> None:
    """Or the operator says, when it is added, that it needs a size: some do for some dimensions, none for all."""
    tried: list[str | None] = []

    @settings(max_examples=EXAMPLES, derandomize=True)
    @given(st.lists(opened(USES[name]), min_size=1, max_size=2))
    def agrees(uses: list[Use]) -> None:
        refusals = [refusal(use) for use in uses]
        tried.extend(refusals)
        check([use for use, problem in zip(uses, refusals, strict=True) if problem is None])

    agrees()
    assert None in tried, tried
