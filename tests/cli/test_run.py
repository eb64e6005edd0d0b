"""``kserve-wasm run``: expected values come from ONNX Runtime on the original."""

from __future__ import annotations

import json
import sys

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
import wasmtime
from onnx import TensorProto as T
from onnx import helper

from tests.artifact.modules import CODE, write
from tests.convert import models
from tests.convert.models import value

X = np.random.default_rng(0).standard_normal((2, 64), dtype=np.float32)


@pytest.fixture(scope="module")
def expected(onnx_model) -> list[np.ndarray]:
    found: list[np.ndarray] = ort.InferenceSession(onnx_model).run(["y", "z"], {"x": X})
    return found


def test_npy_in_and_json_out(wasm_model, expected, tmp_path, kserve_wasm):
    np.save(tmp_path / "x.npy", X)
    done = kserve_wasm("run", wasm_model, "--input", f"x={tmp_path / 'x.npy'}", "--json")
    assert (done.status, done.err) == (0, "")
    outputs = json.loads(done.out)["outputs"]
    assert [(o["name"], o["datatype"], o["shape"]) for o in outputs] == [
        ("y", "FP32", [2, 512]),
        ("z", "FP32", [2, 512]),
    ]
    for output, want in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(np.float32(output["data"]), want.reshape(-1), rtol=1e-5)


def test_json_in_and_npy_out(wasm_model, expected, tmp_path, kserve_wasm):
    done = kserve_wasm(
        "run", wasm_model, "-i", f"x=json:{json.dumps(X.tolist())}", "--output-dir", tmp_path / "d"
    )
    assert done.status == 0
    for name, want in zip("yz", expected, strict=True):
        np.testing.assert_allclose(np.load(tmp_path / "d" / f"{name}.npy"), want, rtol=1e-5)


def test_outputs_are_readable(wasm_model, kserve_wasm):
    done = kserve_wasm("run", wasm_model, "-i", f"x=json:{[[0.0] * 64]}")
    assert done.status == 0
    assert done.out.splitlines()[:2] == ["y  FP32 [1, 512]", "[[0. 0. 0. 0. ... 0. 0. 0. 0.]]"]


def identity(folder, kserve_wasm, dtype, shape):
    model = models.save(
        folder / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", dtype, shape)],
        [value("y", dtype, shape)],
    )
    assert kserve_wasm("convert", model, "-o", folder / "model.wasm").status == 0
    return folder / "model.wasm"


def test_a_file_is_one_element_of_text(tmp_path, kserve_wasm):
    model = identity(tmp_path, kserve_wasm, T.STRING, ["n", 1])
    (tmp_path / "text").write_text("line\nGrüße")
    done = kserve_wasm("run", model, "-i", f"x=@{tmp_path / 'text'}", "--json")
    (output,) = json.loads(done.out)["outputs"]
    assert (output["shape"], output["data"]) == ([1, 1], ["line\nGrüße"])
    done = kserve_wasm("run", model, "-i", f"x=@{tmp_path / 'text'}", "--output-dir", tmp_path)
    assert np.load(tmp_path / "y.npy").tolist() == [["line\nGrüße".encode()]]


def test_bfloat16_survives_npy(tmp_path, kserve_wasm):
    model = identity(tmp_path, kserve_wasm, T.BFLOAT16, ["n"])
    np.save(tmp_path / "x.npy", np.arange(3).astype(ml_dtypes.bfloat16))
    done = kserve_wasm("run", model, "-i", f"x={tmp_path / 'x.npy'}", "--json")
    assert json.loads(done.out)["outputs"][0]["data"] == [0.0, 1.0, 2.0]


