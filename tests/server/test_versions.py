"""The version policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_wasm.artifact import ModelConfig
from kserve_wasm.errors import ModelLoadError
from kserve_wasm.server.versions import select_versions


def chosen(policy: object, *versions: str) -> list[str]:
    raw = {} if policy is None else {"version_policy": policy}
    configs = [ModelConfig("m", version, Path("m.wasm"), 8, "sha256:", raw=raw) for version in versions]
    return [config.version for config in select_versions(configs)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (None, ["10"]),
        ("latest", ["10"]),
        ("all", ["1", "2", "10"]),
        ({"latest": 2}, ["2", "10"]),
        ({"latest": 9}, ["1", "2", "10"]),
        ({"specific": [1, "10"]}, ["1", "10"]),
    ],
)
def test_versions_count_as_numbers(policy, expected):
    assert chosen(policy, "10", "1", "2") == expected


@pytest.mark.parametrize(
    "policy",
    ["newest", 3, {}, {"latest": 0}, {"latest": "x"}, {"specific": []}, {"latest": 1, "specific": [1]}, []],
)
def test_another_policy_is_refused(policy):
    with pytest.raises(ModelLoadError, match="version_policy must be all, latest"):
        chosen(policy, "1", "2")


def test_a_model_without_a_version_is_refused():
    with pytest.raises(ModelLoadError, match="no version"):
        chosen("all")


def test_a_specific_version_that_is_absent_is_named():
    with pytest.raises(ModelLoadError, match="names version 7"):
        chosen({"specific": [1, 7]}, "1", "2")


def test_a_version_that_is_no_number_counts_below_all_numbers():
    assert chosen("all", "2", "beta") == ["beta", "2"]
