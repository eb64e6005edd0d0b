"""What the server is told when it starts: every setting, its default and its environment variable, once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

MIB = 1 << 20

_MODEL_DIR = Path("/mnt/models")

_ENVIRONMENT = {
    "model_name": ("MODEL_NAME",),
    "model_dir": ("MODEL_DIR", "MODEL_PATH"),
    "gpu": ("GPU_ENABLED",),
    "host": ("KSERVE_WASM_HOST",),
    "http_port": ("HTTP_PORT",),
    "grpc_port": ("GRPC_PORT",),
    "enable_grpc": ("ENABLE_GRPC",),
    "workers": ("WORKERS",),
    "scheduler": ("SCHEDULER",),
    "ray_address": ("KSERVE_WASM_RAY_ADDRESS",),
    "cache_dir": ("KSERVE_WASM_CACHE_DIR",),
    "max_request_bytes": ("MAX_REQUEST_BYTES",),
    "request_timeout": ("REQUEST_TIMEOUT",),
    "drain_seconds": ("DRAIN_SECONDS",),
    "grace_period": ("GRACE_PERIOD",),
    "log_requests": ("LOG_REQUESTS",),
}
"""The environment variables that give a flag its default; the first that is set counts."""

_WITHOUT_EFFECT = {
    "enable_latency_logging",
    "enable_predictor_health_check",
    "max_threads",
    "predictor_host",
    "predictor_protocol",
    "predictor_request_retries",
    "predictor_request_timeout_seconds",
    "predictor_use_ssl",
    "protocol",
}
"""KServe's flags for transformers and for its own gRPC server and log: taken, as manifests may give them, not shown."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one server process.

    Attributes:
        model_name: the name of the one model; None when ``model_dir`` holds a directory of models.
        model_dir: the model directory, or the directory of model directories.
        gpu: run the graphs of models whose ``model.yaml`` names no device on the GPU.
        ray_address: where the Ray cluster is that runs the graphs (``auto``, ``local``, ``HOST:PORT``); None runs them
            in this process.
        host: the address to listen on.
        http_port: the port for REST; 0 takes a free one.
        grpc_port: the port for gRPC, or None for no gRPC.
        cache_dir: where compiled modules are kept; None compiles at every load.
        max_request_bytes: the largest request, over any protocol.
        request_timeout: seconds that no model's own timeout goes beyond; None leaves it to the models.
        drain_seconds: seconds between SIGTERM, at which the server stops being ready, and the end of accepting.
        grace_period: seconds that running requests have after that.
        log_requests: write a log line for each request.
        sdk: the flags of KServe's own parser.
    """

    model_name: str | None
    model_dir: Path
    gpu: bool
    ray_address: str | None
    host: str
    http_port: int
    grpc_port: int | None
    cache_dir: Path | None
    max_request_bytes: int
    request_timeout: float | None
    drain_seconds: float
    grace_period: float
    log_requests: bool
    sdk: argparse.Namespace


def make_parser(
    sdk: argparse.ArgumentParser, environment: Mapping[str, str] | None = None
) -> argparse.ArgumentParser:
    """Make the parser of ``kserve-wasm serve``: KServe's flags and ours.

    Args:
        sdk: ``kserve.model_server.parser``.
        environment: ``os.environ``, unless given.
    """
    environment = os.environ if environment is None else environment
    parser = _Parser(
        prog="kserve-wasm serve",
        description="Serve WebAssembly models over V1, V2 REST and V2 gRPC.",
        epilog="Defaults come from the environment: "
        + ", ".join(f"--{flag}: {' or '.join(names)}" for flag, names in _ENVIRONMENT.items())
        + ".",
        parents=[sdk],
        # A flag that is added later must not change what an abbreviation means, and a typo must be an error.
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    checked = {"http_port": _port, "grpc_port": _port, "model_name": _model_name}
    for action in parser._actions:
        if action.dest in _WITHOUT_EFFECT:
            action.help = argparse.SUPPRESS
        action.type = checked.get(action.dest, action.type)
    ours = parser.add_argument_group("model serving")
    ours.add_argument(
        "--model_dir",
        type=Path,
        default=_MODEL_DIR,
        help="A model directory: the model's name is --model_name, or else what model.yaml or the .wasm file says, or "
        "else the directory's. Or a directory of such directories: then each model has its directory's name, "
        "and --model_name has no effect.",
    )
    ours.add_argument(
        "--gpu",
        type=_boolean,
        default=False,
        metavar="BOOL",
        help="Run graphs on the GPU where model.yaml names no device.",
    )
    ours.add_argument(
        "--scheduler",
        choices=("inprocess", "ray"),
        default="inprocess",
        help="Where graphs run: in this process, or on the executors of a Ray cluster (needs the extra 'ray').",
    )
    ours.add_argument(
        "--ray_address",
        type=_ray_address,
        default="auto",
        metavar="auto|local|HOST:PORT",
        help="With --scheduler ray: the Ray node that runs on this machine, one of this server's own, or a cluster "
        "that this machine joins.",
    )
    ours.add_argument("--host", default="0.0.0.0", help="The address to listen on.")  # noqa: S104  (a server in a pod)
    ours.add_argument(
        "--cache_dir",
        type=Path,
        default=Path(environment.get("XDG_CACHE_HOME") or "~/.cache", "kserve_wasm"),
        help="Where compiled modules are kept. Must belong to this user alone; without it each start compiles.",
    )
    ours.add_argument(
        "--max_request_bytes",
        type=_positive(int),
        # Room for a batch of images as FP32; each request in flight holds this much memory a few times.
        default=256 * MIB,
        help="The largest request over REST, and over gRPC unless --grpc_max_receive_message_length is given.",
    )
    ours.add_argument(
        "--request_timeout",
        type=_positive(float),
        default=None,
        help="Seconds that no request may take longer than, whatever its model's own timeout is.",
    )
    ours.add_argument(
        "--drain_seconds",
        type=_not_negative(float),
        default=5.0,
        help="Seconds after SIGTERM in which the server is not ready but still accepts: the time that load balancers "
        "need to hear of it. 0 where a preStop hook waits already. Ctrl+C (SIGINT) does not wait.",
    )
    ours.add_argument(
        "--grace_period",
        type=_not_negative(float),
        default=20.0,
        help="Seconds that running requests have after that. Both together must stay below the pod's "
        "terminationGracePeriodSeconds.",
    )
    ours.add_argument(
        "--log_requests",
        type=_boolean,
        default=False,
        nargs="?",
        const=True,
        metavar="BOOL",
        help="Write a log line for each request. Costs about a fifth of the throughput.",
    )
    # The SDK's default of 8 MiB refuses a batch of a dozen images; -1 because the client limits what it accepts.
    parser.set_defaults(
        model_name=None, grpc_max_receive_message_length=None, grpc_max_send_message_length=-1
    )
    for flag in _ENVIRONMENT:
        value = _from_environment(flag, environment)
        if value is not None:
            # argparse converts text defaults as it converts arguments, errors included.
            parser.set_defaults(**{flag: value})
    return parser


def count_workers(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Read ``--workers`` alone, without KServe's parser; 1 where it is wrong, as :func:`parse_settings` then says."""
    environment = os.environ if environment is None else environment
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--workers", type=int, default=_from_environment("workers", environment) or 1)
    try:
        return int(parser.parse_known_args(argv)[0].workers)
    except argparse.ArgumentError:
        return 1


