"""Converted models answer as ONNX Runtime answers on the original, and carry its weights to the last bit."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from kserve_wasm.artifact import load_model_dir, read_artifact
from kserve_wasm.convert import Conversion, convert
from kserve_wasm.errors import InvalidRequest
from kserve_wasm.guest import GuestModel
from kserve_wasm.request import InferenceRequest
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec
from tests.convert import models
from tests.convert.models import value

NUMERIC = [name for name in DTYPES if name not in ("BYTES",)]


def converted(model: Path, **options: object) -> Path:
    output = model.with_name("model.wasm")
    assert convert(Conversion(model, output, **options)) >= 1
    assert sorted(p.suffix for p in model.parent.iterdir() if p.name.startswith(".")) == []
    return output


def answers(path: Path, outputs: list[str] | None = None, **inputs: np.ndarray) -> dict[str, Tensor]:
    (config,) = load_model_dir(path, "m")
    model = GuestModel(config)
    model.load()
    try:
        request = InferenceRequest({n: Tensor.from_numpy(a) for n, a in inputs.items()}, outputs=outputs)
        return model.infer(request).outputs
    finally:
        model.close()


def weights_in(path: Path) -> dict[str, bytes]:
    """The moved weights of an artefact, read as the ONNX specification says: file, offset, length."""
    data = path.read_bytes()
    (graph,) = read_artifact(path).graphs
    model = onnx.load_model_from_string(data[graph.section.offset : graph.section.end])
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == T.EXTERNAL:
            entry = {e.key: e.value for e in tensor.external_data}
            found[tensor.name] = data[int(entry["offset"]) :][: int(entry["length"])]
    return found


def test_a_matrix_product_answers_as_the_original(tmp_path):
    model = models.matmul(tmp_path / "mlp.onnx")
    path = converted(model)
    x = np.random.default_rng(5).standard_normal((7, 64), dtype=np.float32)
    expected = ort.InferenceSession(model).run(["y", "z"], {"x": x})
    got = answers(path, x=x)
    assert list(got) == ["y", "z"]
    for tensor, want in zip(got.values(), expected, strict=True):
        np.testing.assert_allclose(tensor.numpy(), want, rtol=1e-6)


def test_inputs_outputs_and_names_are_in_the_manifest(tmp_path):
    path = converted(models.matmul(tmp_path / "my mlp.onnx"), version="3", graph="net")
    manifest = read_artifact(path).manifest
    assert manifest is not None
    assert (manifest.name, manifest.version, manifest.abi) == ("my-mlp", "3", "tensor")
    assert [g.name for g in manifest.graphs] == ["net"]
    assert manifest.inputs == (TensorSpec("x", DTYPES["FP32"], ("batch", 64)),)
    assert manifest.outputs == tuple(TensorSpec(n, DTYPES["FP32"], ("batch", 512)) for n in ("y", "z"))


def test_only_requested_outputs_are_answered(tmp_path):
    path = converted(models.matmul(tmp_path / "m.onnx"))
    assert list(answers(path, outputs=["z"], x=np.zeros((1, 64), np.float32))) == ["z"]


def test_a_missing_input_is_named(tmp_path):
    path = converted(models.matmul(tmp_path / "m.onnx"))
    with pytest.raises(InvalidRequest, match="input 'x' is missing"):
        answers(path)


@pytest.mark.parametrize("external", [False, True])
def test_weights_are_the_originals_to_the_last_bit(external, tmp_path):
    rng = np.random.default_rng(1)
    arrays = {
        "a": rng.standard_normal((100, 200), dtype=np.float32),
        "b": rng.standard_normal((300, 100)).astype(np.float16),
        "c": rng.integers(-(2**62), 2**62, (50, 50)),
        "d": rng.standard_normal((64, 64)).astype(ml_dtypes.bfloat16),
        "e": rng.integers(0, 2, 5000).astype(bool),
        "small": np.float32([1, 2, 3]),
    }
    nodes = [helper.make_node("Identity", [n], [f"out_{n}"]) for n in arrays]
    nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    model = models.save(
        tmp_path / "m.onnx",
        nodes,
        [value("x", T.FLOAT, ["n"])],
        [value("y", T.FLOAT, ["n"])]
        + [value(f"out_{n}", helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in arrays.items()],
        arrays,
        external=external,
    )
    path = converted(model)
    moved = weights_in(path)
    assert set(moved) >= {"a", "b", "c", "d", "e"}
    for name, data in moved.items():
        assert data == arrays[name].tobytes()
    got = answers(path, x=np.float32([1]))
    for name, array in arrays.items():
        assert got[f"out_{name}"].numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", NUMERIC)
@pytest.mark.parametrize("shape", [[], [3], ["n", 2], ["a", "b", "a"], [None, None]])
def test_every_numeric_type_and_shape_passes_through(dtype, shape, tmp_path):
    kind = DTYPES[dtype]
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", kind.onnx, shape)],
        [value("y", kind.onnx, shape)],
    )
    path = converted(model)
    sizes = [d if isinstance(d, int) else 4 for d in shape]
    x = np.random.default_rng(2).integers(0, 2, sizes).astype(kind.numpy)
    got = answers(path, x=x)["y"]
    assert (got.dtype, got.shape) == (kind, tuple(sizes))
    np.testing.assert_array_equal(got.numpy(), x)


def test_text_passes_through(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", T.STRING, ["n", 2])],
        [value("y", T.STRING, ["n", 2])],
    )
    x = np.array([["", "Grüße"], ["a", "🙂"]], dtype=object)
    got = answers(converted(model), x=x)["y"].numpy()
    assert [e.decode() for e in got.reshape(-1)] == ["", "Grüße", "a", "🙂"]


def test_several_inputs_of_several_types_keep_their_places(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Cast", ["b"], ["bf"], to=T.FLOAT),
            helper.make_node("Sub", ["a", "bf"], ["difference"]),
            helper.make_node("Not", ["c"], ["negated"]),
        ],
        [value("c", T.BOOL, ["n"]), value("a", T.FLOAT, ["n"]), value("b", T.INT8, ["n"])],
        [value("negated", T.BOOL, ["n"]), value("difference", T.FLOAT, ["n"])],
    )
    got = answers(converted(model), b=np.int8([5, 6]), a=np.float32([1, 2]), c=np.array([True, False]))
    assert got["difference"].numpy().tolist() == [-4.0, -4.0]
    assert got["negated"].numpy().tolist() == [False, True]


def test_indices_out_of_a_small_table_are_guessed_right(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Gather", ["table", "ids"], ["rows"])],
        [value("ids", T.INT64, ["batch", "length"])],
        [value("rows", T.FLOAT, ["batch", "length", 4])],
        {"table": np.arange(12, dtype=np.float32).reshape(3, 4)},
    )
    got = answers(converted(model), ids=np.array([[2, 0]]))["rows"].numpy()
    assert got.tolist() == [[[8, 9, 10, 11], [0, 1, 2, 3]]]


def test_numbers_in_text_are_guessed(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Cast", ["text"], ["number"], to=T.FLOAT)],
        [value("text", T.STRING, ["n"])],
        [value("number", T.FLOAT, ["n"])],
    )
    assert answers(converted(model), text=np.array(["1.25"], object))["number"].numpy().tolist() == [1.25]


def test_sizes_that_only_one_number_fits_are_guessed(tmp_path):
    """As an image model exported with open height and width, and a reshape to its own size within."""
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", T.FLOAT, ["n", "height"])],
        [value("y", T.FLOAT, [16, 16])],
        {"shape": np.array([16, 16])},
    )
    assert answers(converted(model), x=np.zeros((16, 16), np.float32))["y"].shape == (16, 16)


def test_a_dimension_of_minus_one_is_open(tmp_path):
    """As some exporters write it, against ONNX's own words."""
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", T.FLOAT, [-1, 2])],
        [value("y", T.FLOAT, [-1, 2])],
    )
    path = converted(model)
    assert load_model_dir(path, "m")[0].inputs[0].v2_shape == [-1, 2]
    assert answers(path, x=np.zeros((5, 2), np.float32))["y"].shape == (5, 2)


