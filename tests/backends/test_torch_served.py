"""PyTorch graphs behind guests: from a model directory, a ``.wasm`` file, or a guest's own bytes; on a device."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from kserve_wasm.artifact import load_model_dir
from kserve_wasm.artifact.manifest import GraphEntry, Manifest
from kserve_wasm.artifact.write import Blob, NewGraph, write_artifact
from kserve_wasm.backends import GraphSource
from kserve_wasm.convert.pass_through import pass_through
from kserve_wasm.errors import NotSupported
from kserve_wasm.guest import GuestModel
from kserve_wasm.request import InferenceRequest
from kserve_wasm.tensors import DTYPES, Tensor
from tests.backends.contract import some_tensor
from tests.backends.models import mlp_oracle
from tests.readme.blocks import blocks
from tests.support import require
from tests.support.guests import ROOT, compile_guest

require(find_spec("torch"), "torch is not installed: pip install torch")

import torch  # noqa: E402

from kserve_wasm.backends.torch.archive import Archive  # noqa: E402
from kserve_wasm.backends.torch.exported import open_program  # noqa: E402
from kserve_wasm.backends.torch.graph import TorchGraph  # noqa: E402
from kserve_wasm.backends.torch.options import PyTorchOptions  # noqa: E402
from kserve_wasm.tensors.devices import Accelerator  # noqa: E402
from tests.backends import torch_models as models  # noqa: E402
from tests.support.devices import HostRuntime  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
ROWS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def mlp() -> bytes:
    return models.exported(models.Mlp(), torch.zeros(2, 4), dynamic=[{0: torch.export.Dim("batch")}])


def served(folder: Path) -> Iterator[GuestModel]:
    (config,) = load_model_dir(folder, "mlp")
    model = GuestModel(config)
    model.load()
    yield model
    model.close()


def answers(folder: Path) -> None:
    for model in served(folder):
        answer = model.infer(InferenceRequest({"x": Tensor.from_numpy(ROWS)}, None, {}))
        np.testing.assert_allclose(answer.outputs["y"].numpy(), mlp_oracle(ROWS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("file", ["mlp.pt2", "mlp.pt", "mlp.bin"])
def test_a_side_file_is_served(tmp_path: Path, file: str) -> None:
    (tmp_path / "model.wasm").write_bytes(pass_through("default"))
    (tmp_path / file).write_bytes(mlp() if file != "mlp.pt" else models.scripted(models.Mlp()))
    options = "inputs: [{name: x, datatype: FP32, shape: [batch, 4]}]" if file == "mlp.pt" else ""
    encoding = "encoding: pytorch, " if file == "mlp.bin" else ""
    (tmp_path / "model.yaml").write_text(
        f"graphs: [{{name: default, path: {file}, {encoding}options: {{intra_op_threads: 1, {options}}}}}]\n"
    )
    answers(tmp_path)


def test_a_graph_inside_the_wasm_file_is_served(tmp_path: Path) -> None:
    data, guest = mlp(), pass_through("default")
    graph = NewGraph(GraphEntry("default", "pytorch"), [], lambda _: data)
    with (tmp_path / "model.wasm").open("wb") as file:
        write_artifact(file, Blob(len(guest), lambda: guest), Manifest(abi="tensor"), [graph])
    answers(tmp_path)


def test_the_page_makes_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = blocks((ROOT / "docs" / "pytorch.md").read_text())
    code, yaml = (next(b.text for b in page if b.language == language) for language in ("python", "yaml"))
    (tmp_path / "graphs").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "page"})
    (tmp_path / "model.wasm").write_bytes(pass_through("default"))
    (tmp_path / "model.yaml").write_text(yaml)
    for model in served(tmp_path):
        x = np.float32([[1, 2], [3, 4], [5, 6]])
        answer = model.infer(InferenceRequest({"x": Tensor.from_numpy(x)}, None, {}))
        assert answer.outputs["y"].numpy().tolist() == [[1, 20], [3, 40], [5, 60]]


def test_the_page_lists_every_option_and_its_default() -> None:
    page = (ROOT / "docs" / "pytorch.md").read_text()
    listed = dict(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\w*) ?\|", page, re.M))
    said = {name: default for names, default in listed.items() for name in re.findall(r"\w+", names)}
    actual = {f.name: f.default for f in fields(PyTorchOptions)}
    assert said == {name: "" if value == () else str(value).lower() for name, value in actual.items()}


LOADER = """
#include "kserve_wasm.h"
__attribute__((import_module("wasi_ephemeral_nn"), import_name("load"))) kw_errno nn_load(
    const void *builders, uint32_t count, uint32_t encoding, uint32_t target, kw_graph *graph_out);