def parse_settings(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Settings:
    """Read the settings; ends the process with status 2 and a message when one is wrong."""
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error(f"--workers must be 1 or more, got {args.workers}")
    if args.model_name is None and not args.model_dir.is_dir():
        if args.model_dir == _MODEL_DIR:
            parser.error(f"--model_dir is missing, and its default {_MODEL_DIR} is not a directory")
        parser.error(f"--model_dir {args.model_dir} is not a directory; give that of a model, or of many")
    if args.scheduler == "ray":
        if find_spec("ray") is None:
            parser.error(
                "--scheduler ray needs a package that is not installed: pip install 'kserve-wasm[ray]'"
            )
        if args.workers > 1 and args.ray_address != "auto":
            parser.error(
                f"--ray_address {args.ray_address} would start a Ray node for each of the {args.workers} workers: "
                "start one beside them (ray start), and give auto"
            )
    if args.access_log_format and find_spec("asgi_logger") is None:
        parser.error("--access_log_format needs a package that is not installed: asgi-logger")
    if args.grpc_max_receive_message_length is None:
        # gRPC keeps its limit in 32 bits.
        args.grpc_max_receive_message_length = min(args.max_request_bytes, 2**31 - 1)
    return Settings(
        model_name=args.model_name,
        model_dir=args.model_dir,
        gpu=args.gpu,
        ray_address=args.ray_address if args.scheduler == "ray" else None,
        host=args.host,
        http_port=args.http_port,
        grpc_port=args.grpc_port if args.enable_grpc else None,
        cache_dir=args.cache_dir.expanduser(),
        max_request_bytes=args.max_request_bytes,
        request_timeout=args.request_timeout,
        drain_seconds=args.drain_seconds,
        grace_period=args.grace_period,
        log_requests=args.log_requests,
        sdk=args,
    )


def _from_environment(flag: str, environment: Mapping[str, str]) -> str | None:
    given = (environment.get(name, "") for name in _ENVIRONMENT[flag])
    # Kubernetes sets HTTP_PORT=tcp://… in every pod beside a Service that is named http.
    return next((text for text in given if text and not text.startswith("tcp://")), None)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and not thirty lines of usage before it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 (takes a free one) to 65535, got '{text}'")
    return int(text)


def _ray_address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text in ("auto", "local") or (host and port.isdecimal() and "/" not in host):
        return text
    raise argparse.ArgumentTypeError(f"expected auto, local or HOST:PORT, got '{text}'")


def _model_name(text: str) -> str:
    from kserve_wasm.artifact.schema import NAME

    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"expected letters, digits, '.', '_' and '-', a letter or digit first, got '{text[:80]}'"
        )
    return text


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got '{text}'")


def _positive(kind: type) -> Any:
    def convert(text: str) -> Any:
        value = _number(kind, text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"expected more than 0, got '{text}'")
        return value

    return convert


def _not_negative(kind: type) -> Any:
    def convert(text: str) -> Any:
        value = _number(kind, text)
        if not value >= 0:
            raise argparse.ArgumentTypeError(f"expected 0 or more, got '{text}'")
        return value

    return convert


def _number(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got '{text}'") from None