def test_a_shape_can_be_given_where_guesses_fail(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", T.FLOAT, ["n", "m"])],
        [value("y", T.FLOAT, [77])],
        {"shape": np.array([77])},
    )
    assert answers(converted(model, shapes={"x": (7, 11)}), x=np.zeros((11, 7), np.float32))["y"].shape == (
        77,
    )


def test_an_input_with_a_default_need_not_be_sent(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        [value("x", T.FLOAT, ["n", 2]), value("bias", T.FLOAT, [2])],
        [value("y", T.FLOAT, ["n", 2])],
        {"bias": np.float32([10, 20])},
    )
    path = converted(model)
    assert [s.name for s in load_model_dir(path, "m")[0].inputs] == ["x"]
    assert answers(path, x=np.float32([[1, 2]]))["y"].numpy().tolist() == [[11, 22]]


def test_weights_of_branches_stay_with_them(tmp_path):
    big = np.random.default_rng(3).standard_normal((100, 200), dtype=np.float32)

    def branch(name: str, array: np.ndarray) -> onnx.GraphProto:
        node = helper.make_node("Identity", [f"w_{name}"], [f"y_{name}"])
        result = value(f"y_{name}", T.FLOAT, [100, 200])
        return helper.make_graph([node], name, [], [result], [numpy_helper.from_array(array, f"w_{name}")])

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("then", big), else_branch=branch("else", -big)
    )
    for external in (False, True):
        model = models.save(
            tmp_path / str(external) / "m.onnx",
            [node, helper.make_node("MatMul", ["x", "w"], ["z"])],
            [value("c", T.BOOL, []), value("x", T.FLOAT, ["n", 100])],
            [value("y", T.FLOAT, [100, 200]), value("z", T.FLOAT, ["n", 200])],
            {"w": big},
            external=external,
        )
        path = converted(model)
        got = answers(path, c=np.array(False), x=np.eye(100, dtype=np.float32))
        np.testing.assert_array_equal(got["y"].numpy(), -big)
        np.testing.assert_allclose(got["z"].numpy(), big, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "array"),
    [
        (T.FLOAT, np.random.default_rng(0).standard_normal(20_000).astype(np.float32)),
        (T.DOUBLE, np.random.default_rng(0).standard_normal(20_000)),
        (T.INT64, np.random.default_rng(0).integers(-(2**60), 2**60, 20_000)),
        (T.INT32, np.random.default_rng(0).integers(-(2**30), 2**30, 20_000).astype(np.int32)),
        (T.UINT64, np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)),
        (T.INT8, np.random.default_rng(0).integers(-128, 128, 80_000).astype(np.int8)),
        (T.FLOAT16, np.random.default_rng(0).standard_normal(40_000).astype(np.float16)),
    ],
)
def test_weights_in_typed_fields_are_moved_too(kind, array, tmp_path):
    """``helper.make_tensor`` stores values as numbers, not as raw bytes; so do older exporters."""
    tensor = helper.make_tensor("w", kind, array.shape, array)
    assert not tensor.HasField("raw_data")
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["w"], ["y"]), helper.make_node("Identity", ["x"], ["z"])],
        [value("x", T.FLOAT, [1])],
        [value("y", kind, array.shape), value("z", T.FLOAT, [1])],
        [tensor],
    )
    path = converted(model)
    assert weights_in(path) == {"w": array.tobytes()}
    np.testing.assert_array_equal(answers(path, x=np.float32([1]))["y"].numpy(), array)


