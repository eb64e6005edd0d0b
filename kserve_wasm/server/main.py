"""``python -m kserve_wasm`` and ``kserve-wasm serve``: from flags to a running server."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kserve_wasm.errors import ModelLoadError
from kserve_wasm.server.settings import Settings, count_workers, make_parser, parse_settings
from kserve_wasm.server.workers import WORKER, supervise

if TYPE_CHECKING:
    from kserve_wasm.artifact import ModelConfig
    from kserve_wasm.batching import OpenScheduler
    from kserve_wasm.guest.pool import GuestPool
    from kserve_wasm.model import WasmModel
    from kserve_wasm.server.repository import WasmModelRepository

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve models until a signal ends it.

    Args:
        argv: the flags; those of the process when None.

    Returns:
        The exit status; see :meth:`kserve_wasm.server.server.WasmModelServer.start`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    worker = None
    if WORKER in os.environ:
        from kserve_wasm.server.worker import Worker

        worker = Worker()
    elif (workers := count_workers(argv)) > 1:
        return supervise(workers, argv)
    settings = read_settings(argv)
    if settings.sdk.configure_logging:
        _configure_logging(settings.sdk.log_config_file)

    from kserve_wasm.batching import open_in_process
    from kserve_wasm.server.server import WasmModelServer

    _wait_for_mount(settings.model_dir)
    open_scheduler: OpenScheduler = open_in_process
    if settings.ray_address is not None:
        from ray_app.environment import prepare

        prepare(settings.ray_address)
        from ray_app.cluster import connect

        try:
            open_scheduler = connect(settings.ray_address, gpu=settings.gpu)
        except ConnectionError as error:
            logger.error("%s", error)
            return 1
    try:
        repository = make_repository(settings, open_scheduler)
    except ModelLoadError as error:
        logger.error("%s", error)
        return 1
    return WasmModelServer(repository, settings, worker).start()


def read_settings(argv: Sequence[str]) -> Settings:
    """Read the flags, and set KServe's SDK up for them; ends the process when one is wrong."""
    # The SDK parses sys.argv when it is imported: a wrong flag is not its to complain of.
    given, sys.argv = sys.argv, sys.argv[:1]
    import kserve.model_server

    sys.argv = given
    settings = parse_settings(make_parser(kserve.model_server.parser), argv)
    kserve.model_server.args = settings.sdk
    if settings.sdk.enable_docs_url:
        # Which the SDK decides on at the import as well.
        kserve.model_server.app.docs_url = "/docs"
        kserve.model_server.app.setup()
    _quiet_sdk()
    return settings


def make_repository(settings: Settings, open_scheduler: OpenScheduler) -> WasmModelRepository:
    """Make the repository of ``--model_dir``; nothing is loaded yet.

    Args:
        settings: the server's.
        open_scheduler: opens the models' graphs.

    Raises:
        ModelLoadError: it is the directory of one model that has no name, or cannot be read.
    """
    from kserve_wasm.artifact import load_model_dir
    from kserve_wasm.guest.pool import GuestPool
    from kserve_wasm.server.repository import WasmModelRepository

    open_model = partial(_open_model, settings, GuestPool(), open_scheduler)
    return WasmModelRepository(settings.model_dir, open_model, load_model_dir, _single(settings))


def _wait_for_mount(directory: Path) -> None:
    """Wait for a model image's files, which KServe links to ``directory`` when the containers run already.

    It says so by ``MODEL_INIT_MODE=async`` (storage of ``oci://``). Nothing listens meanwhile, so no probe succeeds.
    """
    if os.environ.get("MODEL_INIT_MODE") == "async" and not directory.exists():
        logger.info("waiting for %s", directory)
        while not directory.exists():
            time.sleep(0.1)


def _single(settings: Settings) -> str | None:
    """Choose the name of the one model, or None where ``--model_dir`` holds a directory for each of many."""
    from kserve_wasm.artifact import find_model_dirs, is_model_dir, load_model_dir

    directory = settings.model_dir
    if (
        directory.is_dir()
        and not is_model_dir(directory)
        and (settings.model_name is None or find_model_dirs(directory))
    ):
        if settings.model_name is not None:
            # Not an error: a ServingRuntime gives the flag for every InferenceService, one of many models too.
            logger.warning(
                "--model_name %s has no effect: %s holds a directory for each of many models, whose names count",
                settings.model_name,
                directory,
            )
        return None
    return settings.model_name or load_model_dir(directory, directory.resolve().name)[-1].name


def _open_model(
    settings: Settings, pool: GuestPool, open_scheduler: OpenScheduler, config: ModelConfig
) -> WasmModel:
    """Open one version of one model, as the settings change its configuration."""
    from kserve_wasm.model import WasmModel

    if settings.gpu and "device" not in config.raw:
        config = replace(config, device="gpu")
    if settings.request_timeout is not None and settings.request_timeout < config.limits.timeout:
        config = replace(config, limits=replace(config.limits, timeout=settings.request_timeout))
    if settings.ray_address is not None:
        # Waiting for another process is nothing for the event loop, however short.
        config = replace(config, instances=replace(config.instances, inline=False))
    model = WasmModel(config, pool, cache=settings.cache_dir, open_scheduler=open_scheduler)
    model.load()
    return model


def _configure_logging(config: str | None) -> None:
    """Configure the SDK's, uvicorn's and our logging, all in one format, unless ``config`` says otherwise."""
    from kserve import logging as sdk

    if config is not None:
        sdk.configure_logging(config)
        return
    default = dict(sdk.KSERVE_LOG_CONFIG)
    default["loggers"] = {
        **default["loggers"],
        "kserve_wasm": default["loggers"]["kserve"],
        "ray_app": default["loggers"]["kserve"],
        # Of start and stop the server writes its own lines.
        "uvicorn.error": {"level": "WARNING"},
    }
    sdk.configure_logging(default)


def _quiet_sdk() -> None:
    """Keep lines out of the log that tell an operator nothing."""
    noise = ("Setting max asyncio worker threads", "OpenAI endpoints not", "Time series endpoints not")
    logging.getLogger("kserve").addFilter(lambda record: not str(record.msg).startswith(noise))
    # Where connections outlive the grace period, and no task of the SDK's routes does.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: not (str(record.msg).startswith("Cancel %s running task") and record.args == (0,))
    )
    warnings.filterwarnings("ignore", "ORJSONResponse is deprecated")
