"""A conversion that cannot vouch for its result leaves nothing behind, and what was there before as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import wasmtime
from onnx import TensorProto as T
from onnx import helper

from kserve_wasm.artifact.write import Blob
from kserve_wasm.convert import Conversion, ConversionError, convert
from kserve_wasm.convert.verify import Example, check_weights, compare
from kserve_wasm.errors import WasmServingError
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec
from tests.convert import models
from tests.convert.models import value
from tests.support import require

CLI = [sys.executable, "-c", "import sys; from kserve_wasm.cli import main; sys.exit(main())"]
ROOT = Path(__file__).parents[2]


def refused(job: Conversion, message: str) -> None:
    """The conversion fails so, and the directory of its output is as it was."""
    before = {p: p.read_bytes() for p in job.output.parent.iterdir() if p.is_file()}
    with pytest.raises(WasmServingError, match=message):
        convert(job)
    assert {p: p.read_bytes() for p in job.output.parent.iterdir() if p.is_file()} == before


def job(model: Path, **options: object) -> Conversion:
    """With an older result in place, which must survive."""
    output = model.with_name("model.wasm")
    output.write_bytes(b"the older model")
    return Conversion(model, output, **options)


def test_a_model_that_answers_differently_each_time_cannot_be_verified(tmp_path):
    refused(job(models.random_normal(tmp_path / "m.onnx")), "answers the same input differently each time")


def test_an_operator_that_onnx_runtime_lacks_is_named(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="")],
        [value("x", T.FLOAT, [1])],
        [value("y", T.FLOAT, [1])],
    )
    refused(job(model), r"ONNX Runtime .* cannot open the model: .*Frobnicate")


def test_outputs_that_are_no_tensors_are_named(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("y", T.FLOAT, None)
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [value("x", T.FLOAT, [1])],
        [sequence],
    )
    refused(job(model), "output 'y' is a sequence, not a tensor.*zipmap")


def test_types_that_the_protocol_lacks_are_named(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", T.COMPLEX64, [1])],
        [value("y", T.COMPLEX64, [1])],
    )
    refused(job(model), "input 'x' is of type COMPLEX64")


def test_an_input_of_unknown_rank_needs_a_shape(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", T.FLOAT, None)],
        [value("y", T.FLOAT, None)],
    )
    refused(job(model), r"how many dimensions input 'x' has; give an example with --shape x=")
    convert(job(model, shapes={"x": (2, 3)}))


def test_a_model_that_takes_no_guess_asks_for_a_shape(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", T.FLOAT, ["n", "m"])],
        [value("y", T.FLOAT, [77])],
        {"shape": np.array([77])},
    )
    refused(job(model), r"--shape x=….* It said: .*reshape")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": {"other": (1,)}}, "--shape names 'other', but the model's inputs are: 'x'"),
        ({"shapes": {"x": (2, 65)}}, "does not fit"),
        ({"name": "a/b"}, "the name must be letters"),
        ({"version": "1/2"}, "the version must be letters"),
        ({"graph": "a\nb"}, "printable"),
        ({"inputs": (TensorSpec("x", DTYPES["FP32"], ()),)}, "need --guest"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path):
    refused(job(models.matmul(tmp_path / "m.onnx"), **options), message)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link"])
def test_external_data_outside_the_models_directory_is_refused(location, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(64 * 512 * 4))
    model = models.matmul(tmp_path / "m" / "m.onnx", external=True)
    (tmp_path / "m" / "link").symlink_to("../secret")
    proto = onnx.load(model, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = location
    model.write_bytes(proto.SerializeToString())
    refused(job(model), "lies outside the model's directory")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("location", "none.bin", "the file 'none.bin' .* is missing"),
        ("length", "999999999", "too short"),
        ("offset", "-8", "must be non-negative"),
        ("offset", "some", "cannot be read"),
        ("length", "1024", "needs 131072 bytes, but the model has 1024"),
    ],
)
def test_external_data_that_is_not_there_is_named(key, text, message, tmp_path):
    model = models.matmul(tmp_path / "m.onnx", external=True)
    proto = onnx.load(model, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = text
    model.write_bytes(proto.SerializeToString())
    refused(job(model), message)


def test_typed_values_that_do_not_fill_the_shape_are_refused(tmp_path):
    short = onnx.TensorProto(name="w", data_type=T.FLOAT, dims=[1000], float_data=[1.0] * 999)
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["w"], ["y"])],
        [],
        [value("y", T.FLOAT, [1000])],
        [short],
    )
    refused(job(model), "the initializer 'w' cannot be read")


@pytest.mark.parametrize("data", [b"", b"hello, world", b"\x00" * 100, b"\x3a\xff\xff\xff\xff\x0f"])
def test_what_is_no_onnx_model_is_refused(data, tmp_path):
    (tmp_path / "m.onnx").write_bytes(data)
    refused(job(tmp_path / "m.onnx"), "is not an ONNX model")


def test_a_model_that_is_not_there_is_named(tmp_path):
    refused(job(tmp_path / "none.onnx"), r"cannot read '.*/none\.onnx'")


@pytest.mark.parametrize(
    ("wat", "message"),
    [
        ('(module (memory (export "memory") 1))', "must export the function"),
        ('(module (func (export "infer") (result i32) i32.const 0))', "must export its memory"),
        (
            '(module (import "env" "f" (func)) (memory (export "memory") 1)'
            ' (func (export "infer") (result i32) i32.const 0))',
            "imports what this host does not offer: env.f",
        ),
    ],
)
def test_a_guest_that_this_host_cannot_run_is_refused(wat, message, tmp_path):
    (tmp_path / "guest.wasm").write_bytes(wasmtime.wat2wasm(wat))
    refused(job(models.matmul(tmp_path / "m.onnx"), guest=tmp_path / "guest.wasm"), message)


def test_a_guest_that_is_text_is_refused(tmp_path):
    (tmp_path / "guest.wasm").write_text("(module)")
    refused(job(models.matmul(tmp_path / "m.onnx"), guest=tmp_path / "guest.wasm"), "text format")


def test_model_and_guest_are_never_replaced(tmp_path):
    model = models.matmul(tmp_path / "m.onnx")
    refused(Conversion(model, model), r"would replace '.*/m\.onnx'")
    (tmp_path / "g.wasm").write_bytes(b"guest")
    refused(Conversion(model, tmp_path / "g.wasm", guest=tmp_path / "g.wasm"), r"would replace '.*/g\.wasm'")


def test_a_directory_is_no_output(tmp_path):
    model = models.matmul(tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="is a directory"):
        convert(Conversion(model, tmp_path / "out"))
    with pytest.raises(ConversionError, match="'/' is a directory"):
        convert(Conversion(model, Path("/")))
    with pytest.raises(ConversionError, match="No such file"):
        convert(Conversion(model, tmp_path / "none" / "model.wasm"))


X = Example({}, {"a": np.float32([1, 2, np.nan]), "b": np.array([b"x"], object), "c": np.int32([7])})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": np.float32([1, 2.01, np.nan])}, "output 'a' .* differs"),
        ({"a": np.float32([1, 2, 3])}, "output 'a' .* differs"),
        ({"a": np.float32([1, 2])}, "output 'a': the original gives"),
        ({"a": np.float64([1, 2, np.nan])}, "output 'a': the original gives"),
        ({"b": np.array([b"y"], object)}, "output 'b' .* differs"),
        ({"c": np.int32([8])}, "output 'c' .* differs"),
    ],
)
def test_any_difference_is_found(changes, message):
    outputs = {n: Tensor.from_numpy(a) for n, a in {**X.outputs, **changes}.items()}
    with pytest.raises(ConversionError, match=message):
        compare(X, outputs)
    compare(X, {n: Tensor.from_numpy(a) for n, a in X.outputs.items()})


def test_missing_outputs_are_found():
    with pytest.raises(ConversionError, match="expected the outputs"):
        compare(X, {"a": Tensor.from_numpy(X.outputs["a"])})


def test_one_flipped_bit_of_the_weights_is_found(tmp_path):
    source = np.random.default_rng(0).bytes(9 << 20)
    (tmp_path / "source").write_bytes(source)
    flipped = bytearray(source)
    flipped[(9 << 20) - 2] ^= 1
    for data, wrong in ((source, False), (bytes(flipped), True)):
        (tmp_path / "artefact").write_bytes(b"head" + data)
        blob = Blob(len(source), (tmp_path / "source", 0))
        if wrong:
            with pytest.raises(ConversionError, match="differ from the original's"):
                check_weights(tmp_path / "artefact", [blob], [4], lambda _: None)
        else:
            check_weights(tmp_path / "artefact", [blob], [4], lambda _: None)


def test_a_file_that_may_not_grow_leaves_nothing_behind(tmp_path):
    """The limit on file sizes stands for any error of the disk in the middle of writing."""
    model = models.matmul(tmp_path / "m.onnx", rows=512)
    (tmp_path / "model.wasm").write_bytes(b"the older model")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500000, 500000)); "
    command = [*CLI[:2], limit + CLI[2], "convert", model, "-o", tmp_path / "model.wasm"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: cannot write '{tmp_path}/model.wasm': File too large\n",
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "model.wasm"]
    assert (tmp_path / "model.wasm").read_bytes() == b"the older model"


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    model = models.matmul(tmp_path / "m.onnx", rows=512)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True)
    require(mounted.returncode == 0, "a full disk needs the right to mount one: run as root")
    try:
        with pytest.raises(ConversionError, match=r"cannot write '.*/model\.wasm': No space left on device"):
            convert(Conversion(model, disk / "model.wasm"))
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_leaves_nothing_behind(number, status, tmp_path):
    """The weights are a gigabyte of holes: quickly made, and long to copy."""
    model = models.matmul(tmp_path / "m.onnx", external=True)
    proto = onnx.load(model, load_external_data=False)
    for i in range(8):
        tensor = proto.graph.initializer.add(name=f"hole{i}", data_type=T.FLOAT, dims=[1 << 25])
        tensor.data_location = T.EXTERNAL
        for key, text in (("location", "holes"), ("offset", str(i << 27)), ("length", str(1 << 27))):
            tensor.external_data.add(key=key, value=text)
    model.write_bytes(proto.SerializeToString())
    with (tmp_path / "holes").open("wb") as holes:
        holes.truncate(1 << 30)
    before = sorted(p.name for p in tmp_path.iterdir())
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [*CLI[:2], heed + CLI[2], "convert", model, "-o", tmp_path / "model.wasm"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob(".model.wasm.*.part")):
        time.sleep(0.005)
    os.kill(process.pid, number)
    _, stderr = process.communicate()
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before
