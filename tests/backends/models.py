"""ONNX models for tests, built here so that each says what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from kserve_wasm.tensors import DTYPES

_Shape = list[int | str | None] | None


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[str, _Shape]],
    outputs: dict[str, tuple[str, _Shape]],
    initializers: dict[str, npt.NDArray[Any]] | None = None,
    external: list[onnx.TensorProto] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of ``nodes``; inputs and outputs are name → (V2 datatype, shape)."""
    graph = helper.make_graph(
        nodes,
        "test",
        [_value(name, *spec) for name, spec in inputs.items()],
        [_value(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (initializers or {}).items()]
        + (external or []),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _value(name: str, dtype: str, shape: _Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, DTYPES[dtype].onnx, shape)


def identity(dtype: str, shape: _Shape = None) -> onnx.ModelProto:
    """``y = x``, of any shape unless one is given."""
    return model([helper.make_node("Identity", ["x"], ["y"])], {"x": (dtype, shape)}, {"y": (dtype, shape)})


def add_and_subtract() -> onnx.ModelProto:
    """FP32 ``a``, ``b`` [n, 3] → ``sum``, ``difference``."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    spec: tuple[str, _Shape] = ("FP32", ["n", 3])
    return model(nodes, {"a": spec, "b": spec}, {"sum": spec, "difference": spec})


def mlp(seed: int = 0) -> onnx.ModelProto:
    """FP32 ``x`` [batch, 4] → ``y`` [batch, 3]: two small layers; see :func:`mlp_oracle`."""
    weights = _mlp_weights(seed)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    return model(nodes, {"x": ("FP32", ["batch", 4])}, {"y": ("FP32", ["batch", 3])}, weights)


def mlp_oracle(x: npt.NDArray[np.float32], seed: int = 0) -> npt.NDArray[np.float32]:
    """What :func:`mlp` answers, by NumPy."""
    w = _mlp_weights(seed)
    hidden = np.maximum(x @ w["w1"] + w["b1"], 0)
    return hidden @ w["w2"] + w["b2"]


def _mlp_weights(seed: int) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes = {"w1": (4, 16), "b1": (16,), "w2": (16, 3), "b2": (3,)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def cnn(layers: int = 9, channels: int = 64, side: int = 112, seed: int = 0) -> onnx.ModelProto:
    """FP32 ``x`` [batch, 3, side, side] → ``y`` [batch, channels, 1, 1]; about 7 ms on one thread as it stands."""
    rng = np.random.default_rng(seed)
    nodes, weights, before, width = [], {}, "x", 3
    for i in range(layers):
        scale = np.float32(np.sqrt(2 / (9 * width)))
        weights[f"w{i}"] = rng.standard_normal((channels, width, 3, 3), dtype=np.float32) * scale
        stride = 2 if i == 1 else 1
        nodes.append(
            helper.make_node(
                "Conv", [before, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1], strides=[stride, stride]
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        before, width = f"r{i}", channels
    nodes.append(helper.make_node("GlobalAveragePool", [before], ["y"]))
    shape: _Shape = ["batch", 3, side, side]
    return model(nodes, {"x": ("FP32", shape)}, {"y": ("FP32", ["batch", channels, 1, 1])}, weights)


def dense(widths: Sequence[int], seed: int = 0) -> onnx.ModelProto:
    """FP32 ``x`` [batch, widths[0]] → ``y`` [batch, widths[-1]]: fully connected layers with ReLU between them."""
    build = _Builder(seed)
    value = "x"
    for i, (before, after) in enumerate(pairwise(widths)):
        value = build.linear(build("Relu", value) if i else value, before, after)
    return build.model({"x": ("FP32", ["batch", widths[0]])}, value, ["batch", widths[-1]])


def gru(inputs: int = 64, hidden: int = 128, steps: int = 64, seed: int = 0) -> onnx.ModelProto:
    """FP32 ``x`` [batch, steps, inputs] → ``y`` [batch, hidden]: the last state of a GRU."""
    build = _Builder(seed)
    weights = [
        build.weight((1, 3 * hidden, inputs), inputs),
        build.weight((1, 3 * hidden, hidden), hidden),
        build.weight((1, 6 * hidden), hidden),
    ]
    by_step = build("Transpose", "x", perm=[1, 0, 2])  # ONNX Runtime's GRU takes the steps first
    _, last = build.several("GRU", [by_step, *weights], outputs=2, hidden_size=hidden, linear_before_reset=1)
    value = build("Squeeze", last, build.constant(np.array([0])))
    return build.model({"x": ("FP32", ["batch", steps, inputs])}, value, ["batch", hidden])


def encoder(
    layers: int = 4, hidden: int = 256, heads: int = 4, steps: int = 128, words: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """INT64 ``x`` [batch, steps], each below ``words``, → ``y`` [batch, hidden]: BERT's encoder, mean of its states."""
    build = _Builder(seed)
    split = build.constant(np.array([0, steps, heads, hidden // heads]))
    join = build.constant(np.array([0, steps, hidden]))
    scale = build.constant(np.float32((hidden // heads) ** -0.5))
    half, one, root = (build.constant(np.float32(v)) for v in (0.5, 1, 2**-0.5))

    def norm(value: str) -> str:
        ones, zeros = (
            build.constant(np.ones(hidden, np.float32)),
            build.constant(np.zeros(hidden, np.float32)),
        )
        return build("LayerNormalization", value, ones, zeros)

    def attention(value: str) -> str:
        q, k, v = (build("Reshape", build.linear(value, hidden, hidden), split) for _ in range(3))
        scores = build(
            "MatMul", build("Transpose", q, perm=[0, 2, 1, 3]), build("Transpose", k, perm=[0, 2, 3, 1])
        )
        weights = build("Softmax", build("Mul", scores, scale))
        mixed = build("MatMul", weights, build("Transpose", v, perm=[0, 2, 1, 3]))
        return build.linear(
            build("Reshape", build("Transpose", mixed, perm=[0, 2, 1, 3]), join), hidden, hidden
        )

    def feed_forward(value: str) -> str:
        wide = build.linear(value, hidden, 4 * hidden)
        gate = build("Add", build("Erf", build("Mul", wide, root)), one)
        return build.linear(build("Mul", build("Mul", wide, half), gate), 4 * hidden, hidden)

    words_and_places = build(
        "Add", build("Gather", build.weight((words, hidden), 2), "x"), build.weight((steps, hidden), 2)
    )
    value = norm(words_and_places)
    for _ in range(layers):
        value = norm(build("Add", value, attention(value)))
        value = norm(build("Add", value, feed_forward(value)))
    pooled = build("ReduceMean", value, axes=[1], keepdims=0)
    return build.model({"x": ("INT64", ["batch", steps])}, pooled, ["batch", hidden])


def mobilenet(width: float = 1.0, side: int = 224, seed: int = 0) -> onnx.ModelProto:
    """FP32 ``x`` [batch, 3, side, side] → ``y`` [batch, 1000]: MobileNet's first version without its batch norms."""
    build = _Builder(seed)
    low, high = build.constant(np.float32(0)), build.constant(np.float32(6))

    def conv(value: str, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        weight = build.weight((outputs, inputs // groups, kernel, kernel), inputs // groups * kernel**2)
        pads = [kernel // 2] * 4
        return build(
            "Clip", build("Conv", value, weight, pads=pads, strides=[stride] * 2, group=groups), low, high
        )

    channels = int(32 * width)
    value = conv("x", 3, channels, kernel=3, stride=2)
    for outputs, stride in (
        *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
        *((512, 1) for _ in range(5)),
        *((1024, 2), (1024, 1)),
    ):
        value = conv(value, channels, channels, kernel=3, stride=stride, groups=channels)
        value, channels = conv(value, channels, int(outputs * width), kernel=1), int(outputs * width)
    value = build.linear(build("Flatten", build("GlobalAveragePool", value)), channels, 1000)
    return build.model({"x": ("FP32", ["batch", 3, side, side])}, value, ["batch", 1000])


class _Builder:
    """Nodes in a row; every method gives the name of a value."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, npt.NDArray[Any]] = {}

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.several(op, inputs, 1, **attributes)[0]

    def several(self, op: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        names = [f"v{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names

    def constant(self, array: npt.NDArray[Any] | np.generic) -> str:
        name = f"c{len(self._initializers)}"
        self._initializers[name] = np.asarray(array)
        return name

    def weight(self, shape: tuple[int, ...], inputs: int) -> str:
        """Random values of a size that keeps that of a layer's ``inputs``."""
        return self.constant(
            self._rng.standard_normal(shape, dtype=np.float32) * np.float32((2 / inputs) ** 0.5)
        )

    def linear(self, value: str, inputs: int, outputs: int) -> str:
        product = self("MatMul", value, self.weight((inputs, outputs), inputs))
        return self("Add", product, self.weight((outputs,), inputs))

    def model(self, inputs: dict[str, tuple[str, _Shape]], value: str, shape: _Shape) -> onnx.ModelProto:
        """The whole, with ``value`` as FP32 output ``y``."""
        nodes = [*self._nodes, helper.make_node("Identity", [value], ["y"])]
        return model(nodes, inputs, {"y": ("FP32", shape)}, self._initializers)


def strings() -> onnx.ModelProto:
    """BYTES ``a``, ``b`` [n] → ``joined`` [n], the concatenation, and ``equal`` [n]."""
    nodes = [
        helper.make_node("StringConcat", ["a", "b"], ["joined"]),
        helper.make_node("Equal", ["a", "b"], ["equal"]),
    ]
    spec: tuple[str, _Shape] = ("BYTES", ["n"])
    return model(nodes, {"a": spec, "b": spec}, {"joined": spec, "equal": ("BOOL", ["n"])}, opset=20)


def gather() -> onnx.ModelProto:
    """FP32 ``x`` [n], INT64 ``i`` [m] → ``y`` = x[i]: fails inside the run when an index is out of bounds."""
    node = helper.make_node("Gather", ["x", "i"], ["y"])
    return model([node], {"x": ("FP32", ["n"]), "i": ("INT64", ["m"])}, {"y": ("FP32", ["m"])})


def reshape() -> onnx.ModelProto:
    """FP32 ``x`` [n], INT64 ``to`` [m] → ``y``: the framework fails when the sizes differ."""
    node = helper.make_node("Reshape", ["x", "to"], ["y"])
    return model([node], {"x": ("FP32", ["n"]), "to": ("INT64", ["m"])}, {"y": ("FP32", None)})


def count(to: str = "INT64") -> onnx.ModelProto:
    """INT64 ``n`` [] → ``y`` [1] = n, one by one in a Loop: runs as long as one wants."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "one"], ["next"])],
        "body",
        [_value("i", to, []), _value("go", "BOOL", []), _value("v", to, [1])],
        [_value("on", "BOOL", []), _value("next", to, [1])],
        [numpy_helper.from_array(np.ones(1, np.int64), "one")],
    )
    node = helper.make_node("Loop", ["n", "true", "zero"], ["y"], body=body)
    constants = {"true": np.array(True), "zero": np.zeros(1, np.int64)}
    return model([node], {"n": (to, [])}, {"y": (to, [1])}, constants)


def external_mlp(weights: Path, location: str, layers: int, width: int, offset: int = 65536) -> bytes:
    """FP32 ``x`` [batch, width] → ``y``: matrix products whose weights lie in ``weights``, written here.

    The file begins with ``offset`` other bytes, as a ``.wasm`` file does; the graph calls it ``location``. Every weight
    of layer i is ``(i + 2) / (i + 1) / width``, so ``y`` repeats the mean of ``x``, ``layers + 1`` times as large.
    """
    nodes, tensors, before = [], [], "x"
    with weights.open("wb") as file:
        file.write(b"\0asm" + bytes(offset - 4))
        for i in range(layers):
            after = "y" if i == layers - 1 else f"h{i}"
            nodes.append(helper.make_node("MatMul", [before, f"w{i}"], [after]))
            tensors.append(external_tensor(f"w{i}", [width, width], location, file.tell()))
            file.write(np.full((width, width), (i + 2) / (i + 1) / width, "<f4").tobytes())
            before = after
    spec: tuple[str, _Shape] = ("FP32", ["batch", width])
    return model(nodes, {"x": spec}, {"y": spec}, external=tensors).SerializeToString()


def external_tensor(name: str, shape: list[int], location: str, offset: int) -> onnx.TensorProto:
    """An FP32 tensor whose data are elsewhere."""
    tensor = TensorProto(
        name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL
    )
    length = 4 * int(np.prod(shape))
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor
