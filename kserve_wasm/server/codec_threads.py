"""The threads in which all protocols read and write what is large or compressed.

Of their own: the event loop's default threads load and unload models, which must not wait behind clients' bodies. No
more of them than cores, because work on bytes gains nothing from more, and each holds the body it works on.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

CODEC_THREADS = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2)), thread_name_prefix="codec")
"""Started by need; not for anything that waits."""
