"""What is said of a port that cannot be had."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def naming_flag(flag: str, host: str, port: int) -> Iterator[None]:
    """Name the flag that gave the port, and what to try, in an OSError of what runs inside."""
    try:
        yield
    except OSError as error:
        # Those of the resolver have negative numbers, and texts of their own.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        raise OSError(
            f"--{flag} {port} on --host {host}: {reason}; choose a port that is free (0 takes any) and an address of "
            "this machine"
        ) from None