def test_what_is_not_finite_is_still_json(tmp_path, kserve_wasm):
    model = identity(tmp_path, kserve_wasm, T.FLOAT, ["n"])
    np.save(tmp_path / "x.npy", np.float32([np.inf, np.nan, 1]))
    done = kserve_wasm("run", model, "-i", f"x={tmp_path / 'x.npy'}", "--json")
    assert json.loads(done.out, parse_constant=lambda _: pytest.fail("not JSON"))["outputs"][0]["data"] == [
        "Infinity",
        None,
        1.0,
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "input 'x' is missing"),
        (["x=json:[[1]]"], "input 'x' must have shape [-1, 64]"),
        (["x=json:[[1"], "input 'x': expected JSON"),
        (['x=json:["a"]'], "input 'x': element 0 must be a number"),
        (["y=json:[1]"], "the model takes 'x', got 'y'"),
        (["x=/no/such/file.npy"], "input 'x': cannot read '/no/such/file.npy': No such file or directory"),
        (["x=[[1,2,3]]"], "values stand behind 'json:', as in x=json:[[1, 2]]"),
        (["x=@/no/such/file"], "input 'x': cannot read '/no/such/file': No such file"),
        (["x=json:[[1]]", "x=json:[[2]]"], "input 'x' is given twice"),
        ([f"x={sys.executable}"], "is no .npy file"),
    ],
)
def test_wrong_inputs_are_one_line(given, message, wasm_model, kserve_wasm):
    done = kserve_wasm("run", wasm_model, *(part for text in given for part in ("-i", text)))
    assert done.status == 1
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_outputs_that_are_not_as_listed_are_warned_of(wasm_model, tmp_path, kserve_wasm):
    write(tmp_path / "model.wasm", wasm_model.read_bytes())
    write(
        tmp_path / "model.yaml",
        b"outputs: [{name: y, datatype: FP32, shape: [-1, 2]}, {name: species, datatype: INT64, shape: []}]",
    )
    done = kserve_wasm("run", tmp_path, "-i", f"x=json:{[[0.0] * 64]}")
    assert (done.status, done.err.splitlines()) == (
        0,
        [
            "warning: the output 'y' is listed as FP32 [-1, 2], but came as FP32 [1, 512]",
            "warning: the output 'z' is not listed; the model lists 'y', 'species'",
            "warning: the output 'species' is listed, but did not come",
        ],
    )


def test_pickles_are_not_opened(wasm_model, tmp_path, kserve_wasm):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    done = kserve_wasm("run", wasm_model, "-i", f"x={tmp_path / 'x.npy'}")
    assert done.status == 1
    assert "is no .npy file with plain values" in done.err


def test_versions_can_be_chosen(tmp_path, kserve_wasm):
    for number in ("1", "2"):
        write(tmp_path / number / "model.wasm", CODE)
    assert kserve_wasm("run", tmp_path).status == 0
    assert kserve_wasm("run", tmp_path, "--model-version", "1").status == 0
    done = kserve_wasm("run", tmp_path, "--model-version", "3")
    assert (done.status, done.err) == (1, "error: there is no version '3', only 1, 2\n")


def test_parameters_reach_the_guest_and_come_back(tmp_path, kserve_wasm):
    """The guest gives parameter "k" of the request back as parameter "r" of the response."""
    wat = """(module
      (import "kserve_wasm" "parameter" (func $get (param i32 i32 i32 i32 i32) (result i32)))
      (import "kserve_wasm" "output_parameter" (func $put (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1) (data (i32.const 0) "kr")
      (func (export "infer") (result i32)
        (drop (call $get (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 100) (i32.const 8)))
        (call $put (i32.const 1) (i32.const 1) (i32.const 16) (i32.load (i32.const 8)))))"""
    model = write(tmp_path / "m.wasm", bytes(wasmtime.wat2wasm(wat)))
    done = kserve_wasm("run", model, "--parameter", "k=a=b", "--json")
    assert json.loads(done.out) == {"outputs": [], "parameters": {"r": "a=b"}}
    assert kserve_wasm("run", model, "-p", "k=\x1b[2J").out == "r = ?[2J\n"
