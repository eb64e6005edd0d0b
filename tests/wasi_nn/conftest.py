from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.wasi_nn.support import Guest


@pytest.fixture
def make_guest() -> Iterator[Any]:
    """Guests that are closed at the end."""
    made: list[Guest] = []

    def make(*arguments: Any, **keywords: Any) -> Guest:
        made.append(Guest(*arguments, **keywords))
        return made[-1]

    yield make
    for guest in made:
        guest.close()
