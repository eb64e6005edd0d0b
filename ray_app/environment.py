"""What has to be in the environment before ray is imported: its native code reads it then, and not again."""

from __future__ import annotations

import os
import secrets


def prepare(address: str) -> None:
    """Sets this process's environment for a Ray at ``address``, as :func:`ray_app.cluster.connect` takes it."""
    if address != "local":
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to Ray's makers
    if "RAY_AUTH_MODE" not in os.environ:
        # Ray's own choice, but for its token, which it would write into a home directory that may be read-only.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
