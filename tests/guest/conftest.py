from __future__ import annotations

import pytest

from tests.guest.support import BINDINGS


@pytest.fixture(params=sorted(BINDINGS))
def binding(request: pytest.FixtureRequest) -> str:
    """Both ways to the engine: whatever is tested with it must come out the same."""
    return request.param
