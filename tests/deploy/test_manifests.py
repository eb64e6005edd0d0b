from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

import kserve_wasm
from tests.deploy.manifests import (
    CPU,
    CUDA,
    EXAMPLES,
    ROOT,
    RUNTIMES,
    SERVICES,
    Manifest,
    container,
    crd_schema,
    read,
)
from tests.support import require

ALL = {runtime["metadata"]["name"]: runtime for runtime in RUNTIMES} | SERVICES
ANY_RUNTIME = pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime["metadata"]["name"])
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@pytest.mark.parametrize("name", ALL)
def test_a_manifest_satisfies_the_crd_and_uses_no_field_that_it_does_not_know(name: str) -> None:
    manifest = ALL[name]
    jsonschema.Draft202012Validator(crd_schema(manifest)).validate(manifest)


def test_the_validation_refuses_a_misspelt_field_a_wrong_type_and_a_missing_field() -> None:
    validator = jsonschema.Draft202012Validator(crd_schema(CPU))
    misspelt, wrong, missing = (copy.deepcopy(CPU) for _ in range(3))
    container(misspelt)["readynessProbe"] = container(misspelt).pop("readinessProbe")
    container(wrong)["args"] = "--http_port=8080"
    del missing["spec"]["containers"]
    for manifest, message in ((misspelt, "readynessProbe"), (wrong, "array"), (missing, "containers")):
        with pytest.raises(jsonschema.ValidationError, match=message):
            validator.validate(manifest)


@ANY_RUNTIME
def test_a_runtime_follows_kserves_conventions(runtime: Manifest) -> None:
    serving = container(runtime)
    assert serving["name"] == "kserve-container"
    assert serving["args"][:3] == ["--model_name={{.Name}}", "--model_dir=/mnt/models", "--http_port=8080"]
    assert runtime["metadata"]["annotations"]["serving.kserve.io/server-type"] == "kserve-wasm"
    assert runtime["spec"]["annotations"] == {
        "prometheus.kserve.io/port": "8080",
        "prometheus.kserve.io/path": "/metrics",
    }
    assert serving["resources"]["requests"] == serving["resources"]["limits"]
    assert all(variable["name"] != "PYTHONPATH" for variable in serving.get("env", []))
    assert not {"initContainers", "serviceAccountName"} & set(runtime["spec"])


@ANY_RUNTIME
def test_a_runtime_uses_nothing_that_knative_refuses(runtime: Manifest) -> None:
    # A second port would be one too many beside the one that an InferenceService names.
    assert not {"lifecycle", "ports", "stdin", "tty", "volumeDevices"} & set(container(runtime))
    assert all(set(volume) == {"name", "emptyDir"} for volume in runtime["spec"]["volumes"])


@ANY_RUNTIME
def test_a_container_runs_restricted_with_a_read_only_root_and_somewhere_to_write(runtime: Manifest) -> None:
    serving = container(runtime)
    assert serving["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    volumes = {volume["name"]: volume for volume in runtime["spec"]["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in serving["volumeMounts"]}
    assert set(mounted) == {"/tmp"}
    assert mounted["/tmp"]["emptyDir"]["sizeLimit"]


def test_the_cuda_runtime_differs_in_what_cuda_needs_alone() -> None:
    expected = copy.deepcopy(CPU)
    expected["metadata"]["name"] += "-cuda"
    # It is chosen by name.
    expected["spec"]["supportedModelFormats"][0] = {"name": "wasm", "version": "1", "autoSelect": False}
    serving = container(expected)
    serving["image"] += "-cuda"
    serving["env"] = [{"name": "GPU_ENABLED", "value": "true"}]
    for side in ("requests", "limits"):
        serving["resources"][side] |= {"memory": "4Gi", "nvidia.com/gpu": "1"}
    assert expected == CUDA


def test_the_images_carry_the_version_of_the_project() -> None:
    assert container(CPU)["image"] == f"kserve-wasm:{kserve_wasm.__version__}"


@ANY_RUNTIME
def test_the_image_runs_as_the_numeric_user_that_run_as_non_root_can_check(runtime: Manifest) -> None:
    assert "runAsUser" not in container(runtime)["securityContext"]
    users = re.findall(r"^USER (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    # Kubernetes cannot tell that a name is not root's.
    assert re.fullmatch(r"[1-9]\d*:0", users[-1])


def test_a_grpc_service_names_the_port_that_the_runtime_listens_on() -> None:
    (port,) = SERVICES["grpc"]["spec"]["predictor"]["model"]["ports"]
    assert port["name"] == "h2c"
    assert f"--grpc_port={port['containerPort']}" in container(CPU)["args"]


def test_only_a_service_in_standard_mode_uses_what_knative_refuses() -> None:
    for name, service in SERVICES.items():
        predictor = service["spec"]["predictor"]
        uses = {"terminationGracePeriodSeconds"} & set(predictor) | {"lifecycle"} & set(predictor["model"])
        mode = service["metadata"].get("annotations", {}).get("serving.kserve.io/deploymentMode")
        assert bool(uses) == (mode == "Standard"), name


def test_every_example_names_a_format_a_protocol_and_a_dns_label() -> None:
    for name, service in SERVICES.items():
        model = service["spec"]["predictor"]["model"]
        assert model["modelFormat"] == {"name": "wasm"}, name
        assert model["protocolVersion"] in CPU["spec"]["protocolVersions"], name
        assert DNS_LABEL.fullmatch(service["metadata"]["name"]), name


def test_every_volume_that_an_example_names_is_made_and_can_be_filled() -> None:
    claim, loader = read(EXAMPLES / "pvc.yaml")
    name = claim["metadata"]["name"]
    (volume,) = loader["spec"]["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": name}
    sources = [service["spec"]["predictor"]["model"]["storageUri"] for service in SERVICES.values()]
    assert {uri.split("/")[2] for uri in sources if uri.startswith("pvc://")} == {name}


def test_the_service_account_that_an_example_names_has_the_secret_beside_it() -> None:
    secret, account, service = read(EXAMPLES / "s3.yaml")
    assert service["spec"]["predictor"]["serviceAccountName"] == account["metadata"]["name"]
    assert account["secrets"] == [{"name": secret["metadata"]["name"]}]


def test_scaling_counts_the_requests_of_the_services_own_pods_a_pod() -> None:
    service = SERVICES["standard"]
    (scaling,) = service["spec"]["predictor"]["autoScaling"]["metrics"]
    query, target = scaling["external"]["metric"]["query"], scaling["external"]["target"]
    assert f'namespace="{service["metadata"]["namespace"]}"' in query
    assert f'model="{service["metadata"]["name"]}"' in query
    # KServe 0.21 reads `value` and lets KEDA take it for a mean, one that follows the type reads `averageValue`.
    assert target["type"] == "AverageValue"
    assert target["value"] == target["averageValue"]


def test_a_kustomization_renames_the_images(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    require(kubectl, "kubectl is not installed")
    shutil.copy(ROOT / "serving_runtime.yaml", tmp_path)
    overlay = {
        "resources": ["serving_runtime.yaml"],
        "images": [{"name": "kserve-wasm", "newName": "here/kserve-wasm"}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    built = subprocess.run(
        [str(kubectl), "kustomize", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    images = {container(runtime)["image"] for runtime in yaml.safe_load_all(built.stdout)}
    assert images == {f"here/{container(runtime)['image']}" for runtime in RUNTIMES}
