"""``kserve-wasm inspect``."""

from __future__ import annotations

import hashlib
import json

import wasmtime

from kserve_wasm.artifact import Manifest
from kserve_wasm.cli.models import load
from tests.artifact.modules import CODE, artifact, custom, write
from tests.cli.test_main import in_process


def test_json_tells_what_the_bytes_are(wasm_model, kserve_wasm):
    done = kserve_wasm("inspect", wasm_model, "--json")
    assert done.status == 0
    found = json.loads(done.out)
    data = wasm_model.read_bytes()

    def sha256(part: bytes) -> str:
        return f"sha256:{hashlib.sha256(part).hexdigest()}"

    assert (found["size"], found["digest"]) == (len(data), sha256(data))
    assert found["code_digest"] == sha256(data[: found["code_length"]]) == load(wasm_model).digest
    assert (found["name"], found["abi"]) == ("mlp", "tensor")
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["batch", 64]}]
    assert [o["name"] for o in found["outputs"]] == ["y", "z"]
    (graph,) = found["graphs"]
    (weights,) = graph["weights"]
    for part in (graph, weights):
        assert part["digest"] == sha256(data[part["offset"] : part["offset"] + part["length"]])
    assert weights["length"] == 64 * 512 * 4
    assert found["imports"] == [
        {"module": "kserve_wasm", "name": "run_graph", "type": "func (i32, i32) → i32"}
    ]
    assert found["exports"] == [
        {"name": "memory", "type": "memory 1 pages"},
        {"name": "infer", "type": "func () → i32"},
    ]
    last = found["sections"][-1]
    assert (last["name"], last["offset"] + last["length"]) == ("kserve-wasm.weights", len(data))


def test_the_table_shows_the_same(wasm_model, kserve_wasm):
    done = kserve_wasm("inspect", wasm_model)
    assert done.status == 0
    for text in ("mlp", "FP32", "[batch, 64]", "run_graph", "131,072", "kserve-wasm.weights"):
        assert text in done.out


def test_lines_of_the_table_are_whole_and_end_with_their_text(wasm_model):
    done = in_process("inspect", str(wasm_model))
    whole = hashlib.sha256(wasm_model.read_bytes()).hexdigest()
    assert f"  digest       sha256:{whole}" in done.stdout.splitlines()
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())


def test_a_directory_is_shown_by_its_highest_version(wasm_model, tmp_path, kserve_wasm):
    write(tmp_path / "m" / "9" / "model.wasm", CODE)
    write(tmp_path / "m" / "10" / "model.wasm", wasm_model.read_bytes())
    found = json.loads(kserve_wasm("inspect", tmp_path / "m", "--json").out)
    assert (found["name"], found["path"]) == ("mlp", str(tmp_path / "m" / "10" / "model.wasm"))


def test_batching_hints_are_shown(tmp_path, kserve_wasm):
    hints = {"max_batch_size": 8, "preferred_batch_size": [4]}
    path = write(tmp_path / "m.wasm", artifact(Manifest("tensor", batching=hints)))
    assert json.loads(kserve_wasm("inspect", path, "--json").out)["batching"] == hints
    assert (
        "Batching\n  max_batch_size        8\n  preferred_batch_size  [4]\n"
        in kserve_wasm("inspect", path).out
    )


def test_every_kind_of_export_is_named(tmp_path, kserve_wasm):
    wat = """(module
      (memory (export "m") 1 5) (table (export "t") 2 funcref)
      (global (export "g") (mut i64) (i64.const 0)) (func (export "f") (param f32)))"""
    path = write(tmp_path / "m.wasm", bytes(wasmtime.wat2wasm(wat)))
    exports = {
        e["name"]: e["type"] for e in json.loads(kserve_wasm("inspect", path, "--json").out)["exports"]
    }
    assert exports == {
        "m": "memory 1 to 5 pages",
        "t": "table 2 funcref",
        "g": "global mutable i64",
        "f": "func (f32)",
    }


def test_names_cannot_control_the_terminal_or_the_markup(tmp_path, kserve_wasm):
    path = write(tmp_path / "m.wasm", CODE + custom("\x1b]0;owned\x07", b"") + custom("[red]x[/red]", b""))
    done = kserve_wasm("inspect", path)
    assert done.status == 0
    assert "\x1b" not in done.out
    assert "\\x1b]0;owned\\x07" in done.out
    assert "[red]x[/red]" in done.out


def test_invalid_code_is_an_error(tmp_path, kserve_wasm):
    path = write(tmp_path / "m.wasm", CODE[:8] + b"\x0a\x03\x01\x01\x00")
    done = kserve_wasm("inspect", path)
    assert done.status == 1
    assert done.err.startswith(f"error: {path}: the code is not a valid module")
