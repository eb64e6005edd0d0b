"""The manifests and the config file for Ray say the same, and what Ray and our code know."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest
import yaml

from tests.deploy.manifests import EXAMPLES, ROOT, SERVICES, read
from tests.support import require

CONFIG = yaml.safe_load((ROOT / "ray_app" / "config.yaml").read_text())
(RAY_SERVICE,) = read(EXAMPLES / "rayservice.yaml")


def test_the_rayservice_carries_the_config_file() -> None:
    assert yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"]) == CONFIG


def test_the_config_is_one_that_ray_and_the_application_take() -> None:
    require(find_spec("ray"), "ray is not installed: hack/env ray test")
    from ray.serve.schema import ServeDeploySchema

    from ray_app.application import Arguments

    config = ServeDeploySchema.model_validate(CONFIG)
    (application,) = config.applications
    assert application.name == import_module("ray_app.cluster").APPLICATION
    Arguments.model_validate(application.args)
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(import_module(module), name))
    for path in config.grpc_options.grpc_servicer_functions:
        module, _, name = path.partition(":")
        assert callable(getattr(import_module(module), name))


def test_the_versions_are_those_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert f"\nray=={RAY_SERVICE['spec']['rayClusterConfig']['rayVersion']} " in lock


def test_ingresses_find_the_models_where_they_look_for_them() -> None:
    (workers,) = RAY_SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == CONFIG["applications"][0]["args"]["model_dir"]
    head = RAY_SERVICE["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"  # no ingress goes where there is no volume


@pytest.mark.parametrize("part", ["head", "workers", "service"])
def test_every_pod_has_the_token(part: str) -> None:
    cluster = RAY_SERVICE["spec"]["rayClusterConfig"]
    pods = {
        "head": cluster["headGroupSpec"]["template"]["spec"]["containers"],
        "workers": cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"],
        "service": [SERVICES["ray"]["spec"]["predictor"]["model"]],
    }
    environment = {entry["name"]: entry for entry in pods[part][0]["env"]}
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "ray-auth", "key": "token"}


def test_the_service_has_room_for_rays_object_store() -> None:
    predictor = SERVICES["ray"]["spec"]["predictor"]
    (volume,) = predictor["volumes"]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert predictor["model"]["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
    assert "--scheduler=ray" in predictor["model"]["args"]
