from __future__ import annotations

import pytest

from kserve_wasm.batching import OpenScheduler, open_in_process
from tests.batching.conformance import SchedulerConformance


class TestInProcess(SchedulerConformance):
    @pytest.fixture
    def open_scheduler(self) -> OpenScheduler:
        return open_in_process
