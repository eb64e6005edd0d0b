"""The commands and snippets of the pages do what the pages say."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from kserve_wasm.artifact import Limits, load_model_dir
from kserve_wasm.artifact.config import MIB, Batching, Instances
from tests.deploy.manifests import crd_schema
from tests.readme.blocks import MARK, Block, blocks, expected, script
from tests.support.guests import CACHE, ROOT

PAGES = [
    "README.md",
    "docs/deploy.md",
    "docs/guests.md",
    "docs/architecture.md",
    "docs/gpu.md",
    "docs/operators.md",
    "docs/pytorch.md",
    "docs/ray.md",
    "examples/README.md",
]
RUNNING = ["README.md", "docs/guests.md", "docs/operators.md"]


def page(name: str) -> list[Block]:
    return blocks((ROOT / name).read_text())


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A shell in which ``python`` and ``kserve-wasm`` are those of this environment, and servers stop at once."""
    for command, arguments in (("python", ""), ("kserve-wasm", " -m kserve_wasm.cli")):
        path = tmp_path / command
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        path.chmod(0o755)
    ours = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "KSERVE_WASM_HOST": "127.0.0.1",
        "DRAIN_SECONDS": "0",
        "KSERVE_WASM_CACHE_DIR": str(tmp_path / "modules"),
        "ZIG_GLOBAL_CACHE_DIR": str(CACHE / "zig"),
        "ZIG_LOCAL_CACHE_DIR": str(CACHE / "zig"),
    }
    return os.environ | ours


def on_free_ports(text: str) -> str:
    """The text with ports that nobody uses in place of 8080 and 8081."""
    for port in ("8080", "8081"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            text = re.sub(rf"\b{port}\b", str(free.getsockname()[1]), text)
    return text


@pytest.mark.parametrize("name", RUNNING)
def test_the_commands_run_in_order_and_print_what_the_page_shows(
    name: str, environment: dict[str, str]
) -> None:
    text = on_free_ports(script(page(name)))
    done = subprocess.run(
        ["bash"], input=text, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = {int(part.partition("\n")[0]): part.splitlines()[1:] for part in done.stdout.split(MARK)[1:]}
    wanted = expected(page(name))
    assert wanted
    for line, lines in wanted.items():
        missing = [text for text in lines if text not in printed[line]]
        assert not missing, f"{name}:{line} does not print {missing}, but\n" + "\n".join(printed[line])


@pytest.mark.parametrize(
    ("name", "line", "text"),
    [(name, b.line, b.text) for name in PAGES for b in page(name) if b.note == "not-run"],
)
def test_commands_that_are_only_checked_name_files_that_are_there(name: str, line: int, text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for word in re.findall(r"(?:^|\s)((?:hack/)[\w-]+|[\w./-]+\.yaml)", text):
        assert (ROOT / word).is_file(), f"{name}:{line} names {word}"


@pytest.mark.parametrize(
    "line", [b.line for b in page("README.md") if b.language == "yaml" and "kind:" in b.text]
)
def test_the_manifests_satisfy_the_crd(line: int) -> None:
    (block,) = (b for b in page("README.md") if b.line == line)
    manifest = yaml.safe_load(block.text)
    jsonschema.Draft202012Validator(crd_schema(manifest)).validate(manifest)


def test_the_model_yaml_is_one_and_shows_the_defaults(tmp_path: Path) -> None:
    (block,) = (b for b in page("README.md") if b.language == "yaml" and "limits:" in b.text)
    (tmp_path / "model.wasm").write_bytes(b"\0asm\1\0\0\0")
    # Names a graph that only a whole artefact has.
    text = re.sub(r"graphs:\n(?:[ -].*\n)+", "", block.text)
    assert text != block.text
    (tmp_path / "model.yaml").write_text(text)
    (config,) = load_model_dir(tmp_path, "m")
    assert (config.limits, config.instances, config.device) == (Limits(), Instances(), "cpu")
    assert set(yaml.safe_load(text)["limits"]) == set(Limits.__slots__) - {"load_bytes"}
    assert set(yaml.safe_load(text)["instances"]) == set(Instances.__slots__)
    assert config.limits.memory == 256 * MIB
    assert config.batching[""] == Batching()
    assert {"preferred_batch_size", "max_queue_delay"} <= set(yaml.safe_load(text)["batching"])


def test_the_table_of_flags_has_the_servers_flags_defaults_and_variables(environment: dict[str, str]) -> None:
    for variable in ("KSERVE_WASM_HOST", "DRAIN_SECONDS", "KSERVE_WASM_CACHE_DIR"):
        del environment[variable]
    done = subprocess.run(
        [sys.executable, "-m", "kserve_wasm", "--help"],
        env=environment | {"COLUMNS": "1000"}, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = re.findall(
        r"^\| `(--\w+)` \| (?:`(.*?)`)? \| (.*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(rows) >= 10
    for flag, default, variables in rows:
        shown = re.search(rf"^  {flag} .*?\(default: (.*?)\)$", done.stdout, re.MULTILINE | re.DOTALL)
        assert shown is not None, flag
        assert shown[1] == (default or "None"), flag
        names = " or ".join(re.findall(r"`(\w+)`", variables))
        assert f"{flag}: {names}" in done.stdout, flag


def test_the_guests_shown_are_the_examples() -> None:
    shown = [block.text for block in page("README.md") if block.language == "c"]
    for text, name in zip(shown, ("passthrough", "orientation"), strict=True):
        assert text in (ROOT / "examples" / name / f"{name}.c").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text())
    assert links
    for link in links:
        assert (ROOT / name).parent.joinpath(link).exists(), link


def test_an_example_runs_within_the_first_thirty_lines() -> None:
    first = next(b for b in page("README.md") if b.language == "sh" and b.note is None)
    assert first.line + first.text.count("\n") < 30
