"""The examples of ``docs/model-format.md`` are what the readers read."""

from __future__ import annotations

import re
from pathlib import Path

from kserve_wasm.artifact.config import NN_LOAD_BYTES, Instances, Limits
from kserve_wasm.artifact.manifest import parse_manifest
from kserve_wasm.artifact.model_yaml import parse_model_yaml

PAGE = (Path(__file__).parents[2] / "docs" / "model-format.md").read_text()


def example(language: str) -> bytes:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found).encode()


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
    assert set(found.document) == {
        *("module", "name", "version", "inputs", "outputs", "graphs", "device", "limits", "instances"),
        *("parameters", "batching", "nn", "version_policy"),
    }
