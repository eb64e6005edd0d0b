"""Compiled modules: from the cache of ahead-of-time artefacts when it has one, else from the code.

An artefact is native code that the engine maps and runs unchecked, so whoever writes one owns the process. Only
artefacts from a directory that belongs to this user, and that nobody else may write to, are read; they are bound to
the code's digest and to :attr:`Engine.identity`, and are put in place whole (a mapped file must never be rewritten).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import wasmtime

from kserve_wasm.artifact.sections import check_preamble
from kserve_wasm.errors import ArtifactError
from kserve_wasm.guest.engine import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CompiledModule:
    """A module ready for instantiation.

    Attributes:
        module: the module.
        from_cache: whether it was mapped from an artefact instead of compiled.
    """

    module: wasmtime.Module
    from_cache: bool


class ModuleCache:
    """Compiles modules once for each digest, engine and CPU.

    Args:
        directory: where artefacts are kept; None compiles every time.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def load(self, engine: Engine, path: Path, code_length: int, digest: str) -> CompiledModule:
        """The compiled form of the first ``code_length`` bytes of ``path``, whose digest is ``digest``.

        Raises:
            ArtifactError: the bytes are not a core module that the engine accepts.
        """
        artefact = self._artefact(engine, digest)
        if artefact is not None and artefact.exists():
            try:
                return CompiledModule(wasmtime.Module.deserialize_file(engine.wasmtime, str(artefact)), True)
            except wasmtime.WasmtimeError as error:
                logger.warning("Compiling again: the cached artefact of %s is unusable: %s", path.name, error)
        module = compile_module(engine, _read(path, code_length), path.name)
        if artefact is not None:
            _store(artefact, module)
        return CompiledModule(module, False)

    def _artefact(self, engine: Engine, digest: str) -> Path | None:
        if self._directory is None or not _private(self._directory):
            return None
        key = hashlib.sha256(f"{digest} {engine.identity}".encode()).hexdigest()
        return self._directory / f"{key}.cwasm"


def compile_module(engine: Engine, code: bytes, name: str) -> wasmtime.Module:
    """Compiles ``code``; ``name`` is for messages.

    Raises:
        ArtifactError: it is not a core module that the engine accepts.
    """
    # Without this check the engine would read anything else as the text format.
    check_preamble(code[:8])
    try:
        return wasmtime.Module(engine.wasmtime, code)
    except wasmtime.WasmtimeError as error:
        raise ArtifactError(f"{name} is not a module that the engine accepts: {error}") from None


def _read(path: Path, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(length)
    except OSError as error:
        raise ArtifactError(f"cannot read {path.name}: {error.strerror}") from None


def _private(directory: Path) -> bool:
    """Whether ``directory`` is, or can be made, one that only this user writes to."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        logger.warning("No compilation cache: %s: %s", directory, error.strerror)
        return False
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        logger.warning(
            "No compilation cache: %s must belong to user %d and be writable by nobody else (chmod 700)",
            directory,
            os.geteuid(),
        )
        return False
    return os.access(directory, os.R_OK | os.X_OK)


def _store(artefact: Path, module: wasmtime.Module) -> None:
    try:
        descriptor, temporary = tempfile.mkstemp(dir=artefact.parent, suffix=".tmp")
    except OSError as error:
        logger.warning("Could not cache a compiled module: %s", error.strerror)
        return
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(module.serialize())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, artefact)
    except OSError as error:
        logger.warning("Could not cache a compiled module: %s", error.strerror)
        with contextlib.suppress(OSError):
            os.unlink(temporary)
