"""An opened ONNX graph: tensors in, tensors out, on the caller's thread.

Here is what a run is for its caller, and how it is done over host memory. Device memory: :mod:`.bound`.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from kserve_wasm.backends.base import Device
from kserve_wasm.backends.inputs import failed, wrong_names
from kserve_wasm.backends.onnx.bound import BoundRuns, CapturedRuns
from kserve_wasm.backends.onnx.errors import plain
from kserve_wasm.backends.watchdog import WATCHDOG
from kserve_wasm.errors import BackendError, DeadlineExceeded, InvalidRequest, ModelNotReady
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec
from kserve_wasm.tensors.devices import Accelerator

_DTYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
}
"""ONNX Runtime's element types → V2 datatypes."""

_INVALID = "INVALID_ARGUMENT"
_BF16 = DTYPES["BF16"]
_BYTES = DTYPES["BYTES"]

_Feeds: TypeAlias = dict[str, Any]
"""What goes into a run by name: arrays, or tensors where it is bound to a device."""


class OnnxGraph:
    """A graph in ONNX Runtime; implements :class:`~kserve_wasm.backends.base.Graph`.

    Any number of threads may run it at once. Input memory is used in place unless it is misaligned for its type;
    outputs are ONNX Runtime's own memory, freed with the tensors. ``BYTES`` elements must be UTF-8, which is what
    ONNX Runtime's strings are.

    Attributes:
        accelerator: the device whose memory inputs may be in and outputs are in; None for the host's. ONNX Runtime
            binds no strings: graphs with some take and give host memory, on whichever device they run.
    """

    def __init__(
        self,
        name: str,
        device: Device,
        session: Any,
        unranked: set[str],
        accelerator: Accelerator | None = None,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        """Wraps ``session``.

        Args:
            name: the graph's name.
            device: what the session runs on.
            session: an ``onnxruntime.InferenceSession``.
            unranked: inputs that take any number of dimensions.
            accelerator: the device that the session runs on, where its memory can be bound.
            cuda_graphs: the session captures its runs.

        Raises:
            BackendError: an input or output is no tensor with a V2 datatype.
        """
        self.name = name
        self.device: Device = device
        self.inputs = tuple(_spec("input", node) for node in session.get_inputs())
        self.outputs = tuple(_spec("output", node) for node in session.get_outputs())
        self._session = session
        self._unranked = unranked
        self._input_names = frozenset(spec.name for spec in self.inputs)
        self._output_names = [spec.name for spec in self.outputs]
        dtypes = {spec.dtype for spec in (*self.inputs, *self.outputs)}
        self.accelerator = None if _BYTES in dtypes else accelerator
        self._run: Callable[[Any, _Feeds, Any], dict[str, Tensor]] = self._run_on_host
        if self.accelerator is not None:
            kind = CapturedRuns if cuda_graphs else BoundRuns
            self._run = kind(self.accelerator, self.inputs, self.outputs).run
        self._call = _run_values if _BF16 in dtypes else _run_arrays

    def run(self, inputs: Mapping[str, Tensor], deadline: float = math.inf) -> dict[str, Tensor]:
        """Runs the graph once; see :class:`~kserve_wasm.backends.base.Graph`.

        ONNX Runtime looks at its stop flag between operators, so one long operator ends before the deadline is seen.
        """
        session = self._session
        if session is None:
            raise ModelNotReady(f"graph '{self.name}' is closed")
        feeds = self._feeds(inputs)
        try:
            if deadline == math.inf:
                return self._run(session, feeds, None)
            return self._run_until(deadline, session, feeds)
        except DeadlineExceeded:
            raise
        except Exception as error:
            self._check_symbols(inputs)
            # A bound run tells the status in words alone.
            invalid = isinstance(error, InvalidArgument) or _INVALID in str(error)
            kind = InvalidRequest if invalid else BackendError
            raise kind(failed(self.name, plain(error), self.inputs, inputs)) from error

    def close(self) -> None:
        """Refuses further runs; the memory is freed when the last running one ends."""
        self._session = None

    def _run_on_host(self, session: Any, feeds: _Feeds, options: Any) -> dict[str, Tensor]:
        results = self._call(session, self._output_names, feeds, options)
        return {
            name: Tensor.from_numpy(result) for name, result in zip(self._output_names, results, strict=True)
        }

    def _feeds(self, inputs: Mapping[str, Tensor]) -> _Feeds:
        if inputs.keys() != self._input_names:
            raise wrong_names(self.name, self.inputs, inputs)
        feeds: _Feeds = {}
        for spec in self.inputs:
            tensor = inputs[spec.name]
            if spec.name not in self._unranked or tensor.dtype is not spec.dtype:
                spec.check(tensor)
            if self.accelerator is not None:
                feeds[spec.name] = tensor
                continue
            array = tensor.numpy()
            if spec.dtype is _BYTES:
                array = _text(spec.name, array)
            elif not array.flags.aligned:
                # A tensor may start at any byte of a request's body. Compiled code may assume natural alignment.
                array = array.copy()
            feeds[spec.name] = array
        return feeds

    def _check_symbols(self, inputs: Mapping[str, Tensor]) -> None:
        """Raises InvalidRequest where dimensions of one symbol differ in size: after a failure, that is the cause."""
        seen: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            for symbol, size in zip(
                spec.shape, inputs[spec.name].shape, strict=False
            ):  # unranked: no symbols
                if not isinstance(symbol, str):
                    continue
                first, name = seen.setdefault(symbol, (size, spec.name))
                if size != first:
                    raise InvalidRequest(
                        f"graph '{self.name}': '{symbol}' is {first} in '{name}' and {size} in '{spec.name}'"
                    )

    def _run_until(self, deadline: float, session: Any, feeds: _Feeds) -> dict[str, Tensor]:
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"graph '{self.name}': the deadline passed before the run")
        options = ort.RunOptions()

        def stop() -> None:
            options.terminate = True

        watch = WATCHDOG.watch(deadline, stop)
        try:
            return self._run(session, feeds, options)
        except Exception as error:
            if options.terminate:
                raise DeadlineExceeded(
                    f"graph '{self.name}': stopped, the deadline passed during the run"
                ) from error
            raise
        finally:
            WATCHDOG.forget(watch)


