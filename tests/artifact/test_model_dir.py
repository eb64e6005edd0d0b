"""Model directories, as a storage initializer leaves them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from kserve_wasm.artifact import GraphEntry, Manifest, find_model_dirs, is_model_dir, load_model_dir
from kserve_wasm.artifact.config import Batching
from kserve_wasm.errors import ArtifactError, ModelLoadError
from kserve_wasm.tensors import DTYPES, TensorSpec
from tests.artifact.modules import CODE, artifact, write

SPEC = TensorSpec("x", DTYPES["FP32"], ("n",))
MODEL = artifact(
    Manifest(
        "tensor",
        name="own",
        version="5",
        inputs=(SPEC,),
        outputs=(SPEC,),
        batching={"max_batch_size": 8, "max_queue_size": 5},
    ),
    [(GraphEntry("default", "onnx", options={"intra_op_threads": 1}), [b"w" * 10])],
)


def test_manifest_gives_the_configuration(tmp_path):
    path = write(tmp_path / "model.wasm", MODEL)
    (config,) = load_model_dir(tmp_path, "served")
    assert (config.name, config.version, config.module) == ("own", "5", path)
    assert (config.inputs, config.outputs, config.device) == ((SPEC,), (SPEC,), "cpu")
    (graph,) = config.graphs
    assert (graph.name, graph.encoding, graph.path, graph.weights) == ("default", "onnx", path, path)
    assert graph.length is not None
    offset = int(MODEL[graph.offset : graph.offset + graph.length])
    assert MODEL[offset : offset + 10] == b"w" * 10
    assert config.raw["abi"] == "tensor"


def test_model_yaml_has_the_last_word(tmp_path):
    write(tmp_path / "model.wasm", MODEL)
    write(tmp_path / "graphs" / "side.onnx", b"onnx")
    write(tmp_path / "graphs" / "side", b"onnx")
    write(
        tmp_path / "model.yaml",
        b"""
name: other
inputs: []
graphs:
  - {name: default, options: {prepacking: true}}
  - {name: side, path: graphs/side.onnx}
  - {name: plain, path: graphs/side, encoding: onnx}
