from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT
from tests.support import require

ELSEWHERE = {"mlserver"}
"""Imported only in an environment that a benchmark makes for it."""
LOCK = (ROOT / "requirements.lock").read_text()


def imports(folder: str) -> Iterator[tuple[Path, str]]:
    """The top-level name of every absolute import in a folder's Python files."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield path, str(node.module).partition(".")[0]


def requirements(*extras: str) -> set[str]:
    """The distributions that the project asks for directly."""
    wanted = set()
    for line in metadata.requires("kserve-wasm") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if extra is None or extra[1] in extras:
            wanted.add(canonical(re.split(r"[^\w.-]", requirement.strip())[0]))
    return wanted


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def near(path: Path) -> list[Path]:
    """The folders that a script finds modules in: its own, and for an example the one that all share."""
    return [path.parent, *([path.parents[1]] if path.parts[-3] == "examples" else [])]


def fetched(path: Path) -> set[str]:
    """What an example fetches by its own list when it is built."""
    listed = path.with_name("requirements.txt")
    lines = listed.read_text().splitlines() if listed.exists() else []
    return {canonical(line.partition("==")[0]) for line in lines if "==" in line}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("kserve_wasm", ("convert", "torch")),
        ("ray_app", ("ray",)),
        ("tests", ("ray", "test", "torch")),
        ("examples", ("demo",)),
        ("hack", ("test", "torch")),
    ],
)
def test_whatever_is_imported_is_a_dependency(folder: str, extras: tuple[str, ...]) -> None:
    require("ray" not in extras or find_spec("ray"), "ray is not installed: hack/env ray test")
    # What another package happens to bring along may be gone with its next release.
    providers = metadata.packages_distributions()
    ours = {"kserve_wasm", "ray_app", "tests", *ELSEWHERE, *sys.stdlib_module_names}
    undeclared = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path, name in imports(folder)
        if name not in ours
        # torch need not be installed; its distribution has its name.
        and not {canonical(d) for d in providers.get(name, (name,))} & requirements(*extras)
        and not any((beside / f"{name}{end}").exists() for beside in near(path) for end in (".py", ""))
        and canonical(name) not in fetched(path)
    }
    assert not undeclared


def test_the_lock_pins_every_direct_dependency_with_hashes() -> None:
    entries = re.finditer(r"^([\w.-]+)==.*\\\n((?: +--hash=.*\n)+)", LOCK, re.M)
    pins = {canonical(entry[1]): entry[2] for entry in entries}
    asked = requirements("convert", "cuda", "demo", "lint", "ray", "test")
    assert asked <= pins.keys()
    assert all("--hash=sha256:" in hashes for hashes in pins.values())
    assert all(re.match(r"[\w.-]+==", line) for line in re.findall(r"^[^\s#].*", LOCK, re.M))


def test_the_lock_names_no_registry() -> None:
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", LOCK)


@pytest.mark.parametrize(
    "script",
    [
        "hack/check",
        "hack/demo",
        "hack/env",
        "hack/lock",
        "hack/test",
        "hack/test-slow",
        "hack/test-torch",
        ".ci/run",
    ],
)
def test_a_script_is_executable_and_valid_shell(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert subprocess.run(["sh", "-n", path], check=False).returncode == 0
    assert "\nset -eu\n" in path.read_text()
