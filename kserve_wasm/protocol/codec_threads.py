"""The threads in which all protocols read and write what is large or compressed.

Of their own: the event loop's default threads load and unload models, which must not wait behind clients' bodies. No
more of them than cores, because work on bytes gains nothing from more, and each holds the body it works on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from kserve_wasm.backends.cpus import available_cpus

_T = TypeVar("_T")

CODEC_THREADS = ThreadPoolExecutor(max(2, min(8, available_cpus())), thread_name_prefix="codec")
"""Started by need; not for anything that waits."""


async def in_codec_thread(work: Callable[..., _T], *arguments: Any) -> _T:
    """What ``work(*arguments)`` gives, worked out in one of them."""
    return await asyncio.get_running_loop().run_in_executor(CODEC_THREADS, work, *arguments)
