"""``kserve-wasm validate``: every finding, and the models that have none."""

from __future__ import annotations

import json

import onnx
import pytest
import wasmtime

from kserve_wasm.artifact.sections import read_sections
from tests.artifact.modules import CODE, custom, write

MEMORY = '(memory (export "memory") 1)'
INFER = '(func (export "infer") (result i32) (i32.const 0))'


def module(*parts: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {' '.join(parts)})"))


def test_a_converted_model_has_no_findings(wasm_model, kserve_wasm):
    done = kserve_wasm("validate", wasm_model)
    assert (done.status, done.out, done.err) == (0, f"ok: {wasm_model} can be served\n", "")


def test_a_plain_guest_has_a_warning(tmp_path, kserve_wasm):
    done = kserve_wasm("validate", write(tmp_path / "m.wasm", CODE))
    assert done.status == 0
    assert ": the model lists no inputs and no outputs" in done.out.splitlines()[0]
    assert len(done.out.splitlines()) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"(module)", "text format"),
        (CODE[:-1], "truncated"),
        (CODE + custom("kserve-wasm.manifest", b"{}"), "the key 'abi' is missing"),
        (
            CODE + custom("kserve-wasm.manifest", b'{"abi":"tensor"}') + b"\x01\x01\x00",
            "code must come first",
        ),
        (CODE[:8] + b"\x0a\x03\x01\x01\x00", "m.wasm is not a module that the engine accepts"),
        (module(INFER), 'must export its memory as "memory"'),
        (module(MEMORY), 'must export the function "infer" of type () → i32, got nothing'),
        (module(MEMORY, '(func (export "infer") (param i32))'), "got ['i32'] → []"),
        (module(MEMORY, '(global (export "infer") i32 (i32.const 0))'), "got GlobalType"),
        (module(MEMORY, INFER, '(func (export "_initialize") (result i32) i32.const 0)'), '"_initialize"'),
        (module('(memory (export "memory") i64 1)', INFER), "64-bit memories"),
        (module('(memory (export "memory") 1 2 shared)', INFER), "shared memories"),
        (
            module('(memory (export "memory") 65536)', INFER),
            "65536 pages exceeds memory limits; raise limits",
        ),
        (module(MEMORY, INFER, "(table 1 funcref)" * 2), "not a module that the engine accepts"),
        (module(MEMORY, INFER, "(table 15000 funcref)"), "15000 elements exceeds table limits; raise limits"),
        (
            module('(import "env" "now" (func))', MEMORY, INFER),
            "imports what this host does not offer: env.now",
        ),
        (
            module('(import "kserve_wasm" "no_such" (func))', MEMORY, INFER),
            "imports what this host does not offer: kserve_wasm.no_such",
        ),
        (
            module('(import "wasi_ephemeral_nn" "compute" (func (param i64) (result i32)))', MEMORY, INFER),
            "incompatible import type for `wasi_ephemeral_nn::compute`",
        ),
        (
            module('(import "wasi_snapshot_preview1" "nope" (func))', MEMORY, INFER),
            "unknown import: `wasi_snapshot_preview1::nope`",
        ),
        (
            module(MEMORY, INFER, "(func $s unreachable) (start $s)"),
            "no instance can be made: the guest trapped in s",
        ),
        (
            module(MEMORY, INFER, '(func (export "load") (result i32) (i32.const 3))'),
            "no instance can be made: ",
        ),
    ],
)
def test_what_is_wrong_is_a_line_that_says_what_to_do(data, message, tmp_path, kserve_wasm):
    done = kserve_wasm("validate", write(tmp_path / "m.wasm", data))
    assert done.status == 1
    errors = [line for line in done.out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "; " in errors[0]
    assert "ok:" not in done.out


def test_all_findings_are_listed(tmp_path, kserve_wasm):
    write(
        tmp_path / "model.wasm",
        module('(import "env" "a" (func))', '(import "env" "b" (func))', MEMORY, INFER),
    )
    write(tmp_path / "g.onnx", b"no model")
    graphs = b"graphs: [{name: g, path: g.onnx, encoding: onnx}, {name: h, path: g.onnx, encoding: onnx}]"
    write(tmp_path / "model.yaml", graphs)
    done = kserve_wasm("validate", tmp_path)
    assert [line.split(":")[0] for line in done.out.splitlines()] == ["warning", *["error"] * 3]
    for finding in ("env.a, env.b", "graph 'g' cannot be opened", "graph 'h' cannot be opened"):
        assert finding in done.out


def test_a_guest_that_opens_graphs_when_it_starts_is_given_them(onnx_model, tmp_path, kserve_wasm):
    load = """(import "wasi_ephemeral_nn" "load_by_name" (func $open (param i32 i32 i32) (result i32)))
        (data (i32.const 0) "g") (func (export "load") (result i32)
        (call $open (i32.const 0) (i32.const 1) (i32.const 16)))"""
    write(tmp_path / "model.wasm", module(load, MEMORY, INFER))
    write(tmp_path / "g.onnx", onnx_model.read_bytes())
    write(tmp_path / "model.yaml", b"graphs: [{name: g, path: g.onnx, encoding: onnx}]")
    assert kserve_wasm("validate", tmp_path).status == 0
    write(tmp_path / "model.yaml", b"graphs: [{name: other, path: g.onnx, encoding: onnx}]")
    done = kserve_wasm("validate", tmp_path)
    assert done.status == 1
    assert "no instance can be made: " in done.out


def test_wasi_imports_are_those_of_the_host(tmp_path, kserve_wasm):
    wasi = '(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))'
    assert kserve_wasm("validate", write(tmp_path / "m.wasm", module(wasi, MEMORY, INFER))).status == 0


def test_graphs_that_do_not_open_are_named(tmp_path, kserve_wasm):
    write(tmp_path / "model.wasm", CODE)
    write(tmp_path / "g.onnx", b"no model")
    write(tmp_path / "model.yaml", b"graphs: [{name: g, path: g.onnx, encoding: onnx}]")
    done = kserve_wasm("validate", tmp_path)
    assert done.status == 1
    assert f"error: {tmp_path}: graph 'g' cannot be opened" in done.out


def test_a_side_file_that_is_missing_is_named(tmp_path, kserve_wasm):
    write(tmp_path / "model.wasm", CODE)
    write(tmp_path / "model.yaml", b"graphs: [{name: g, path: g.onnx, encoding: onnx}]")
    done = kserve_wasm("validate", tmp_path)
    assert done.status == 1
    assert "model.yaml, line 1, graphs[0].path: there is no file 'g.onnx'" in done.out


def test_limits_of_model_yaml_count(wasm_model, tmp_path, kserve_wasm):
    (tmp_path / "model.wasm").write_bytes(wasm_model.read_bytes())
    write(tmp_path / "model.yaml", b"limits: {memory: 1Ki}")
    done = kserve_wasm("validate", tmp_path)
    assert done.status == 1
    assert "memory minimum size of 1 pages exceeds memory limits; raise limits in model.yaml" in done.out


def doctored(path, change):
    """The artefact with another manifest of the same length."""
    data = path.read_bytes()
    section = next(s for s in read_sections(path) if s.name == "kserve-wasm.manifest")
    manifest = change(json.loads(data[section.offset : section.end]))
    text = json.dumps(manifest, separators=(",", ":")).encode()
    assert len(text) <= section.length
    return data[: section.offset] + text.ljust(section.length) + data[section.end :]


def test_a_manifest_that_is_not_the_graphs_is_found(wasm_model, tmp_path, kserve_wasm):
    def change(manifest):
        manifest["inputs"][0]["datatype"] = "FP16"
        manifest["outputs"][1]["name"] = "q"
        manifest["producer"] = "x"
        return manifest

    done = kserve_wasm("validate", write(tmp_path / "m.wasm", doctored(wasm_model, change)))
    assert done.status == 1
    assert "the input 'x' is listed as FP16 [-1, 64], but the graph's is FP32 [-1, 64]" in done.out
    assert "the graph's output 'z' is not listed" in done.out
    assert "the output 'q' is listed, but the graph has none of that name" in done.out


def test_weights_outside_their_section_are_found(wasm_model, tmp_path, kserve_wasm):
    data = wasm_model.read_bytes()
    # The offset of the weights, as the ONNX graph spells it; the manifest's stays.
    assert data.count(b"offset\x12\x0565536") == 1
    moved = data.replace(b"offset\x12\x0565536", b"offset\x12\x0500000")
    done = kserve_wasm("validate", write(tmp_path / "m.wasm", moved))
    assert done.status == 1
    assert "the weights 'w' of the graph 'default' lie outside its weights sections" in done.out


def test_every_version_is_checked(tmp_path, kserve_wasm):
    write(tmp_path / "1" / "model.wasm", CODE)
    write(tmp_path / "2" / "model.wasm", module(MEMORY))
    done = kserve_wasm("validate", tmp_path)
    assert done.status == 1
    assert done.out.count("warning: ") == 2


def test_each_mistake_of_model_yaml_is_a_line(tmp_path, kserve_wasm):
    write(tmp_path / "model.wasm", CODE)
    write(tmp_path / "model.yaml", b"device: tpu\nlimits:\n  memory: lots\n  handles: -1\n")
    done = kserve_wasm("validate", tmp_path)
    assert [line.split(": ")[2] for line in done.out.splitlines()] == [
        "model.yaml, line 1, device",
        "model.yaml, line 3, limits.memory",
        "model.yaml, line 4, limits.handles",
    ]


def test_each_model_of_a_repository_is_checked(wasm_model, tmp_path, kserve_wasm):
    write(tmp_path / "good" / "model.wasm", wasm_model.read_bytes())
    write(tmp_path / "bad" / "model.wasm", b"(module)")
    done = kserve_wasm("validate", tmp_path)
    bad, good = done.out.splitlines()
    assert done.status == 1
    assert bad.startswith(f"error: {tmp_path}/bad: expected a WebAssembly module")
    assert good == f"ok: {tmp_path}/good can be served"


def test_models_that_are_passed_over_are_named(wasm_model, tmp_path, kserve_wasm):
    for name in ("2", "v1", "x"):
        write(tmp_path / name / "model.wasm", wasm_model.read_bytes())
    (tmp_path / "notes").mkdir()
    done = kserve_wasm("validate", tmp_path)
    assert done.status == 0
    assert [line.split(";")[0] for line in done.out.splitlines()] == [
        f"warning: {tmp_path}: the directory 'v1' holds a model that is not looked at",
        f"warning: {tmp_path}: the directory 'x' holds a model that is not looked at",
        f"ok: {tmp_path} can be served",
    ]


def test_a_version_policy_that_cannot_be_met_is_found(wasm_model, tmp_path, kserve_wasm):
    write(tmp_path / "1" / "model.wasm", wasm_model.read_bytes())
    write(tmp_path / "model.yaml", b"version_policy: {specific: [2]}")
    done = kserve_wasm("validate", tmp_path)
    assert done.status == 1
    assert "version_policy names version 2, which is not there" in done.out


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("batching: {max_batch: 8}", "model.yaml, line 1, batching: unknown key 'max_batch'"),
        ("batching: {graphs: {tokens: {}}}", "the model has no graph of this name, only: 'default'"),
        (
            "batching: {padding: {length: {sizes: [8]}}}",
            "no input of graph 'default' has a dimension 'length'",
        ),
    ],
)
def test_batching_that_the_model_does_not_allow_is_an_error(wasm_model, tmp_path, kserve_wasm, yaml, message):
    write(tmp_path / "model.wasm", wasm_model.read_bytes())
    write(tmp_path / "model.yaml", b"batching: {max_batch_size: 8}")
    assert kserve_wasm("validate", tmp_path).status == 0
    write(tmp_path / "model.yaml", yaml.encode())
    done = kserve_wasm("validate", tmp_path)
    assert (done.status, done.out.startswith("error: ")) == (1, True)
    assert message in done.out


def test_a_batch_size_for_a_graph_that_has_no_batch_dimension_is_an_error(tmp_path, kserve_wasm):
    whole = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        agraph (float[3, 2] x) => (float[3, 2] y) { y = Add (x, x) }""")
    onnx.save(whole, tmp_path / "whole.onnx")
    (tmp_path / "m").mkdir()
    assert kserve_wasm("convert", tmp_path / "whole.onnx", "-o", tmp_path / "m" / "model.wasm").status == 0
    assert kserve_wasm("validate", tmp_path / "m").status == 0
    write(tmp_path / "m" / "model.yaml", b"batching: {max_batch_size: 8}")
    done = kserve_wasm("validate", tmp_path / "m")
    assert done.status == 1
    assert "the first dimension of input 'x' is 3 and not open" in done.out
