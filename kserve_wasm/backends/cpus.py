"""How many CPUs this process really has."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cpus() -> int:
    """CPUs that this process may use: its affinity and its cgroup's quota, rounded up; at least 1.

    Of several workers of one server (``KSERVE_WASM_WORKERS``) each has its share.
    """
    return max(1, _all_cpus() // int(os.environ.get("KSERVE_WASM_WORKERS", "1")))


def _all_cpus() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2 here, or the quota is "max"
        return allowed
