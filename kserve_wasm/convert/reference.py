"""The original model in plain ONNX Runtime: what a converted one must answer."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from kserve_wasm.backends.cpus import available_cpus
from kserve_wasm.backends.onnx.errors import plain
from kserve_wasm.backends.onnx.options import MAPPED_FROM
from kserve_wasm.convert.errors import ConversionError
from kserve_wasm.convert.onnx_file import OnnxFile
from kserve_wasm.convert.samples import Sample
from kserve_wasm.convert.weights import SlimGraph
from kserve_wasm.tensors import TensorSpec, dtypes


class SampleRefusedError(ConversionError):
    """ONNX Runtime does not take a sample."""


class Reference:
    """A session on the original. Use it as a context manager: it holds the model's memory.

    Args:
        source: the original.
        slim: the same without its weights.

    Raises:
        ConversionError: ONNX Runtime cannot open it, or an input or output is nothing that a client could send.
    """

    def __init__(self, source: OnnxFile, slim: SlimGraph) -> None:
        self._source = source
        graph = source.model.graph
        defaults = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        self._inputs = [_Value("input", v) for v in graph.input if v.name not in defaults]
        self._outputs = [_Value("output", v) for v in graph.output]
        self._session: Any = _open(source, slim)

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def inputs(self, shapes: dict[str, Sequence[int]]) -> tuple[TensorSpec, ...]:
        """The inputs that have no default, in the graph's order.

        Args:
            shapes: shapes that the user gave, by name: they settle the number of dimensions where the model is silent.

        Raises:
            ConversionError: an input's number of dimensions is open, or ``shapes`` does not fit.
        """
        unknown = [name for name in shapes if name not in {v.name for v in self._inputs}]
        if unknown:
            known = ", ".join(f"'{v.name}'" for v in self._inputs) or "none"
            raise ConversionError(f"--shape names '{unknown[0]}', but the model's inputs are: {known}")
        return tuple(v.input_spec(shapes.get(v.name)) for v in self._inputs)

    def outputs(self, seen: Sequence[Mapping[str, npt.NDArray[Any]]]) -> tuple[TensorSpec, ...]:
        """The outputs, in the graph's order. What the model says of their shapes yields to what was ``seen``."""
        inferred = {o.name: tuple(o.shape) for o in self._session.get_outputs()}
        specs = []
        for value in self._outputs:
            shapes = [answer[value.name].shape for answer in seen]
            said = inferred[value.name]
            if any(len(shape) != len(said) for shape in shapes):
                said = (None,) * len(shapes[0])
            dims = [
                d if not isinstance(d, int) or all(shape[i] == d for shape in shapes) else None
                for i, d in enumerate(said)
            ]
            specs.append(TensorSpec(value.name, value.dtype, tuple(dims)))
        return tuple(specs)

    def run(self, sample: Sample) -> dict[str, npt.NDArray[Any]]:
        """The outputs by name. Raises SampleRefusedError."""
        names = [v.name for v in self._outputs]
        options = ort.RunOptions()
        options.log_severity_level = 4  # a refused sample is not worth a line in the terminal
        try:
            if any(v.dtype is dtypes.BF16 for v in (*self._inputs, *self._outputs)):
                feeds = {name: _to_value(array) for name, array in sample.items()}
                answers = [_from_value(v) for v in self._session.run_with_ort_values(names, feeds, options)]
            else:
                answers = self._session.run(names, sample, options)
        except Exception as error:  # ONNX Runtime's own have no common class
            raise SampleRefusedError(plain(error, self._source.path.parent)) from error
        return dict(zip(names, answers, strict=True))


class _Value:
    """An input or output as the model declares it."""

    def __init__(self, kind: str, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        which = value.type.WhichOneof("value")
        if which != "tensor_type":
            raise ConversionError(
                f"{kind} '{value.name}' is a {(which or 'value of no type').removesuffix('_type')}, not a tensor; "
                "export the model with tensors alone (scikit-learn: options={'zipmap': False})"
            )
        element = value.type.tensor_type.elem_type
        if element not in dtypes.BY_ONNX:
            name = onnx.TensorProto.DataType.Name(element)
            raise ConversionError(
                f"{kind} '{value.name}' is of type {name}, which the V2 protocol has no datatype for"
            )
        self.dtype = dtypes.BY_ONNX[element]
        self._shape = value.type.tensor_type.shape if value.type.tensor_type.HasField("shape") else None

    def input_spec(self, shape: Sequence[int] | None) -> TensorSpec:
        if self._shape is None:
            if shape is None:
                raise ConversionError(
                    f"the model does not say how many dimensions input '{self.name}' has; "
                    f"give an example with --shape {self.name}=…"
                )
            return TensorSpec(self.name, self.dtype, (None,) * len(shape))
        # Some exporters write -1 for an open dimension.
        dims = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or None
            for d in self._shape.dim
        )
        spec = TensorSpec(self.name, self.dtype, dims)
        fits = shape is None or (
            len(shape) == len(dims)
            and all(not isinstance(d, int) or d == s for d, s in zip(dims, shape, strict=True))
        )
        if not fits:
            raise ConversionError(
                f"--shape {self.name}={shape} does not fit the model's {spec.v2_shape} (-1: any size)"
            )
        return spec


def _open(source: OnnxFile, slim: SlimGraph) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # As the backend will run it, so that the two agree to the last bit wherever they can.
    options.intra_op_num_threads = available_cpus()
    model: str | bytes = str(source.path)
    if sum(blob.length for blob in slim.weights) >= MAPPED_FROM:
        options.add_session_config_entry("session.disable_prepacking", "1")
        model = _mapped(source, slim, options) or model
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConversionError(
            f"ONNX Runtime {ort.__version__} cannot open the model: {plain(error, source.path.parent)}"
        ) from None


def _mapped(source: OnnxFile, slim: SlimGraph, options: Any) -> bytes | None:
    """The original with its weights as external data, in the file that they are in; None where that cannot be.

    ONNX Runtime would load the file itself whole, which takes it more than twice the file's size in memory.
    """
    base = source.path.resolve().parent
    places = []
    for blob in slim.weights:
        if callable(blob.source) or not blob.source[0].resolve().is_relative_to(base):
            return None
        places.append((str(blob.source[0].resolve().relative_to(base)), blob.source[1]))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(base))
    return slim.encode(places)


def _to_value(array: npt.NDArray[Any]) -> Any:
    if array.dtype == dtypes.BF16.numpy:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), dtypes.BF16.onnx)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: Any) -> npt.NDArray[Any]:
    if value.element_type() != dtypes.BF16.onnx:
        array: npt.NDArray[Any] = value.numpy()
        return array
    # ONNX Runtime gives no NumPy array of bfloat16, but its memory.
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, dtypes.BF16.numpy).reshape(tuple(value.shape()))
