"""The manifests of this repository, read as Kubernetes reads them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support import require

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "deploy"

Manifest = dict[str, Any]


def read(path: Path) -> list[Manifest]:
    """Every document of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


RUNTIMES = read(ROOT / "serving_runtime.yaml")
CPU, CUDA = RUNTIMES
SERVICES = {
    path.stem: manifest
    for path in sorted(EXAMPLES.glob("*.yaml"))
    for manifest in read(path)
    if manifest["kind"] == "InferenceService"
}


def container(runtime: Manifest) -> Manifest:
    """The container that serves, of a ServingRuntime."""
    first: Manifest = runtime["spec"]["containers"][0]
    return first


def crd_schema(manifest: Manifest) -> Manifest:
    """The OpenAPI v3 schema of a KServe object, from the folder that KSERVE_CRDS names; skips where it names none."""
    folder = os.environ.get("KSERVE_CRDS", "")
    require(folder, "KSERVE_CRDS names no folder with KServe's CRDs (its repository's config/crd/full)")
    group, version = manifest["apiVersion"].split("/")
    return _schema(Path(folder, f"{group}_{manifest['kind'].lower()}s.yaml"), version)


@cache
def _schema(path: Path, version: str) -> Manifest:
    # The largest has 39 000 lines: PyYAML's own parser takes ten seconds for it.
    crd = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version)
    strict_schema: Manifest = strict(schema)
    return strict_schema


def strict(schema: Any) -> Any:
    """The JSON schema that refuses what an API server with strict field validation refuses.

    A structural schema names every field; others are pruned, so a misspelt one is lost without a word. Kubernetes'
    own ``metadata`` is left open, as the CRD leaves it.
    """
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        result["additionalProperties"] = False
    return result
