"""The commands of docs/deploy.md, run with a docker and a kubectl that write down what they are asked for."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.manifests import crd_schema
from tests.readme.blocks import Block, blocks
from tests.support.guests import ROOT

PAGE = blocks((ROOT / "docs" / "deploy.md").read_text())
COMMANDS = [block for block in PAGE if block.language == "sh"]
RECORD = """#!/bin/sh
echo "${0##*/} $*" >>"$RECORDED/commands"
case "$*" in
    "apply -f -") echo --- >>"$RECORDED/applied"; cat >>"$RECORDED/applied" ;;
    "apply -f "*) echo --- >>"$RECORDED/applied"; cat "$3" >>"$RECORDED/applied" ;;
    "get pod"*) echo pod/one; echo pod/two ;;
    port-forward*) exec sleep 60 ;;
esac
"""


class Done:
    """What the page's commands did, in order.

    Attributes:
        commands: those given to docker and kubectl.
        applied: the manifests given to ``kubectl apply``.
    """

    def __init__(self, page: list[Block], folder: Path) -> None:
        for name, text in (("docker", RECORD), ("kubectl", RECORD), ("curl", "#!/bin/sh\n")):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        script = "\n".join(["set -euo pipefail", *(block.text for block in page)])
        # The one line to be filled in.
        script, filled = re.subn(r"^REGISTRY=\S+", "REGISTRY=here:5000/team", script, flags=re.MULTILINE)
        assert filled == 1
        environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "RECORDED": str(folder)}
        done = subprocess.run(
            ["bash"], input=script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        self.commands = (folder / "commands").read_text().splitlines()
        self.applied: list[dict[str, Any]] = [
            m for m in yaml.safe_load_all((folder / "applied").read_text()) if m
        ]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(COMMANDS, tmp_path_factory.mktemp("deploy"))


def images(done: Done, command: str) -> list[str]:
    found = (re.search(rf"^docker {command} .*?(here:5000/\S+)", line) for line in done.commands)
    return [match[1] for match in found if match]


def test_every_image_is_built_and_pushed_before_a_manifest_names_it(done: Done) -> None:
    assert images(done, "build") == images(done, "push")
    assert len(images(done, "push")) == 3
    named = set(re.findall(r"(?:oci://|image: |'image': ')(here:5000/[^\s']+)", str(done.applied)))
    assert named == set(images(done, "push"))


def test_nothing_that_is_applied_is_a_placeholder(done: Done) -> None:
    assert "example.com" not in str(done.applied)
    assert "replace-me" not in str(done.applied)


def test_what_is_applied_satisfies_the_crds(done: Done) -> None:
    ours = [m for m in done.applied if m["apiVersion"].startswith("serving.kserve.io/")]
    assert {m["kind"] for m in ours} == {"ClusterServingRuntime", "InferenceService"}
    for manifest in ours:
        jsonschema.Draft202012Validator(crd_schema(manifest)).validate(manifest)


def test_commands_name_what_was_applied_before(done: Done) -> None:
    there = {f"{m['kind'].lower()}/{m['metadata']['name']}" for m in done.applied}
    waited = [name for line in done.commands for name in re.findall(r" wait \S+ (\S+)", line)]
    assert waited == ["pod/models-loader", "inferenceservice/magika"]
    assert set(waited) <= there
    (claim,) = (m["metadata"]["name"] for m in done.applied if m["kind"] == "PersistentVolumeClaim")
    (loader,) = (m for m in done.applied if m["kind"] == "Pod")
    (mount,) = loader["spec"]["containers"][0]["volumeMounts"]
    (copy,) = (line for line in done.commands if line.startswith("kubectl cp "))
    # Copied into a folder that is there, the folder keeps its name: what the storage URI says.
    assert copy == f"kubectl cp build/magika {loader['metadata']['name']}:{mount['mountPath']}"
    (first,) = (m for m in done.applied if m["metadata"]["name"] == "magika")
    assert first["spec"]["predictor"]["model"]["storageUri"] == f"pvc://{claim}/magika"
