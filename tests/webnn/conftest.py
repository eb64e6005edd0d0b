"""The number of uses of each operator that were compared with the oracle, printed at the end."""

from __future__ import annotations

import pytest

from tests.webnn.uses import COMPARED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not COMPARED:
        return
    terminalreporter.section(f"WebNN operators: {len(COMPARED)}, uses compared: {COMPARED.total()}")
    cells = [f"{name} {number}" for name, number in sorted(COMPARED.items())]
    width = max(map(len, cells)) + 2
    columns = max(1, 110 // width)
    for first in range(0, len(cells), columns):
        terminalreporter.write_line("".join(cell.ljust(width) for cell in cells[first : first + columns]))
