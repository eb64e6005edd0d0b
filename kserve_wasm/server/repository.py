"""The models that this server has: which exist on disk, which are loaded, and why one is not.

Everything here runs on the event loop; only opening and closing a model happens in a thread, so that requests
to other models are answered meanwhile. A load replaces what is served only once all of it succeeded.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import kserve

from kserve_wasm.artifact import ModelConfig, find_model_dirs
from kserve_wasm.errors import ModelLoadError, ModelNotFound, ModelNotReady, WasmServingError
from kserve_wasm.server.versions import select_versions

if TYPE_CHECKING:
    from kserve_wasm.model import WasmModel

logger = logging.getLogger(__name__)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

_IDLE_POLL = 0.02
"""Seconds between looks at whether a model that is to be stopped still answers requests."""

READY = "READY"
LOADING = "LOADING"
UNAVAILABLE = "UNAVAILABLE"


class WasmModelRepository(kserve.ModelRepository):  # type: ignore[misc]  # the SDK has no types
    """The models of one directory.

    Attributes:
        draining: set while the server shuts down: it is not ready then, whatever its models are.
        models: the default version of each served model by name, as the SDK expects it.
    """

    def __init__(
        self,
        directory: Path,
        open_model: Callable[[ModelConfig], WasmModel],
        read_configs: Callable[[Path, str], Sequence[ModelConfig]],
        single: str | None = None,
    ) -> None:
        """Make a repository; nothing is loaded yet.

        Args:
            directory: a model directory when ``single`` is given, else a directory of model directories.
            open_model: makes a model that is ready to answer; called in a thread.
            read_configs: reads the versions of a model directory, given it and the name to serve it under.
            single: the name that the one model is served under.
        """
        super().__init__(str(directory))
        self.draining = False
        self._directory = directory
        self._open_model = open_model
        self._read_configs = read_configs
        self._single = single
        self._served: dict[str, dict[str, WasmModel]] = {}
        self._reasons: dict[str, dict[str, str]] = {}
        self._unloaded: set[str] = set()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._wanted: set[str] = {single} if single is not None else set()
        self._loaded_once = False
        self._stopping: set[asyncio.Task[None]] = set()

    @property
    def single(self) -> str | None:
        """The name of the one model, or None when the directory holds many."""
        return self._single

    @property
    def ready(self) -> bool:
        """Whether every model that was asked for answers, and the server is not about to stop.

        Not before the first load of all has ended. An empty directory is ready then: its models come
        by requests to load them.
        """
        return self._loaded_once and not self.draining and all(self.is_ready(name) for name in self._wanted)

    @property
    def not_ready_reason(self) -> str:
        """Why :attr:`ready` is False: the models that do not answer, and why each does not; "" where it is True."""
        if self.draining:
            return "the server is about to stop"
        reasons = []
        for name in sorted(self._wanted):
            if not self.is_ready(name):
                known = "; ".join(self._reasons.get(name, {}).values())
                absent = "nothing there runs its graphs" if name in self._served else "not loaded"
                reasons.append(f"model '{name}': {'loading' if name in self._loading else known or absent}")
        return ", ".join(reasons) or ("" if self._loaded_once else "the models are not loaded yet")

    def find(self, name: str, version: str | None = None) -> WasmModel:
        """Find the model to answer a request with.

        Args:
            name: the model's name.
            version: the version; None or "" takes the default, which is the highest.

        Raises:
            ModelNotFound: there is no such model, or no such version of it is served.
            ModelNotReady: the model exists and is not loaded.
        """
        versions = self._served.get(name)
        if versions is None:
            raise self._absent(name)
        model: WasmModel | None = versions.get(version) if version else self.models[name]
        if model is None:
            raise ModelNotFound(
                f"model '{name}' does not serve version '{version}'; served: {', '.join(versions)} "
                "(version_policy in model.yaml decides; without one, the highest)"
            )
        if not model.ready:
            raise ModelNotReady(f"model '{name}' is not ready")
        return model

    def versions(self, name: str) -> list[str]:
        """List the served versions of a model, lowest first."""
        return list(self._served.get(name, ()))

    def is_ready(self, name: str, version: str | None = None) -> bool:
        """Tell whether :meth:`find` would answer."""
        try:
            self.find(name, version)
        except WasmServingError:
            return False
        return True

    async def is_model_ready(self, name: str) -> bool:
        """Answer as :meth:`is_ready`, in the SDK's spelling."""
        return self.is_ready(name)

    def is_known(self, name: str) -> bool:
        """Tell whether there is such a model, loaded or not; looks at the disk only for one that was never loaded."""
        if name in self._served or name in self._wanted or name in self._loading or name in self._reasons:
            return True
        try:
            self._directory_of(name)
        except ModelNotFound:
            return False
        return True

    def served(self) -> list[WasmModel]:
        """List every served version of every model, by name and then by version."""
        return [model for name in sorted(self._served) for model in self._served[name].values()]

    def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """List name, version, state and reason of every version, as V2's repository index does.

        A model of which no version is known yet, because it never loaded, has the version "".
        """
        rows: list[dict[str, str]] = []
        for name in sorted({*self._names(), *self._served, *self._reasons}):
            states = {
                v: (READY if m.ready else UNAVAILABLE, "") for v, m in self._served.get(name, {}).items()
            }
            for failed, reason in self._reasons.get(name, {}).items():
                # A version that serves on although its reload failed is ready; the index says what failed, and of
                # a directory that could not be read, at the default version.
                version = failed or next(reversed(states), "")
                states[version] = (states.get(version, (UNAVAILABLE,))[0], reason)
            if name in self._loading:
                states = {v: s for v, s in states.items() if s[0] == READY} or {"": (LOADING, "")}
            absent = "unloaded" if name in self._unloaded else "not loaded"
            rows += [
                {"name": name, "version": version, "state": state, "reason": reason}
                for version, (state, reason) in (states or {"": (UNAVAILABLE, absent)}).items()
                if state == READY or not ready_only
            ]
        return rows

    def update(self, model: WasmModel, name: str | None = None) -> None:
        """Serve a model that was made elsewhere, as :meth:`kserve.ModelServer.register_model` does."""
        self._serve(name or model.name, [model])

    @property
    def loading(self) -> bool:
        """Whether a model is being loaded."""
        return bool(self._loading)

    async def load_models(self, names: Sequence[str] | None = None) -> Sequence[str]:
        """Load models; what fails is logged and stands in the index.

        Args:
            names: which; every model of the directory when None.

        Returns:
            Which those are.

        Raises:
            ModelLoadError: the directory is that of one model, and that failed.
        """
        if names is None:
            names = self._names()
        self._wanted.update(names)
        for name in sorted(names):
            if name == self._single:
                await self.load(name)
            else:
                # Their failures are logged and kept where they happen.
                await asyncio.gather(self.load(name), return_exceptions=True)
        self._loaded_once = True
        if not self.draining and not self.ready:
            logger.error("not ready: %s", self.not_ready_reason)
        return names

    async def load(self, name: str) -> None:
        """Load a model, or load it again; a second caller for the same name joins the first.

        Raises:
            ModelNotFound: the directory holds no such model.
            ModelLoadError: it cannot be served; the versions served before go on.
        """
        task = self._loading.get(name)
        if task is None:
            directory = self._directory_of(name)
            task = self._loading[name] = asyncio.create_task(self._load(name, directory))
            task.add_done_callback(lambda done: self._loaded(name, done))
        # A caller that goes away must not cancel what others wait for.
        await asyncio.shield(task)

    def unload(self, name: str) -> Awaitable[None]:
        """Stop serving a model at once; awaiting the result waits until its running requests have ended.

        Raises:
            ModelNotFound: there is no such model.
        """
        if name not in self._served and name not in self._loading:
            self._directory_of(name)
        if name in self._served or name in self._loading:
            self._reasons.pop(name, None)
            self._unloaded.add(name)
            if not self.draining:
                logger.info("model %s is unloaded", name)
        self._loading.pop(name, None)
        if name != self._single:
            self._wanted.discard(name)
        self.models.pop(name, None)
        return self._stop(list(self._served.pop(name, {}).values()))

    async def close(self) -> None:
        """Stop every model and wait for it."""
        for name in list(self._served):
            self.unload(name)
        await asyncio.gather(*self._stopping)

    async def _load(self, name: str, directory: Path) -> None:
        opened: list[WasmModel] = []
        version = ""
        try:
            configs = select_versions(await asyncio.to_thread(self._read_configs, directory, name))
            for config in configs:
                version = config.version
                opened.append(await asyncio.to_thread(self._open_model, replace(config, name=name)))
        except Exception as error:
            self._stop(opened)
            if isinstance(error, WasmServingError):
                logger.error("model %s did not load from %s: %s", name, directory, error)
            else:
                logger.exception("model %s did not load from %s", name, directory)
                error = ModelLoadError(f"model '{name}' did not load; the server's log says why")
            if self._loading.get(name) is asyncio.current_task():
                self._reasons[name] = {version: str(error)}
            raise error from None
        if self._loading.get(name) is not asyncio.current_task():
            self._stop(opened)
            raise ModelNotReady(f"model '{name}' was unloaded while it loaded")
        self._reasons.pop(name, None)
        self._serve(name, opened)
        logger.info("model %s serves version %s", name, ", ".join(model.version for model in opened))

    def _loaded(self, name: str, task: asyncio.Task[None]) -> None:
        if self._loading.get(name) is task:
            del self._loading[name]
        if not task.cancelled():
            task.exception()  # retrieved here, for the case that nobody waits any more

    def _serve(self, name: str, models: list[WasmModel]) -> None:
        """Serve ``models`` (lowest version first) as ``name``, and stop those served before."""
        self._unloaded.discard(name)
        before = self._served.get(name, {})
        self._served[name] = {model.version: model for model in models}
        self.models[name] = models[-1]
        if before:
            self._stop(list(before.values()))

    def _stop(self, models: list[WasmModel]) -> Awaitable[None]:
        async def stop() -> None:
            for model in models:
                # What it accepted before another took its place, it answers.
                while model.leases or model.in_flight:
                    await asyncio.sleep(_IDLE_POLL)
                # Here, and not when a thread comes to it: nothing may be accepted in between.
                model.ready = False
                try:
                    await asyncio.to_thread(model.stop)
                except Exception:
                    logger.exception("model %s version %s did not stop cleanly", model.name, model.version)

        task = asyncio.ensure_future(stop())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)
        return asyncio.shield(task)

    def _names(self) -> list[str]:
        """List the models that the directory holds."""
        if self._single is not None:
            return [self._single]
        if not self._directory.is_dir():
            return []
        return [name for name in find_model_dirs(self._directory) if _PLAIN_NAME.fullmatch(name)]

    def _directory_of(self, name: str) -> Path:
        if name == self._single:
            return self._directory
        # The name comes from a client: only a plain one may become part of a path.
        if self._single is None and _PLAIN_NAME.fullmatch(name) and (self._directory / name).is_dir():
            return self._directory / name
        raise ModelNotFound(f"there is no model '{name}'")

    def _absent(self, name: str) -> WasmServingError:
        if name in self._loading:
            return ModelNotReady(f"model '{name}' is loading")
        try:
            self._directory_of(name)
        except ModelNotFound as error:
            return error
        return ModelNotReady(f"model '{name}' is not loaded")
