"""What every package's tests share: how hypothesis searches, and that kserve stays out of this process."""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder

import pytest
from hypothesis import HealthCheck, settings

from tests.support.counts import TRIED

# No deadline: on a shared machine it would test the machine. The printed blob repeats a failure.
settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


class KServeStaysInTheServer(MetaPathFinder):
    """Refuse to import kserve here: it and ``tritonclient.grpc`` register the same protobuf symbols."""

    def find_spec(self, name: str, _path: object, _target: object = None) -> None:
        """Raise for kserve, and leave every other module to the finders after this one."""
        if name == "kserve":
            raise AssertionError("a test imported kserve into its own process: start a server subprocess")


sys.meta_path.insert(0, KServeStaysInTheServer())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how much the fuzzing and property tests tried, and what a skipped test lacks."""
    if TRIED:
        terminalreporter.section("inputs that fuzzing and property tests made")
    for what, number in sorted(TRIED.items()):
        terminalreporter.write_line(f"{number:>8} {what}")
    if terminalreporter.stats.get("skipped"):
        terminalreporter.section("skipped: what a test lacks is named below")
        terminalreporter.write_line("KSERVE_WASM_REQUIRE_ALL=1 makes failures of them.")