batching: {max_queue_size: 7, graphs: {side: {enabled: false}}}
limits: {memory: 1Mi}
""",
    )
    (config,) = load_model_dir(tmp_path, "served")
    assert (config.name, config.version, config.inputs, config.outputs) == ("other", "5", (), (SPEC,))
    assert config.limits.memory == 2**20
    merged = Batching(max_batch_size=8, max_queue_size=7)
    assert config.batching == {
        "": merged,
        "default": merged,
        "side": Batching(max_batch_size=1, max_queue_size=7),
        "plain": merged,
    }
    assert {name: b["max_batch_size"] for name, b in config.raw["batching"].items()} == {
        "default": 8,
        "side": 1,
        "plain": 8,
    }
    assert [(g.name, g.encoding, dict(g.options)) for g in config.graphs] == [
        ("default", "onnx", {"intra_op_threads": 1, "prepacking": True}),
        ("side", "onnx", {}),
        ("plain", "onnx", {}),
    ]
    assert config.graphs[1].path == tmp_path / "graphs" / "side.onnx"
    assert config.raw["name"] == "other"
    assert [g["name"] for g in config.raw["graphs"]] == ["default", "side", "plain"]


def test_a_plain_module_takes_the_servers_name(tmp_path):
    write(tmp_path / "anything.wasm", CODE)
    (config,) = load_model_dir(tmp_path, "served")
    assert (config.name, config.version, config.inputs, config.graphs) == ("served", "1", (), ())
    assert config.code_length == len(CODE)


def test_a_path_to_the_file_itself_works(tmp_path):
    path = write(tmp_path / "some" / "x.wasm", MODEL)
    write(tmp_path / "some" / "y.wasm", b"another")
    assert load_model_dir(path, "m")[0].module == path


def test_model_wasm_is_preferred_and_hidden_files_are_not_seen(tmp_path):
    write(tmp_path / "a.wasm", CODE)
    write(tmp_path / "model.wasm", MODEL)
    assert load_model_dir(tmp_path, "m")[0].module.name == "model.wasm"
    (tmp_path / "model.wasm").rename(tmp_path / ".model.wasm.wasm")
    assert load_model_dir(tmp_path, "m")[0].module.name == "a.wasm"


def test_versions_are_in_numerical_order(tmp_path):
    for number in ("10", "9", "2"):
        write(tmp_path / number / "model.wasm", MODEL)
    write(tmp_path / "notes" / "model.wasm", MODEL)
    write(tmp_path / "model.yaml", b"limits: {timeout: 1}")
    write(tmp_path / "9" / "model.yaml", b"limits: {timeout: 9}")
    configs = load_model_dir(tmp_path, "m")
    assert [(c.version, c.limits.timeout, c.raw["version"]) for c in configs] == [
        ("2", 1.0, "2"),
        ("9", 9.0, "9"),
        ("10", 1.0, "10"),
    ]


def _files(tmp_path, **files):
    for name, data in files.items():
        write(tmp_path / name.replace("__", "/").replace("_", "."), data)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "found nothing"),
        ({"readme_txt": b""}, "found readme.txt"),
        ({"a_wasm": CODE, "b_wasm": CODE}, r"got a.wasm, b.wasm; rename one, or name it in model.yaml"),
        ({"model_wasm": CODE, "1__model_wasm": CODE}, "both a .wasm file and numbered versions"),
        ({"1__x_txt": b""}, "expected 'model.wasm'"),
        (
            {"model_wasm": CODE, "model_yaml": b"module: other.wasm"},
            "line 1, module: there is no file 'other.wasm'",
        ),
        ({"model_wasm": CODE, "model_yaml": b"module: ../x.wasm"}, "leaves the model directory"),
        ({"model_wasm": CODE, "model_yaml": b"module: /etc/passwd"}, "leaves the model directory"),
        (
            {"model_wasm": CODE, "model_yaml": b"graphs:\n- {name: g, encoding: onnx, path: ../../g.onnx}"},
            r"line 2, graphs\[0\].path: '../../g.onnx' leaves the model directory",
        ),
        (
            {"model_wasm": CODE, "model_yaml": b"graphs:\n- {name: g, encoding: onnx, path: g.onnx}"},
            r"there is no file 'g.onnx'",
        ),
        (
            {"model_wasm": CODE, "model_yaml": b"graphs: [{name: g}]"},
            "carries no graph 'g', only: none; give the path",
        ),
        (
            {"model_wasm": CODE, "model_yaml": b"graphs: [{name: g, path: g.bin}]"},
            "the encoding of 'g.bin' is missing",
        ),
        (
            {"model_wasm": MODEL, "model_yaml": b"graphs: [{name: default, path: x.onnx}]"},
            "only its options can be given",
        ),
        ({"1__model_wasm": CODE, "model_yaml": b"version: 1"}, "numbered directories give the version"),
        ({"1__model_wasm": CODE, "1__model_yaml": b"version: 2"}, "gives version 1, got 2"),
    ],
)
def test_what_is_wrong_with_a_directory_is_said(files, message, tmp_path):
    _files(tmp_path, **files)
    with pytest.raises(ModelLoadError, match=message):
        load_model_dir(tmp_path, "m")


def test_mistakes_of_all_versions_are_told(tmp_path):
    write(tmp_path / "2" / "model.wasm", b"(module)")
    write(tmp_path / "3" / "model.wasm", MODEL)
    write(tmp_path / "10" / "model.wasm", MODEL)
    write(tmp_path / "10" / "model.yaml", b"device: tpu\nnme: x")
    with pytest.raises(ModelLoadError) as caught:
        load_model_dir(tmp_path, "m")
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("version 2: expected a WebAssembly module")
    assert lines[1].startswith("version 10: model.yaml, line 1, device: expected one of cpu, gpu")
    assert lines[2].startswith("version 10: model.yaml, line 1: unknown key 'nme'")
    assert len(lines) == 3


def test_a_directory_that_is_not_there_is_named_by_its_model():
    with pytest.raises(ModelLoadError, match="the model directory of 'm' does not exist"):
        load_model_dir(Path("/nowhere/at/all"), "m")


def test_a_damaged_module_is_an_artifact_error(tmp_path):
    write(tmp_path / "model.wasm", b"(module)")
    with pytest.raises(ArtifactError, match="text format"):
        load_model_dir(tmp_path, "m")


@pytest.mark.parametrize("name", ["model.wasm", "model.yaml"])
def test_links_may_not_lead_out_of_the_directory(name, tmp_path):
    secret = write(tmp_path / "secret", CODE if name == "model.wasm" else b"name: stolen")
    write(tmp_path / "m" / "other.wasm", CODE)
    (tmp_path / "m" / name).symlink_to(secret)
    with pytest.raises(ModelLoadError, match="leaves the model directory"):
        load_model_dir(tmp_path / "m", "m")


def test_links_within_the_directory_and_to_it_are_followed(tmp_path):
    """A mounted ConfigMap is links into a hidden folder; a modelcar mounts a link to the directory."""
    write(tmp_path / "real" / "..data" / "model.wasm", CODE)
    (tmp_path / "real" / "model.wasm").symlink_to("..data/model.wasm")
    (tmp_path / "mount").symlink_to("real")
    (config,) = load_model_dir(tmp_path / "mount", "m")
    assert config.module == tmp_path / "real" / "..data" / "model.wasm"


def test_a_link_to_a_version_outside_is_refused(tmp_path):
    write(tmp_path / "elsewhere" / "model.wasm", CODE)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelLoadError, match="leaves the model directory"):
        load_model_dir(tmp_path / "m", "m")


def test_model_directories_of_a_repository_are_found(tmp_path):
    write(tmp_path / "b" / "x.wasm", CODE)
    write(tmp_path / "a" / "1" / "model.wasm", CODE)
    write(tmp_path / "c" / "model.yaml", b"")
    write(tmp_path / "notes" / "readme.txt", b"")
    write(tmp_path / ".git" / "model.wasm", CODE)
    write(tmp_path / "file.txt", b"")
    assert find_model_dirs(tmp_path) == {n: tmp_path / n for n in ("a", "b", "c")}
    assert not is_model_dir(tmp_path)
    assert is_model_dir(tmp_path / "a")


def test_a_repository_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ModelLoadError, match="cannot list the model repository"):
        find_model_dirs(tmp_path / "none")


def test_a_directory_that_may_not_be_read_is_no_model():
    """A volume's lost+found belongs to root. Read here as another user, for whom modes count."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        repository.chmod(0o755)
        (repository / "lost+found").mkdir(mode=0)
        write(repository / "a" / "model.wasm", CODE)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)
        try:
            assert list(find_model_dirs(repository)) == ["a"]
        finally:
            os.seteuid(user)
