from __future__ import annotations

import copy

import pytest

from tests.deploy.manifests import CPU, CUDA, RUNTIMES, SERVICES, Manifest
from tests.deploy.selection import conflicts, supporting

# The runtimes that KServe installs (its config/runtimes): name → (protocols, [(format, version, priority)]).
STANDARD = {
    "kserve-sklearnserver": ("v1 v2", [("sklearn", "1", 3)]),
    "kserve-lgbserver": ("v1 v2", [("lightgbm", "4", 3)]),
    "kserve-xgbserver": ("v1 v2", [("xgboost", "1", 3)]),
    "kserve-pmmlserver": ("v1 v2", [("pmml", "3", 1), ("pmml", "4", 1)]),
    "kserve-paddleserver": ("v1 v2", [("paddle", "2", 1)]),
    "kserve-huggingfaceserver": ("v1 v2", [("huggingface", "1", 1)]),
    "kserve-torchserve": ("v1 v2 grpc-v2", [("pytorch", "1", 2)]),
    "kserve-tensorflow-serving": ("v1 grpc-v1", [("tensorflow", "1", 2), ("tensorflow", "2", 2)]),
    "kserve-predictiveserver": ("v1 v2", [("sklearn", "1", 1), ("xgboost", "2", 1), ("lightgbm", "4", 1)]),
    "kserve-mlserver": (
        "v2",
        [
            ("sklearn", "0", 2),
            ("sklearn", "1", 2),
            ("xgboost", "1", 2),
            ("lightgbm", "3", 2),
            ("mlflow", "1", 1),
        ],
    ),
    "kserve-tritonserver": (
        "v2 grpc-v2",
        [("tensorrt", "8", 1), ("tensorflow", "1", 1), ("onnx", "1", 1), ("triton", "2", 1)],
    ),
}
INSTALLED: list[Manifest] = [
    {
        "kind": "ClusterServingRuntime",
        "metadata": {"name": name},
        "spec": {
            "protocolVersions": protocols.split(),
            "supportedModelFormats": [
                {"name": model, "version": version, "priority": priority, "autoSelect": True}
                for model, version, priority in formats
            ],
        },
    }
    for name, (protocols, formats) in STANDARD.items()
]
PROTOCOLS = ["v1", "v2", "grpc-v1", "grpc-v2"]
FORMATS = sorted({model for _, formats in STANDARD.values() for model, _, _ in formats})


def service(model: str, **fields: object) -> Manifest:
    return {"spec": {"predictor": {"model": {"modelFormat": {"name": model}, **fields}}}}


@pytest.mark.parametrize("protocol", [None, "v1", "v2", "grpc-v2"])
@pytest.mark.parametrize("version", [None, "1"])
def test_wasm_is_served_by_this_runtime(protocol: str | None, version: str | None) -> None:
    wanted = service("wasm", **({"protocolVersion": protocol} if protocol else {}))
    if version:
        wanted["spec"]["predictor"]["model"]["modelFormat"]["version"] = version
    assert supporting(INSTALLED + RUNTIMES, wanted) == ["kserve-wasm"]


@pytest.mark.parametrize(
    "wanted",
    [
        service("Wasm"),
        service("wasm", protocolVersion="grpc-v1"),
        {"spec": {"predictor": {"model": {"modelFormat": {"name": "wasm", "version": "2"}}}}},
    ],
    ids=["case", "protocol", "version"],
)
def test_nothing_is_chosen_for_what_no_runtime_serves(wanted: Manifest) -> None:
    assert supporting(INSTALLED + RUNTIMES, wanted) == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", FORMATS)
def test_other_formats_keep_their_runtimes(model: str, protocol: str) -> None:
    wanted = service(model, protocolVersion=protocol)
    assert supporting(INSTALLED + RUNTIMES, wanted) == supporting(INSTALLED, wanted)


def test_known_choices_of_kserve_come_out_of_these_rules() -> None:
    # What KServe's documentation says of its own runtimes.
    assert supporting(INSTALLED, service("sklearn"))[0] == "kserve-sklearnserver"
    assert supporting(INSTALLED, service("mlflow", protocolVersion="v2")) == ["kserve-mlserver"]
    assert supporting(INSTALLED, service("tensorflow"))[0] == "kserve-tensorflow-serving"
    assert supporting(INSTALLED, service("tensorflow", protocolVersion="v2")) == ["kserve-tritonserver"]
    assert supporting(INSTALLED, service("onnx")) == []


def test_the_cuda_runtime_is_taken_by_its_name_alone() -> None:
    assert supporting(INSTALLED + RUNTIMES, SERVICES["gpu"]) == ["kserve-wasm-cuda"]
    assert supporting([*INSTALLED, CUDA], service("wasm")) == []


def test_a_runtime_of_the_services_own_namespace_comes_before_the_clusters() -> None:
    own = copy.deepcopy(CPU)
    own["kind"] = "ServingRuntime"
    own["metadata"]["name"] = "own"
    assert supporting([*RUNTIMES, own], service("wasm"))[0] == "own"


def test_the_webhook_accepts_the_runtimes_beside_kserves_own() -> None:
    assert conflicts(INSTALLED + RUNTIMES) == []
    rival = copy.deepcopy(CPU)
    rival["metadata"]["name"] = "rival"
    rival["spec"]["supportedModelFormats"][0]["name"] = "WASM"
    assert conflicts([CPU, rival]) == [("kserve-wasm", "rival", "WASM")]


def test_within_a_runtime_a_format_has_one_priority() -> None:
    # The webhook refuses more.
    for runtime in RUNTIMES:
        priorities = {f["name"]: set() for f in runtime["spec"]["supportedModelFormats"]}
        for supported in runtime["spec"]["supportedModelFormats"]:
            priorities[supported["name"]].add(supported.get("priority"))
        assert all(len(values) == 1 for values in priorities.values())


@pytest.mark.parametrize("name", SERVICES)
def test_every_example_finds_its_runtime(name: str) -> None:
    chosen = supporting(INSTALLED + RUNTIMES, SERVICES[name])
    assert chosen[0] == ("kserve-wasm-cuda" if name == "gpu" else "kserve-wasm")
