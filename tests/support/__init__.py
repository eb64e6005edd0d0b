"""What tests of several packages share."""

from __future__ import annotations

import os

import pytest


def require(condition: object, reason: str) -> None:
    """Skips the calling test or module, visibly, unless ``condition`` holds; fails it where KSERVE_WASM_REQUIRE_ALL=1.

    Args:
        condition: whether the optional part that the test needs is there.
        reason: what is missing and how to get it.
    """
    if condition:
        return
    if os.environ.get("KSERVE_WASM_REQUIRE_ALL") == "1":
        pytest.fail(f"KSERVE_WASM_REQUIRE_ALL=1, and {reason}")
    pytest.skip(reason, allow_module_level=True)
