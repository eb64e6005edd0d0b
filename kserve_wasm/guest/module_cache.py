"""Compiled modules: from the cache of ahead-of-time artefacts when it has one, else from the code.

An artefact is native code that the engine maps and runs unchecked, so whoever writes one owns the process. Directory
and artefact must belong to this user and be writable by nobody else; both are opened once, checked and used as open
files, so that who may rename a directory above them gains nothing. Artefacts are bound to the code's digest and to
:attr:`Engine.identity`, and are put in place whole (a mapped file must never be rewritten).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import wasmtime

from kserve_wasm.artifact.sections import check_preamble, parse_sections
from kserve_wasm.errors import ArtifactError
from kserve_wasm.guest.engine import Engine

logger = logging.getLogger(__name__)

_START_SECTION = 8


@dataclass(frozen=True, slots=True)
class CompiledModule:
    """A module ready for instantiation.

    Attributes:
        module: the module.
        from_cache: whether it was mapped from an artefact instead of compiled.
        has_start: whether it has a start function, so that instantiating it runs guest code.
    """

    module: wasmtime.Module
    from_cache: bool
    has_start: bool


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
            ArtifactError: the bytes are not those, or not a core module that the engine accepts.
        """
        code = _read(path, code_length, digest)
        has_start = any(section.id == _START_SECTION for section in parse_sections(io.BytesIO(code)))
        key = hashlib.sha256(f"{digest} {engine.identity}".encode()).hexdigest()
        artefact = f"{key}.cwasm"
        with _private(self._directory) as directory:
            if directory is not None:
                cached = _cached(engine, directory, artefact, path.name)
                if cached is not None:
                    return CompiledModule(cached, True, has_start)
            module = compile_module(engine, code, path.name)
            if directory is not None:
                _store(directory, artefact, module)
        return CompiledModule(module, False, has_start)


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


def _read(path: Path, length: int, digest: str) -> bytes:
    try:
        with path.open("rb") as file:
            code = file.read(length)
    except OSError as error:
        raise ArtifactError(f"cannot read {path.name}: {error.strerror}") from None
    # Code that changed since would be cached as what it was, and serve every model that has that code.
    if f"sha256:{hashlib.sha256(code).hexdigest()}" != digest:
        raise ArtifactError(f"{path.name} was changed while it was loaded; load the model again")
    return code


@contextlib.contextmanager
def _private(path: Path | None) -> Iterator[int | None]:
    """The directory at ``path``, made if it is missing, as an open file; None unless only this user writes to it."""
    if path is None:
        yield None
        return
    try:
        for parent in (*reversed(path.parents), path):
            if not parent.exists():
                parent.mkdir(mode=0o700, exist_ok=True)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        logger.warning("No compilation cache: %s: %s", path, error.strerror)
        yield None
        return
    try:
        if _ours(os.fstat(directory)):
            yield directory
        else:
            logger.warning(
                "No compilation cache: %s must belong to user %d and be writable by nobody else (chmod 700)",
                path,
                os.geteuid(),
            )
            yield None
    finally:
        os.close(directory)


def _ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _cached(engine: Engine, directory: int, artefact: str, name: str) -> wasmtime.Module | None:
    """The module in ``artefact``; None when there is none, or none to be trusted. ``name`` is for messages."""
    try:
        # O_NONBLOCK: opening a pipe would wait for its writer.
        file = os.open(artefact, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("Compiling again: the cached artefact of %s: %s", name, error.strerror)
        return None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or not _ours(status):
            logger.warning("Compiling again: others may write the cached artefact of %s", name)
            return None
        return wasmtime.Module.deserialize_file(engine.wasmtime, f"/dev/fd/{file}")
    except wasmtime.WasmtimeError as error:
        logger.warning("Compiling again: the cached artefact of %s is unusable: %s", name, error)
        return None
    finally:
        os.close(file)


def _store(directory: int, artefact: str, module: wasmtime.Module) -> None:
    temporary = f"{secrets.token_hex(16)}.tmp"
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(module.serialize())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, artefact, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        logger.warning("Could not cache a compiled module: %s", error.strerror)
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
