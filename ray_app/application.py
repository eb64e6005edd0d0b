"""The Serve application: executors, and the ingress before them."""

# No postponed annotations here: Ray reads the builder's to convert its arguments.

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from ray_app.cluster import executors
from ray_app.executor import MAX_GRAPHS
from ray_app.ingress import WasmIngress


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Executors(_Arguments):
    """How many executors there are, and what each has."""

    num_cpus: Annotated[float, Field(ge=0, description="CPUs that each reserves")] = 1.0
    num_gpus: Annotated[
        float | None, Field(ge=0, description="GPUs that each reserves; one where `gpu` is set")
    ] = None
    min_replicas: Annotated[int, Field(ge=1, description="how many there are at least")] = 1
    max_replicas: Annotated[int, Field(ge=1, description="how many there are at most, under load")] = 4
    max_graphs: Annotated[int, Field(ge=1, description="graphs that each keeps open")] = MAX_GRAPHS
    max_queued_requests: Annotated[
        int, Field(ge=-1, description="computations that one ingress lets wait; more get 429. -1: any number")
    ] = -1


class Ingresses(_Arguments):
    """How many ingresses there are, and what each has."""

    num_cpus: Annotated[float, Field(ge=0, description="CPUs that each reserves")] = 1.0
    min_replicas: Annotated[int, Field(ge=1, description="how many there are at least")] = 1
    max_replicas: Annotated[int, Field(ge=1, description="how many there are at most, under load")] = 4


class Arguments(_Arguments):
    """What the application is told: `args` in the config file, or `name=value` behind `serve run ray_app:app`."""

    model_dir: Annotated[Path, Field(description="a model directory, or a directory of them")] = Path(
        "/mnt/models"
    )
    model_name: Annotated[str | None, Field(description="the one model's name")] = None
    gpu: Annotated[bool, Field(description="graphs run on the GPU where model.yaml names no device")] = False
    request_timeout: Annotated[
        float | None, Field(gt=0, description="seconds that no model's timeout goes beyond")
    ] = None
    cache_dir: Annotated[Path | None, Field(description="where compiled modules are kept")] = None
    executors: Executors = Executors()
    ingress: Ingresses = Ingresses()

    def flags(self) -> list[str]:
        """The flags of `kserve-wasm serve` that mean the same."""
        names = ("model_dir", "model_name", "gpu", "request_timeout", "cache_dir")
        given = [f"--{name}={value}" for name in names if (value := getattr(self, name)) is not None]
        return ["--scheduler=ray", *given]


def app(arguments: Arguments) -> Any:
    """Builds the application."""
    ingress = serve.deployment(
        WasmIngress,
        name="WasmIngress",
        # Ray's default of 5 would let no batch grow beyond that.
        max_ongoing_requests=512,
        ray_actor_options={"num_cpus": arguments.ingress.num_cpus},
        autoscaling_config={
            "min_replicas": arguments.ingress.min_replicas,
            "max_replicas": arguments.ingress.max_replicas,
            "target_ongoing_requests": 64,
        },
        graceful_shutdown_timeout_s=20,
    )
    return ingress.bind(arguments.flags(), executors(gpu=arguments.gpu, **dict(arguments.executors)))
