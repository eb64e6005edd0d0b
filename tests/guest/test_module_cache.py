"""The cache of compiled modules: used when sound, silently rebuilt when not, never trusted when others may write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wasmtime

from kserve_wasm.errors import ArtifactError
from kserve_wasm.guest import GuestModel
from kserve_wasm.guest.engine import engine
from kserve_wasm.guest.module_cache import ModuleCache, _cached, _private, _store, compile_module
from tests.guest.support import ECHO, config_of, request


def load(tmp_path: Path, cache: Path) -> bool:
    """Whether the echo guest came from the cache; checks that it works, whichever way it came."""
    config = config_of(tmp_path, ECHO)
    compiled = ModuleCache(cache).load(engine(), config.module, config.code_length, config.digest)
    model = GuestModel(config, cache)
    model.load()
    np.testing.assert_array_equal(model.infer(request(x=np.ones(3))).outputs["y"].numpy(), np.ones(3))
    model.close()
    return compiled.from_cache


def test_a_module_is_compiled_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert load(tmp_path, cache) is False
    assert load(tmp_path, cache) is True
    assert oct(cache.stat().st_mode & 0o777) == "0o700"
    assert [p.suffix for p in cache.iterdir()] == [".cwasm"]


def test_another_process_of_this_host_uses_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load(tmp_path, cache)
    script = (
        "import sys; from pathlib import Path; from tests.guest.test_module_cache import load; "
        "print(load(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path, cache],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"not an artefact at all" * 100])
def test_an_artefact_that_is_not_one_is_built_again(tmp_path: Path, damage: bytes) -> None:
    cache = tmp_path / "cache"
    load(tmp_path, cache)
    (artefact,) = cache.iterdir()
    artefact.unlink()  # a mapped file must not be rewritten
    artefact.write_bytes(damage)
    assert load(tmp_path, cache) is False
    assert load(tmp_path, cache) is True


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_artefact_is_built_again(tmp_path: Path, keep: float) -> None:
    cache = tmp_path / "cache"
    load(tmp_path, cache)
    (artefact,) = cache.iterdir()
    data = artefact.read_bytes()
    artefact.unlink()
    artefact.write_bytes(data[: int(len(data) * keep)])
    assert load(tmp_path, cache) is False


def test_a_directory_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    """An artefact is native code: whoever can write one owns the process."""
    cache = tmp_path / "cache"
    load(tmp_path, cache)
    cache.chmod(0o777)
    assert load(tmp_path, cache) is False
    cache.chmod(0o700)
    assert load(tmp_path, cache) is True


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs root")
def test_a_directory_of_another_user_is_not_used(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load(tmp_path, cache)
    os.chown(cache, 12345, 12345)
    assert load(tmp_path, cache) is False


def test_an_artefact_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load(tmp_path, cache)
    (artefact,) = cache.iterdir()
    artefact.chmod(0o666)
    assert load(tmp_path, cache) is False
    assert load(tmp_path, cache) is True  # it was replaced by one of our own


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_only_a_regular_file_is_an_artefact(tmp_path: Path, kind: str) -> None:
    """What a link points to may be anybody's."""
    cache = tmp_path / "cache"
    load(tmp_path, cache)
    (artefact,) = cache.iterdir()
    artefact.rename(tmp_path / "moved")
    if kind == "link":
        artefact.symlink_to(tmp_path / "moved")
    elif kind == "pipe":
        os.mkfifo(artefact, 0o600)
    else:
        artefact.mkdir()
    assert load(tmp_path, cache) is False


def test_a_directory_that_is_made_is_private_whatever_the_umask(tmp_path: Path) -> None:
    cache = tmp_path / "a" / "b" / "cache"
    umask = os.umask(0)
    try:
        load(tmp_path, cache)
    finally:
        os.umask(umask)
    for directory in (cache, cache.parent, cache.parent.parent):
        assert oct(directory.stat().st_mode & 0o777) == "0o700"
    (artefact,) = cache.iterdir()
    assert oct(artefact.stat().st_mode & 0o777) == "0o600"


def test_a_directory_that_is_swapped_while_it_is_used_gains_nothing(tmp_path: Path) -> None:
    """Who may rename a directory above the cache cannot put another in its place after the check."""
    cache = tmp_path / "cache"
    with _private(cache) as directory:
        assert directory is not None
        cache.rename(tmp_path / "away")
        cache.mkdir(mode=0o777)
        module = compile_module(engine(), wasmtime.wat2wasm("(module)"), "m")
        _store(directory, "x.cwasm", module)
        assert list(cache.iterdir()) == []
        assert _cached(engine(), directory, "x.cwasm", "m") is not None


def test_code_that_changed_since_its_digest_was_taken_is_refused(tmp_path: Path) -> None:
    """Else it would be kept under the digest of the code that it replaced, and answer for whoever has that."""
    cache = tmp_path / "cache"
    config = config_of(tmp_path, ECHO)
    config.module.write_bytes(wasmtime.wat2wasm(ECHO.replace('"y"', '"z"')))
    with pytest.raises(ArtifactError, match=r"m\.wasm was changed while it was loaded"):
        GuestModel(config, cache).load()
    assert load(tmp_path, cache) is False


def test_a_start_function_is_known_from_the_cache_too(tmp_path: Path) -> None:
    start = "(module (func $s) (start $s))"
    for wat, has_start in ((start, True), ("(module (func $s))", False)):
        config = config_of(tmp_path, wat)
        for from_cache in (False, True):
            compiled = ModuleCache(tmp_path / "cache").load(
                engine(), config.module, config.code_length, config.digest
            )
            assert (compiled.has_start, compiled.from_cache) == (has_start, from_cache)


def test_no_directory_at_all_still_serves(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert load(tmp_path, file / "cache") is False


def test_other_code_engines_and_cpus_have_artefacts_of_their_own(tmp_path: Path) -> None:
    from dataclasses import replace

    cache = tmp_path / "cache"
    load(tmp_path, cache)
    config = config_of(tmp_path, ECHO)
    elsewhere = replace(engine(), identity=engine().identity.replace("wasmtime", "wasmtime-next"))
    assert not ModuleCache(cache).load(elsewhere, config.module, config.code_length, config.digest).from_cache
    other = config_of(tmp_path, ECHO.replace('"y"', '"z"'), name="other")
    assert not ModuleCache(cache).load(engine(), other.module, other.code_length, other.digest).from_cache
    assert len(list(cache.iterdir())) == 3
