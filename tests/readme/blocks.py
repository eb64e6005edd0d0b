"""The fenced blocks of a Markdown page, and the shell script that they make."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "--- block of line "


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: the first word behind the fence.
        note: the second: ``not-run``, or the file that the block is.
        text: what it holds.
        line: where it begins, from 1.
        follows: whether nothing but blank lines is between it and the block before.
    """

    language: str
    note: str | None
    text: str
    line: int
    follows: bool


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    found, end = [], 0
    for match in FENCE.finditer(page):
        follows = bool(found) and not page[end : match.start()].strip()
        found.append(Block(match[1], match[2], match[3], page.count("\n", 0, match.start()) + 1, follows))
        end = match.end()
    return found


def script(page: list[Block]) -> str:
    """All blocks that run, as one bash script that stops at the first command that fails."""
    parts = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT"]
    for block in page:
        if block.note == "not-run":
            continue
        parts.append(f"echo '{MARK}{block.line}'")
        if block.language == "sh":
            parts.append(block.text)
        elif block.language == "python":
            parts.append(f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
        elif block.language == "c" and block.note:
            parts.append(f"mkdir -p {Path(block.note).parent}")
            parts.append(f"cat >{block.note} <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
    return "\n".join(parts) + "\n"


def expected(page: list[Block]) -> dict[int, list[str]]:
    """For blocks that a block of ``text`` follows: the line of the block, and the lines it must print."""
    return {
        block.line: after.text.splitlines()
        for block, after in pairwise(page)
        if after.language == "text" and after.follows
    }