def _run_arrays(session: Any, names: list[str], feeds: dict[str, Any], options: Any) -> list[Any]:
    results: list[Any] = session.run(names, feeds, options)
    return results


def _run_values(session: Any, names: list[str], feeds: dict[str, Any], options: Any) -> list[Any]:
    """As _run_arrays, for graphs with bfloat16, which ONNX Runtime's NumPy interface does not know."""
    values = {name: _to_value(array) for name, array in feeds.items()}
    return [_from_value(value) for value in session.run_with_ort_values(names, values, options)]


def _to_value(array: npt.NDArray[Any]) -> Any:
    if array.dtype == _BF16.numpy:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BF16.onnx)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: Any) -> npt.NDArray[Any]:
    if value.element_type() != _BF16.onnx:
        array: npt.NDArray[Any] = value.numpy()
        return array
    shape = tuple(value.shape())
    memory = (ctypes.c_uint8 * value.tensor_size_in_bytes()).from_address(value.data_ptr())
    memory.owner = value  # the array keeps ``memory``, and so the value
    return np.frombuffer(memory, _BF16.numpy).reshape(shape)


def _text(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    text = np.empty(array.size, dtype=object)
    try:
        for i, element in enumerate(array.reshape(-1)):
            text[i] = element.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"input '{name}': element {i} is not UTF-8, which the graph's strings are; send text, "
            "or convert the graph to take UINT8"
        ) from None
    return text.reshape(array.shape)


def _spec(kind: str, node: Any) -> TensorSpec:
    element = node.type.removeprefix("tensor(").removesuffix(")")
    if node.type != f"tensor({element})" or element not in _DTYPES:
        raise BackendError(
            f"{kind} '{node.name}' is a {node.type}, which no V2 datatype holds; "
            "convert the graph so that it takes and gives tensors (scikit-learn: zipmap=False)"
        )
    return TensorSpec(
        node.name,
        DTYPES[_DTYPES[element]],
        tuple(None if isinstance(d, int) and d < 0 else d for d in node.shape),
    )