def test_text_in_initializers_stays_in_the_graph(tmp_path):
    words = np.array([f"word {i}" for i in range(1000)], dtype=object)
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Gather", ["words", "i"], ["y"])],
        [value("i", T.INT64, ["n"])],
        [value("y", T.STRING, ["n"])],
        [helper.make_tensor("words", T.STRING, [1000], [w.encode() for w in words])],
    )
    assert answers(converted(model), i=np.array([7]))["y"].numpy().tolist() == [b"word 7"]


def test_a_model_without_inputs_is_converted(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["w"], ["y"])],
        [],
        [value("y", T.FLOAT, [3])],
        {"w": np.float32([1, 2, 3])},
    )
    assert answers(converted(model))["y"].numpy().tolist() == [1, 2, 3]


def test_output_shapes_that_the_model_gets_wrong_are_left_open(tmp_path):
    model = models.save(
        tmp_path / "m.onnx",
        [helper.make_node("NonZero", ["x"], ["y"])],
        [value("x", T.FLOAT, ["n"])],
        [value("y", T.INT64, None)],
    )
    (output,) = load_model_dir(converted(model), "m")[0].outputs
    assert (output.dtype.name, len(output.shape), output.shape[0]) == ("INT64", 2, 1)
    assert not isinstance(output.shape[1], int)


def test_small_models_stay_small(tmp_path):
    model = models.matmul(tmp_path / "m.onnx", rows=4, columns=400)
    path = converted(model)
    assert weights_in(path) == {}
    assert path.stat().st_size < model.stat().st_size + 2000
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(
        answers(path, x=x)["y"].numpy(), ort.InferenceSession(model).run(["y"], {"x": x})[0], rtol=1e-6
    )


def test_the_file_may_be_renamed_and_moved(tmp_path):
    path = converted(models.matmul(tmp_path / "m.onnx"))
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "other name.wasm")
    assert answers(moved, x=np.zeros((2, 64), np.float32))["y"].shape == (2, 512)


def test_a_converted_model_can_lend_its_guest(tmp_path):
    first = converted(models.matmul(tmp_path / "a.onnx"))
    second = models.matmul(tmp_path / "b" / "b.onnx")
    path = converted(second, guest=first, inputs=(TensorSpec("x", DTYPES["FP32"], (None, 64)),))
    assert read_artifact(path).digest() == read_artifact(first).digest()
    assert load_model_dir(path, "m")[0].inputs == (TensorSpec("x", DTYPES["FP32"], (None, 64)),)
    assert list(answers(path, x=np.zeros((1, 64), np.float32))) == ["y", "z"]


def test_external_data_behind_links_is_found(tmp_path):
    """A model hub's cache: every file is a link to one named by its digest."""
    model = models.matmul(tmp_path / "blobs" / "m.onnx", rows=200, columns=200_00, external=True)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (tmp_path / "blobs" / "weights.bin").rename(tmp_path / "blobs" / "0123")
    (snapshot / "weights.bin").symlink_to("../blobs/0123")
    model.rename(tmp_path / "blobs" / "4567")
    (snapshot / "m.onnx").symlink_to("../blobs/4567")
    path = tmp_path / "model.wasm"
    convert(Conversion(snapshot / "m.onnx", path))
    assert answers(path, x=np.zeros((1, 200), np.float32))["y"].shape == (1, 20_000)
