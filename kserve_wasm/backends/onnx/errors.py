"""ONNX Runtime's messages, made fit for a client."""

from __future__ import annotations

import re
from pathlib import Path

_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(
    r"\S+\.(?:cc|cpp|h|cu|cuh):\d+ "
)  # where in ONNX Runtime's own code, with its build host's path
_LONGEST = 600


def plain(error: Exception, *hidden: Path) -> str:
    """The message of ``error`` on one line, without status prefix, source lines and the paths in ``hidden``."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = _SOURCE.sub("", _STATUS.sub("", text))
    for path in hidden:
        text = text.replace(f"{path}/", "").replace(str(path), "the model's folder")
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
