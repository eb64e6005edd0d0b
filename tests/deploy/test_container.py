from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.contained import Contained, contained, wait_for
from tests.deploy.manifests import CPU, CUDA, ROOT, Manifest, container
from tests.support import require
from tests.support.guests import compile_guest

GUEST = """
#include "kserve_wasm.h"
KW_EXPORT("infer") kw_errno infer(void) {
  kw_tensor x;
  KW_TRY(kw_input_by_name(KW_STR("x"), &x));
  return kw_output_set(KW_STR("y"), x);
}
"""
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    shutil.copy(compile_guest(GUEST), directory / "model.wasm")
    for path in (directory, directory / "model.wasm"):
        path.chmod(0o755)
    return directory


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contained]:
    with contained(CPU, model, tmp_path_factory.mktemp("container"), Path(sys.executable)) as server:
        wait_for(server, container(CPU)["startupProbe"]["httpGet"]["path"])
        yield server


def answer(server: Contained) -> object:
    body = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [3], "data": [1, 2, 3]}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v2/models/contained/infer",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["outputs"]


def test_the_server_answers_as_a_user_without_rights_in_a_read_only_root(server: Contained) -> None:
    assert answer(server) == [{"name": "y", "datatype": "INT64", "shape": [3], "data": [1, 2, 3]}]
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert status["Uid"].split() == ["1010"] * 4
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_finds_what_it_asks_for(server: Contained, probe: str) -> None:
    wanted = container(CPU)[probe]["httpGet"]
    assert f"--http_port={wanted['port']}" in container(CPU)["args"]
    assert server.get(wanted["path"])[0] == 200


def test_prometheus_finds_the_metrics_where_the_annotations_say(server: Contained) -> None:
    annotations = CPU["spec"]["annotations"]
    assert f"--http_port={annotations['prometheus.kserve.io/port']}" in container(CPU)["args"]
    status, body = server.get(annotations["prometheus.kserve.io/path"])
    assert status == 200
    assert b"kserve_wasm_requests" in body


def test_compiled_modules_land_in_the_scratch_volume_for_their_owner_alone(server: Contained) -> None:
    (mount,) = container(CPU)["volumeMounts"]
    (cache,) = (
        a.removeprefix("--cache_dir=") for a in container(CPU)["args"] if a.startswith("--cache_dir=")
    )
    assert cache.startswith(mount["mountPath"] + "/")
    assert len(list(server.file(cache).glob("*.cwasm"))) == 1
    assert server.file(cache).stat().st_mode & 0o777 == 0o700


def test_sigterm_ends_the_container_in_good_order(model: Path, tmp_path: Path) -> None:
    with contained(CPU, model, tmp_path, Path(sys.executable)) as server:
        wait_for(server, "/v2/health/ready")
    assert server.process.returncode == 0, server.log.read_text()


@pytest.mark.parametrize("runtime", [CPU, CUDA], ids=["cpu", "cuda"])
def test_a_wrong_flag_ends_the_server_and_the_runtimes_own_are_right(runtime: Manifest) -> None:
    # As KServe fills it in.
    flags = [flag.replace("{{.Name}}", "a-name") for flag in container(runtime)["args"]]
    command = [sys.executable, "-m", "kserve_wasm", *flags]
    wrong = subprocess.run(
        [*command, "--no_such_flag"], capture_output=True, text=True, timeout=60, check=False
    )
    assert wrong.returncode == 2
    # Nothing but the added flag is complained about.
    assert re.search(r"error: unrecognized arguments: --no_such_flag$", wrong.stderr.strip())


@pytest.mark.slow
def test_what_the_dockerfile_installs_serves(model: Path, tmp_path: Path) -> None:
    require(shutil.which("uv"), "uv is not installed")
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    source, venv = tmp_path / "src", tmp_path / "venv"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "tests", "build"))
    subprocess.run(["uv", "venv", "--quiet", venv], check=True)
    commands = re.findall(r"^RUN (uv pip install .+)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        here = command.replace("/opt/venv", str(venv)).replace(" --no-cache ", " --quiet ")
        subprocess.run(["sh", "-euc", here], cwd=source, check=True)
    shutil.rmtree(source)
    with contained(CPU, model, tmp_path, venv / "bin" / "python") as server:
        wait_for(server, "/v2/health/ready")
        assert answer(server) == [{"name": "y", "datatype": "INT64", "shape": [3], "data": [1, 2, 3]}]
