"""PyTorch's messages, made fit for a client."""

from __future__ import annotations

import re

_FRAMES = re.compile(r"\n?(?:Exception raised from|C\+\+ CapturedTraceback|frame #\d+:).*", re.DOTALL)
_INTERPRETER = re.compile(r".*Traceback of TorchScript.*\n(?:builtins\.)?(?=[\w.]+: )", re.DOTALL)
"""The interpreter's way to the operator that failed: it quotes the sources of the model and of PyTorch."""
_PATH = re.compile(r"""(?<![\w.])/(?:[\w.+@<>-]+/)+[\w.+@<>-]*(?::\d+)?:?""")
_LONGEST = 600


def plain(error: Exception) -> str:
    """The message of ``error`` on one line, without C++ frames, TorchScript's traceback and paths of a host."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = _PATH.sub("", _FRAMES.sub("", _INTERPRETER.sub("", text)))
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
