from __future__ import annotations

import pytest

from kserve_wasm.batching import OpenScheduler
from tests.batching.conformance import SchedulerConformance


class TestRay(SchedulerConformance):
    @pytest.fixture
    def open_scheduler(self, open_on_ray: OpenScheduler) -> OpenScheduler:
        return open_on_ray
