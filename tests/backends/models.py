"""ONNX models for tests, built here so that each says what it computes."""

from __future__ import annotations

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
