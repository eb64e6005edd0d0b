"""TFLite to ONNX, for the operators that MediaPipe's short-range face detection is made of.

TFLite's images are NHWC and ONNX's NCHW. The ONNX graph has its input as NCHW, and turns values to NHWC where TFLite
reshapes them, so that its outputs are TFLite's. The first dimension is open, so that requests can share a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tflite
from onnx import helper, numpy_helper

OPSET = 17
DTYPES = {
    tflite.TensorType.FLOAT16: np.float16,
    tflite.TensorType.FLOAT32: np.float32,
    tflite.TensorType.INT32: np.int32,
}


class Converter:
    """Converts one graph, operator by operator in TFLite's order.

    Raises:
        SystemExit: an operator or an option of one has no counterpart here; it is named.
    """

    def __init__(self, data: bytes) -> None:
        self._model = tflite.Model.GetRootAsModel(data, 0)
        self._graph = self._model.Subgraphs(0)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, npt.NDArray[Any]] = {}
        self._dequantized: dict[str, npt.NDArray[Any]] = {}

    def convert(self) -> onnx.ModelProto:
        """Return the graph; its values have the names that they have in TFLite."""
        inputs = [self._tensor(i) for i in self._graph.InputsAsNumpy()]
        outputs = [self._tensor(i) for i in self._graph.OutputsAsNumpy()]
        for i in range(self._graph.OperatorsLength()):
            self._operator(self._graph.Operators(i))
        graph = helper.make_graph(
            self._nodes,
            "faces",
            [_value(name, ["batch", c, h, w]) for name, (_, h, w, c) in inputs],
            [_value(name, ["batch", *shape[1:]]) for name, shape in outputs],
            [numpy_helper.from_array(array, name) for name, array in self._constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _tensor(self, index: int) -> tuple[str, list[int]]:
        tensor = self._graph.Tensors(index)
        return tensor.Name().decode(), tensor.ShapeAsNumpy().tolist()

    def _constant(self, index: int) -> npt.NDArray[Any]:
        """Return a constant's elements, of a half-precision one as FP32: TFLite dequantizes them before their use."""
        name, shape = self._tensor(index)
        if name in self._dequantized:
            return self._dequantized[name]
        tensor = self._graph.Tensors(index)
        data = self._model.Buffers(tensor.Buffer()).DataAsNumpy()
        return np.frombuffer(data, DTYPES[tensor.Type()]).reshape(shape)

    def _operator(self, operator: Any) -> None:
        code = self._model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
        handler = HANDLERS.get(code)
        if handler is None:
            raise SystemExit(f"TFLite operator {code} has no counterpart in {__file__}")
        handler(self, operator, list(operator.InputsAsNumpy()), self._tensor(operator.Outputs(0))[0])

    def _add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _name(self, index: int) -> str:
        return self._tensor(index)[0]

    def _dequantize(self, _operator: Any, inputs: list[int], output: str) -> None:
        self._dequantized[output] = self._constant(inputs[0]).astype(np.float32)

    def _convolution(self, operator: Any, inputs: list[int], output: str) -> None:
        options = _options(operator, tflite.Conv2DOptions)
        self._convolve(inputs, output, options, self._constant(inputs[1]).transpose(0, 3, 1, 2), 1)

    def _depthwise(self, operator: Any, inputs: list[int], output: str) -> None:
        options = _options(operator, tflite.DepthwiseConv2DOptions)
        weights = self._constant(inputs[1]).transpose(3, 0, 1, 2)
        _expect(operator, options.DepthMultiplier() == 1, "a depth multiplier")
        self._convolve(inputs, output, options, weights, len(weights))

    def _convolve(
        self, inputs: list[int], output: str, options: Any, weights: npt.NDArray[Any], groups: int
    ) -> None:
        _expect(options, options.FusedActivationFunction() == 0, "a fused activation")
        _expect(options, options.DilationHFactor() == options.DilationWFactor() == 1, "dilation")
        names = [f"{output}/weights", f"{output}/bias"]
        self._constants |= zip(names, (np.ascontiguousarray(weights), self._constant(inputs[2])), strict=True)
        self._add("Conv", [self._name(inputs[0]), *names], output, group=groups, **_steps(options))

    def _pool(self, operator: Any, inputs: list[int], output: str) -> None:
        options = _options(operator, tflite.Pool2DOptions)
        _expect(options, options.FusedActivationFunction() == 0, "a fused activation")
        window = [options.FilterHeight(), options.FilterWidth()]
        self._add("MaxPool", [self._name(inputs[0])], output, kernel_shape=window, **_steps(options))

    def _pad(self, _operator: Any, inputs: list[int], output: str) -> None:
        pads = self._constant(inputs[1])[[0, 3, 1, 2]].T.ravel().astype(np.int64)
        self._constants[f"{output}/pads"] = pads
        self._add("Pad", [self._name(inputs[0]), f"{output}/pads"], output)

    def _sum(self, operator: Any, inputs: list[int], output: str) -> None:
        options = _options(operator, tflite.AddOptions)
        _expect(options, options.FusedActivationFunction() == 0, "a fused activation")
        self._add("Add", [self._name(i) for i in inputs], output)

    def _relu(self, _operator: Any, inputs: list[int], output: str) -> None:
        self._add("Relu", [self._name(inputs[0])], output)

    def _reshape(self, operator: Any, inputs: list[int], output: str) -> None:
        _, *shape = self._tensor(operator.Outputs(0))[1]
        self._constants[f"{output}/shape"] = np.array([-1, *shape], np.int64)
        turned = self._add("Transpose", [self._name(inputs[0])], f"{output}/nhwc", perm=[0, 2, 3, 1])
        self._add("Reshape", [turned, f"{output}/shape"], output)

    def _concatenate(self, operator: Any, inputs: list[int], output: str) -> None:
        """Joins what was reshaped, which is as in TFLite."""
        options = _options(operator, tflite.ConcatenationOptions)
        _expect(options, options.FusedActivationFunction() == 0, "a fused activation")
        self._add("Concat", [self._name(i) for i in inputs], output, axis=options.Axis())


Handler = Callable[[Converter, Any, "list[int]", str], None]

HANDLERS: dict[int, Handler] = {
    tflite.BuiltinOperator.DEQUANTIZE: Converter._dequantize,
    tflite.BuiltinOperator.CONV_2D: Converter._convolution,
    tflite.BuiltinOperator.DEPTHWISE_CONV_2D: Converter._depthwise,
    tflite.BuiltinOperator.MAX_POOL_2D: Converter._pool,
    tflite.BuiltinOperator.PAD: Converter._pad,
    tflite.BuiltinOperator.ADD: Converter._sum,
    tflite.BuiltinOperator.RELU: Converter._relu,
    tflite.BuiltinOperator.RESHAPE: Converter._reshape,
    tflite.BuiltinOperator.CONCATENATION: Converter._concatenate,
}


def _options(operator: Any, kind: Any) -> Any:
    """Return the operator's options as the table ``kind``."""
    options, table = kind(), operator.BuiltinOptions()
    options.Init(table.Bytes, table.Pos)
    return options


def _steps(options: Any) -> dict[str, Any]:
    """Return the attributes for how a window moves."""
    padding = {tflite.Padding.SAME: "SAME_UPPER", tflite.Padding.VALID: "VALID"}[options.Padding()]
    return {"strides": [options.StrideH(), options.StrideW()], "auto_pad": padding}


def _expect(where: Any, holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"{type(where).__name__}: {what} has no counterpart in {__file__}")


def _value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
