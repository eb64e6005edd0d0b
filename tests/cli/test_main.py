"""The command itself: help, usage, errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kserve_wasm import __version__
from kserve_wasm.cli import COMMANDS

ROOT = Path(__file__).parents[2]
CODE = "import sys; from kserve_wasm.cli import main; sys.exit(main())"


def in_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_help_lists_the_commands_and_imports_none_of_them():
    code = (
        "import sys\nfrom kserve_wasm.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(m for m in ('numpy', 'onnxruntime', 'wasmtime', 'kserve', 'rich') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
    for name, text in COMMANDS.items():
        assert f"{name} " in done.stdout
        assert text in done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "serve"])
def test_each_command_explains_itself(command, kserve_wasm):
    done = kserve_wasm(command, "--help")
    assert done.status == 0
    assert done.out.startswith(f"usage: kserve-wasm {command} ")


def test_version(kserve_wasm):
    assert kserve_wasm("--version").out == f"kserve-wasm {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["inspect"],
        ["inspect", "a.wasm", "--jsn"],
        ["convert", "model.onnx"],
        ["convert", "model.onnx", "-o", "x", "--input", "x:FP31:1"],
        ["convert", "model.onnx", "-o", "x", "--shape", "x=a"],
        ["run", "model.wasm", "--input", "x"],
        ["run", "model.wasm", "--json", "--output-dir", "d"],
    ],
)
def test_wrong_usage_is_status_2(arguments, kserve_wasm):
    done = kserve_wasm(*arguments)
    assert done.status == 2
    assert done.err.startswith("usage: kserve-wasm")


@pytest.mark.parametrize("command", ["inspect", "run"])
def test_an_error_is_one_line(command, tmp_path, kserve_wasm):
    (tmp_path / "m.wasm").write_text("(module)")
    done = kserve_wasm(command, tmp_path / "m.wasm")
    assert done.status == 1
    assert done.err.startswith(f"error: {tmp_path / 'm.wasm'}: expected a WebAssembly module")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("command", ["inspect", "run", "validate"])
def test_what_is_no_model_is_named_as_it_was_given(command, onnx_model, kserve_wasm):
    done = kserve_wasm(command, "no/such/../model.wasm")
    assert (done.status, done.err) == (1, "error: 'no/such/../model.wasm' does not exist\n")
    done = kserve_wasm(command, onnx_model)
    assert done.status == 1
    assert f"kserve-wasm convert {onnx_model} -o model.wasm" in done.err


def test_several_mistakes_are_one_line_too(tmp_path, kserve_wasm):
    (tmp_path / "model.yaml").write_text("device: tpu\nname: 3\n")
    assert kserve_wasm("run", tmp_path).err == (
        f"error: {tmp_path}: model.yaml, line 1, device: expected one of cpu, gpu; got 'tpu'; "
        "model.yaml, line 2, name: expected text, got 3\n"
    )


def test_debug_shows_where_an_error_comes_from(tmp_path, kserve_wasm):
    done = kserve_wasm("inspect", tmp_path / "none.wasm", "--debug")
    assert done.status == 1
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("error: ")


def test_a_reader_that_has_gone_is_no_error(wasm_model):
    command = f'{sys.executable} -c "{CODE}" inspect {wasm_model} | true'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""


def test_serve_reads_its_flags_itself():
    done = in_process("serve", "--no-such-flag")
    assert done.returncode == 2
    assert done.stderr == "kserve-wasm serve: error: unrecognized arguments: --no-such-flag\n"