static const unsigned char archive[] = {%s};
static const struct { const void *data; uint32_t length; } builder = {archive, sizeof archive};

KW_EXPORT("infer") kw_errno infer(void) {
  kw_graph graph;
  kw_context context;
  kw_tensor x, y;
  KW_TRY(nn_load(&builder, 1, 3, 0, &graph));
  KW_TRY(kw_init_execution_context(graph, &context));
  KW_TRY(kw_input_by_name(KW_STR("x"), &x));
  KW_TRY(kw_set_input_tensor(context, 0, x));
  KW_TRY(kw_compute(context));
  KW_TRY(kw_get_output_tensor(context, 0, &y));
  return kw_output_set(KW_STR("y"), y);
}
"""
"""A guest that brings its graph along: 3 is WASI-NN's number of PyTorch."""


def bringing(archive: bytes, folder: Path) -> None:
    module = compile_guest(LOADER % ",".join(map(str, archive)))
    (folder / "model.wasm").write_bytes(module.read_bytes())
    (folder / "model.yaml").write_text("nn: {allow_load: true}\n")


@pytest.mark.parametrize("archive", [mlp, lambda: models.traced(models.Mlp(), torch.zeros(2, 4))])
def test_a_graph_that_a_guest_brings_is_refused(archive: Callable[[], bytes], tmp_path: Path) -> None:
    bringing(archive(), tmp_path)
    with pytest.raises(NotSupported, match="pytorch graphs are not opened from a guest's own bytes"):
        answers(tmp_path)


# --- On a device, which here is host memory behind the functions of one


@pytest.fixture
def device() -> Accelerator:
    return Accelerator(HostRuntime())


def on_device(data: bytes, device: Accelerator) -> TorchGraph:
    archive = Archive(GraphSource("g", "pytorch", data=data))
    return TorchGraph("g", open_program(archive, torch.device("cpu")), device, 1)


def test_tensors_stay_on_the_device_from_graph_to_graph(device: Accelerator) -> None:
    graph = on_device(models.exported(torch.nn.Linear(4, 4), torch.zeros(2, 4)), device)
    x = ROWS.copy()
    for _ in range(3):
        tensor = Tensor.from_numpy(x)
        before = device.copied_bytes("to_device")
        for _ in range(2):
            tensor = graph.run({graph.inputs[0].name: tensor})["output"]
            assert tensor.device == device.name
        assert device.copied_bytes("to_device") - before == x.nbytes
        assert device.copied_bytes("to_host") == 0
        x += 1
    tensor.numpy()
    assert device.copied_bytes("to_host") == x.nbytes


@pytest.mark.parametrize("dtype", models.TORCH)
def test_every_dtype_goes_over_a_device_unchanged(dtype: str, device: Accelerator) -> None:
    graph = on_device(models.exported(models.Identity(), models.example(models.TORCH[dtype], 2)), device)
    for shape in ((3, 5), (0, 4), (1, 1)):
        x = some_tensor(DTYPES[dtype], shape)
        y = graph.run({"x": x})["y"]
        assert (y.dtype, y.shape, y.buffer()) == (x.dtype, x.shape, x.buffer())


def test_rows_of_a_tensor_on_the_device_are_used_in_place(device: Accelerator) -> None:
    graph = on_device(mlp(), device)
    (tensor,) = Tensor.move([Tensor.from_numpy(ROWS)], device)
    copied = device.copied_bytes("to_device")
    y = graph.run({"x": tensor.rows(1, 4)})["y"]
    assert device.copied_bytes("to_device") == copied
    np.testing.assert_allclose(y.numpy(), mlp_oracle(ROWS)[1:4], rtol=1e-4, atol=1e-5)


def test_nothing_is_left_on_the_device(device: Accelerator) -> None:
    graph = on_device(mlp(), device)
    held = device.held_bytes
    for n in range(1, 200):
        x = Tensor.from_numpy(np.ones((n % 7 + 1, 4), np.float32))
        answer = graph.run({"x": x})
    del answer, x
    assert device.held_bytes == held
