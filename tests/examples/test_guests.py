"""The small example guests, compiled and run on graphs whose answers NumPy gives."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, TensorProto, checker, helper

from kserve_wasm.artifact import ModelConfig
from kserve_wasm.backends import GraphSource
from kserve_wasm.errors import GuestError, GuestRejected
from kserve_wasm.guest import GuestModel
from kserve_wasm.request import InferenceRequest, Parameter
from kserve_wasm.tensors import Tensor
from tests.support.guests import ROOT, compile_guest

Array = npt.NDArray[np.generic]


def unary(operator: str, dtype: int = TensorProto.FLOAT, rank: int = 2) -> ModelProto:
    """The graph y = operator(x), every dimension open."""
    shape = [f"d{i}" for i in range(rank)]
    x, y = (helper.make_tensor_value_info(name, dtype, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "unary", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model


def guest_model(example: str, graph: ModelProto) -> GuestModel:
    module = compile_guest(ROOT / "examples" / example / f"{example}.c")
    data = module.read_bytes()
    config = ModelConfig(
        name=example,
        version="1",
        module=module,
        code_length=len(data),
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        graphs=(GraphSource("default", "onnx", data=graph.SerializeToString()),),
    )
    model = GuestModel(config)
    model.load()
    return model


def ask(
    model: GuestModel,
    outputs: list[str] | None = None,
    parameters: dict[str, Parameter] | None = None,
    **inputs: Array,
) -> dict[str, Array]:
    tensors = {name: Tensor.from_numpy(array) for name, array in inputs.items()}
    response = model.infer(InferenceRequest(tensors, outputs, parameters or {}))
    return {name: tensor.numpy() for name, tensor in response.outputs.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_passthrough_gives_what_the_graph_gives(dtype: type[np.generic]) -> None:
    x = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    model = guest_model("passthrough", unary("Neg", helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))
    answer = ask(model, x=x)
    assert list(answer) == ["y"]
    np.testing.assert_array_equal(answer["y"], -x, strict=True)
    model.close()


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 5, 7, 3), (0, 4, 4, 3), (1, 480, 640, 3)])
def test_normalize_gives_planes_of_mean_0_and_deviation_1(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    mean = np.array([0.485, 0.456, 0.406])
    deviation = np.array([0.229, 0.224, 0.225])
    expected = -((image / 255 - mean) / deviation).transpose(0, 3, 1, 2)
    model = guest_model("normalize", unary("Neg", rank=4))
    y = ask(model, image=image)["y"]
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    model.close()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((1, 2, 2, 3), np.float32), "UINT8"),
        (np.zeros((2, 2, 3), np.uint8), r"\[N, H, W, 3\]"),
        (np.zeros((1, 3, 2, 2), np.uint8), "3 channels"),
    ],
)
def test_normalize_refuses_what_is_no_image(image: Array, reason: str) -> None:
    model = guest_model("normalize", unary("Neg", rank=4))
    with pytest.raises(GuestRejected, match=reason):
        ask(model, image=image)
    model.close()


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("k", [None, 1, 3, 9])
@pytest.mark.parametrize("scale", [0.01, 1, 40])
def test_softmax_topk_gives_the_best_classes_with_their_probabilities(k: int | None, scale: float) -> None:
    x = (np.random.default_rng(2).standard_normal((6, 50)) * scale).astype(np.float32)
    expected = np.argsort(x, axis=1, kind="stable")[:, : k or 5]  # the graph turns the signs
    model = guest_model("softmax_topk", unary("Neg"))
    answer = ask(model, parameters={} if k is None else {"k": k}, x=x)
    np.testing.assert_array_equal(answer["classes"], expected, strict=True)
    assert answer["probabilities"].dtype == np.float32
    np.testing.assert_allclose(
        answer["probabilities"], np.take_along_axis(softmax(-x), expected, 1), rtol=1e-6, atol=1e-30
    )
    model.close()


def test_softmax_topk_orders_equal_logits_by_class_and_stops_at_the_last_class() -> None:
    model = guest_model("softmax_topk", unary("Neg"))
    answer = ask(model, parameters={"k": "7"}, x=np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(answer["classes"], [[0, 1, 2]] * 2)
    np.testing.assert_allclose(answer["probabilities"], np.full((2, 3), 1 / 3), rtol=1e-6)
    assert ask(model, x=np.zeros((0, 3), np.float32))["classes"].shape == (0, 3)
    model.close()


def test_softmax_topk_computes_requested_outputs_only() -> None:
    model = guest_model("softmax_topk", unary("Neg"))
    assert list(ask(model, outputs=["classes"], x=np.ones((2, 9), np.float32))) == ["classes"]
    model.close()


@pytest.mark.parametrize("k", [0, 10, -1, "many", 1.5, True])
def test_softmax_topk_refuses_a_k_that_is_no_digit(k: Parameter) -> None:
    model = guest_model("softmax_topk", unary("Neg"))
    with pytest.raises(GuestRejected, match="'k' must be a number from 1 to 9"):
        ask(model, parameters={"k": k}, x=np.ones((2, 9), np.float32))
    model.close()


def test_softmax_topk_blames_itself_for_a_graph_it_cannot_serve() -> None:
    model = guest_model("softmax_topk", unary("Neg", TensorProto.DOUBLE))
    with pytest.raises(GuestError, match=r"FP32 \[N, classes\]"):
        ask(model, x=np.ones((2, 9)))
    model.close()


def test_validate_input_lets_finite_numbers_through() -> None:
    x = np.array([[0, -0.0, 1e38, -3e38, 1e-45]], np.float32)
    model = guest_model("validate_input", unary("Neg"))
    np.testing.assert_array_equal(ask(model, x=x)["y"], -x, strict=True)
    model.close()


@pytest.mark.parametrize("element", [0, 4095, 4096, 9999])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_validate_input_names_the_element_it_refuses(element: int, value: float) -> None:
    x = np.zeros((10, 1000), np.float32)
    x.reshape(-1)[element] = value
    model = guest_model("validate_input", unary("Neg"))
    with pytest.raises(GuestRejected, match=f"element {element} is infinite or not a number"):
        ask(model, x=x)
    model.close()


def test_every_example_states_the_command_that_builds_it() -> None:
    for source in sorted((ROOT / "examples").glob("*/*.c")):
        if (source.parent / "build.py").exists():
            command = (
                f"python {source.parent.relative_to(ROOT)}/build.py -o build/{source.parent.name}/model.wasm"
            )
        else:
            include = f"-I kserve_wasm/include {source.relative_to(ROOT)} -o guest.wasm"
            command = f"python -m ziglang cc @examples/guest.flags {include}"
        assert command in source.read_text(), source
