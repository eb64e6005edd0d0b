"""The oracle itself: where ONNX has the same operator, ONNX Runtime's own kernel gives the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from tests.webnn.oracle import OPERATORS as O
from tests.webnn.oracle.precision import Array

_rng = np.random.default_rng(1)


def random(*shape: int) -> Array:
    return _rng.uniform(-2, 2, shape).astype(np.float32)


def onnx_runtime(op_type: str, inputs: list[Array | None], attributes: dict[str, Any]) -> list[Array]:
    """What the operator gives for constants."""
    count = {"LSTM": 3, "GRU": 2, "TopK": 2}.get(op_type, 1)
    names = ["" if array is None else f"x{n}" for n, array in enumerate(inputs)]
    node = helper.make_node(op_type, names, [f"y{n}" for n in range(count)], **attributes)
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(f"y{n}") for n in range(count)]
    model = helper.make_model(
        helper.make_graph([node], "one", infos, outputs),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results: list[Array] = session.run(None, feeds)
    return results


X = random(2, 4, 6, 5)
V = np.abs(random(4)) + np.float32(0.5)
SEQUENCE, STATE, CELL = random(3, 2, 4), random(2, 2, 3), random(2, 2, 3)
LSTM_W, LSTM_R, LSTM_B = random(2, 12, 4), random(2, 12, 3), random(2, 24)
GRU_W, GRU_R, GRU_B = random(2, 9, 4), random(2, 9, 3), random(2, 18)
BOXES = np.abs(random(2, 12, 4))
SCORES = np.abs(random(2, 3, 12))
TIES = np.rint(random(3, 7, 2))

SAME: dict[str, tuple[Callable[[], Any], str, list[Array | None], dict[str, Any]]] = {
    "conv2d": (
        lambda: O["conv2d"](
            X, X[:2, :2, :3, :2], groups=2, padding=(1, 2, 0, 1), strides=(2, 1), dilations=(1, 2)
        ),
        *("Conv", [X, X[:2, :2, :3, :2]]),
        {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
    ),
    "convTranspose2d": (
        lambda: O["convTranspose2d"](
            X,
            X[0, :, None, :3, :2],
            groups=2,
            padding=(1, 2, 0, 1),
            strides=(2, 3),
            dilations=(2, 1),
            outputPadding=(1, 2),
        ),
        *("ConvTranspose", [X, X[0, :, None, :3, :2]]),
        {
            "group": 2,
            "pads": [1, 0, 2, 1],
            "strides": [2, 3],
            "dilations": [2, 1],
            "output_padding": [1, 2],
        },
    ),
    **{
        name: (
            lambda name=name: O[name](
                X, windowDimensions=(3, 2), padding=(1, 0, 1, 0), strides=(2, 2), outputShapeRounding="ceil"
            ),
            *(op_type, [X]),
            {"kernel_shape": [3, 2], "pads": [1, 1, 0, 0], "strides": [2, 2], "ceil_mode": 1},
        )
        for name, op_type in (("averagePool2d", "AveragePool"), ("maxPool2d", "MaxPool"))
    },
    "l2Pool2d": (
        lambda: O["l2Pool2d"](X, windowDimensions=(3, 2), padding=(1, 0, 1, 0), strides=(2, 2)),
        *("LpPool", [X]),
        {"kernel_shape": [3, 2], "pads": [1, 1, 0, 0], "strides": [2, 2], "p": 2},
    ),
    "resample2d": (
        lambda: O["resample2d"](X, mode="linear", sizes=(4, 7)),
        *("Resize", [X, None, None, np.array([2, 4, 4, 7])]),
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    ),
    "gelu": (lambda: O["gelu"](X), "Gelu", [X], {}),
    "erf": (lambda: O["erf"](X), "Erf", [X], {}),
    "elu": (lambda: O["elu"](X, alpha=0.7), "Elu", [X], {"alpha": 0.7}),
    "softmax": (lambda: O["softmax"](X, 1), "Softmax", [X], {"axis": 1}),
    "softplus": (lambda: O["softplus"](X), "Softplus", [X], {}),
    "softsign": (lambda: O["softsign"](X), "Softsign", [X], {}),
    "sigmoid": (lambda: O["sigmoid"](X), "Sigmoid", [X], {}),
    "hardSwish": (lambda: O["hardSwish"](3 * X), "HardSwish", [3 * X], {}),
    "hardSigmoid": (lambda: O["hardSigmoid"](3 * X), "HardSigmoid", [3 * X], {}),
    "leakyRelu": (lambda: O["leakyRelu"](X), "LeakyRelu", [X], {}),
    "prelu": (lambda: O["prelu"](X, X[0, 0]), "PRelu", [X, X[0, 0]], {}),
    "gemm": (
        lambda: O["gemm"](X[0, 0], X[0, 1], c=X[0, 0, 0, :1], alpha=0.5, beta=2.0, bTranspose=True),
        *("Gemm", [X[0, 0], X[0, 1], X[0, 0, 0, :1]]),
        {"alpha": 0.5, "beta": 2.0, "transB": 1},
    ),
    "batchNormalization": (
        lambda: O["batchNormalization"](X, X[0, :, 0, 0], V, scale=X[0, :, 1, 1], bias=X[1, :, 0, 0]),
        *("BatchNormalization", [X, X[0, :, 1, 1], X[1, :, 0, 0], X[0, :, 0, 0], V]),
        {},
    ),
    "instanceNormalization": (
        lambda: O["instanceNormalization"](X, scale=V, bias=X[0, :, 1, 1], epsilon=0.01),
        *("InstanceNormalization", [X, V, X[0, :, 1, 1]]),
        {"epsilon": 0.01},
    ),
    "layerNormalization": (
        lambda: O["layerNormalization"](X, scale=X[0, 0], bias=X[0, 1], axes=(2, 3), epsilon=0.01),
        *("LayerNormalization", [X, X[0, 0], X[0, 1]]),
        {"axis": 2, "epsilon": 0.01},
    ),
    **{
        f"reduce{name}": (
            lambda name=name: O[f"reduce{name}"](X, axes=(1, 3)),
            *("ReduceProd" if name == "Product" else f"Reduce{name}", [X, np.array([1, 3])]),
            {"keepdims": 0},
        )
        for name in ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Product", "Sum", "SumSquare")
    },
    "quantizeLinear": (
        lambda: O["quantizeLinear"](
            100 * X, np.full((1, 1, 1, 1), 0.5, np.float32), np.full((1, 1, 1, 1), 3, np.int8)
        ),
        *("QuantizeLinear", [100 * X, np.array(0.5, np.float32), np.array(3, np.int8)]),
        {},
    ),
    "lstm": (
        lambda: [
            given[order]
            for given in [
                O["lstm"](
                    *(SEQUENCE, LSTM_W, LSTM_R, 3, 3),
                    bias=LSTM_B[:, :12],
                    recurrentBias=LSTM_B[:, 12:],
                    initialHiddenState=STATE,
                    initialCellState=CELL,
                    direction="both",
                    returnSequence=True,
                    activations=("sigmoid", "relu", "tanh"),
                )
            ]
            for order in (2, 0, 1)
        ],
        *("LSTM", [SEQUENCE, LSTM_W, LSTM_R, LSTM_B, None, STATE, CELL]),
        {"hidden_size": 3, "direction": "bidirectional", "activations": ["Sigmoid", "Relu", "Tanh"] * 2},
    ),
    **{
        f"gru, resetAfter={after}": (
            lambda after=after: O["gru"](
                *(SEQUENCE, GRU_W, GRU_R, 3, 3),
                bias=GRU_B[:, :9],
                recurrentBias=GRU_B[:, 9:],
                initialHiddenState=STATE,
                direction="both",
                returnSequence=True,
                resetAfter=after,
            )[::-1],
            *("GRU", [SEQUENCE, GRU_W, GRU_R, GRU_B, None, STATE]),
            {"hidden_size": 3, "direction": "bidirectional", "linear_before_reset": int(after)},
        )
        for after in (False, True)
    },
    "topK": (
        lambda: O["topK"](TIES, 4, 1, True),
        *("TopK", [TIES, np.array([4])]),
        {"axis": 1},
    ),
    **{
        f"nonMaxSuppression, centerPointBox={center}": (
            lambda center=center: O["nonMaxSuppression"](BOXES, SCORES, 5, 0.3, 0.4, center),
            "NonMaxSuppression",
            [BOXES, SCORES, np.array(5), np.array(0.3, np.float32), np.array(0.4, np.float32)],
            {"center_point_box": int(center)},
        )
        for center in (False, True)
    },
}


@pytest.mark.parametrize("name", SAME)
def test_onnx_runtime_gives_the_same(name: str) -> None:
    ours, op_type, inputs, attributes = SAME[name]
    made = ours()
    expected = onnx_runtime(op_type, inputs, attributes)
    for mine, theirs in zip(made if isinstance(made, list) else [made], expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=2e-6)
