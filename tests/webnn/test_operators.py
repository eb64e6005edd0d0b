"""Every operator, lowered and run, gives what the oracle gives: over shapes, types, broadcasting and attributes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_wasm.webnn.operator import OPERATORS
from tests.webnn import strategies_arrays, strategies_detection, strategies_elementwise, strategies_networks
from tests.webnn.strategies import placed
from tests.webnn.uses import Use, check

USES = {
    **strategies_elementwise.USES,
    **strategies_arrays.USES,
    **strategies_networks.USES,
    **strategies_detection.USES,
}
EXAMPLES = 40
"""Graphs per operator, of up to four uses each."""


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_lowering_agrees_with_the_oracle(name: str) -> None:
    @settings(max_examples=EXAMPLES, derandomize=True)
    @given(st.lists(placed(USES[name]), min_size=1, max_size=4))
    def agrees(uses: list[Use]) -> None:
        check(uses)

    agrees()
