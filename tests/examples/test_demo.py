"""The demo, as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

from tests.support.guests import ROOT


def demo(*arguments: str) -> str:
    """Run hack/demo in this environment; what it prints."""
    done = subprocess.run(
        [sys.executable, "hack/_demo.py", *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_demo_answers_as_magika_does_and_stops_by_itself() -> None:
    printed = demo()
    (right, asked) = re.findall(r"^(\d+) of the (\d+) files were answered as magika", printed, re.MULTILINE)[
        0
    ]
    assert right == asked
    assert int(asked) >= 60
    (announced, shown) = re.findall(
        r"^asking   about (\d+) files .*; (\d+) of them:$", printed, re.MULTILINE
    )[0]
    table = printed.partition("gRPC ms\n")[2].partition("\n\n")[0]
    assert (announced, int(shown)) == (asked, len(table.splitlines()))
    assert "it says 422" in printed
    assert printed.splitlines()[-1] == "stopped  with exit status 0"


def test_the_demo_that_is_kept_answers_the_commands_that_it_prints() -> None:
    table, _, kept = demo("--keep").partition("It goes on running; ")
    pid = int(re.findall(r"kill (\d+)", kept)[0])
    try:
        assert "stopped" not in table
        commands = kept.partition("\n")[2].replace(".venv/bin/python", sys.executable)
        done = subprocess.run(
            ["bash", "-euo", "pipefail"], input=commands, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        for answer in ('["shell","sql"]', '"label":"python"', "[b'elf']"):
            assert answer in done.stdout
    finally:
        os.kill(pid, signal.SIGTERM)
