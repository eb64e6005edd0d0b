"""The examples of ``docs/model-format.md`` are what the readers read."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from kserve_wasm.artifact.batching import NOTHING, resolve_batching
from kserve_wasm.artifact.config import NN_LOAD_BYTES, Batching, Instances, Limits
from kserve_wasm.artifact.manifest import parse_manifest
from kserve_wasm.artifact.model_yaml import parse_model_yaml

PAGE = (Path(__file__).parents[2] / "docs" / "model-format.md").read_text()


def example(language: str, number: int = 0) -> bytes:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found[number]).encode()


def test_the_manifest_is_one():
    manifest = parse_manifest(example("json"))
    assert manifest.graphs[0].weights[0].offset == 65536


def test_model_yaml_shows_every_key_and_the_defaults():
    text = example("yaml")
    found = parse_model_yaml(text)
    assert (found.limits, found.instances) == (Limits(), Instances())
    assert (
        parse_model_yaml(text.replace(b"allow_load: false", b"allow_load: true")).limits.load_bytes
        == NN_LOAD_BYTES
    )
    assert found.graphs[1].weights == "graphs/tokens.bin"
    batching = resolve_batching(NOTHING, found.batching, [graph.name for graph in found.graphs])
    assert batching == {
        "": Batching(declared=True),
        "default": Batching(declared=True),
        "tokens": Batching(max_batch_size=1),
    }
    assert set(found.document) == {
        *("module", "name", "version", "inputs", "outputs", "graphs", "device", "limits", "instances"),
        *("parameters", "batching", "nn", "version_policy"),
    }


def test_what_config_pbtxt_says_is_understood():
    found = parse_model_yaml(example("yaml", 1))
    assert resolve_batching(NOTHING, found.batching, [])[""] == Batching(
        max_batch_size=16,
        preferred_batch_size=(4, 8),
        max_queue_delay=0.0005,
        adaptive=False,
        declared=True,
    )


OPTIONS = {
    cells[0].strip("`"): cells[1:]
    for cells in (
        [cell.strip() for cell in line.strip("|").split(" |")]
        for line in re.findall(r"^\| `\w+` \|(?:.*\|){5}$", PAGE, re.MULTILINE)
    )
}


def batching(options: object) -> Batching:
    said = parse_model_yaml(yaml.safe_dump({"batching": options}).encode()).batching
    return resolve_batching(NOTHING, said, ())[""]


def test_every_batching_option_is_listed():
    names = {field.name for field in fields(Batching)} - {"declared"} | {"enabled"}
    assert set(OPTIONS) == names
    shown = yaml.safe_load(example("yaml"))["batching"]
    assert set(shown) == names | {"graphs"}


@pytest.mark.parametrize(
    ("option", "column", "other"),
    [
        (option, column, name)
        for option, cells in OPTIONS.items()
        for column, name in enumerate(cells[-3:])
        if name
    ],
)
def test_the_names_of_other_servers_mean_what_is_said(option: str, column: int, other: str):
    value: object = [4, 8] if option == "preferred_batch_size" else 2
    theirs = 2_000_000 if "microseconds" in other else value
    path = re.findall(r"\w+", other)
    nested: object = theirs
    for key in reversed(path):
        nested = {key: nested}
    levels = {"priority_levels": 3} if option == "default_priority_level" else {}
    assert batching({**levels, **nested}) == batching({**levels, option: value})
    if column == 0 and option != "max_batch_size":  # Triton's, as it stands in config.pbtxt
        assert batching({"dynamic_batching": {**levels, **nested}}) == batching({**levels, option: value})
    assert batching({option: value, **levels}) != Batching()
