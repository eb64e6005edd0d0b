"""Runs over device memory: inputs and outputs are bound by their addresses (ONNX Runtime's IOBinding).

1. Inputs that are on the host are copied to the device, one copy each; the others are there.
2. Outputs whose shapes follow from the inputs' get memory beforehand, the others get it from ONNX Runtime.
3. ONNX Runtime runs on streams of its own, and returns when they are done.
4. Outputs stay where they are, and are tensors of the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import onnxruntime as ort

from kserve_wasm.tensors import Tensor, TensorSpec
from kserve_wasm.tensors.devices import ALIGNMENT, Accelerator

_CAPTURES = 16
"""Shapes of inputs whose runs are captured: each holds its inputs and outputs for good."""
_GRAPH_ID = "gpu_graph_id"
"""The run option that says which captured graph to replay; -1 for none."""
Room: TypeAlias = Sequence[Tensor | None]
"""Memory for each output; None where ONNX Runtime is to take some."""
_OTHER_SHAPE = ("pre-allocated output", "shape verification failed")
"""ONNX Runtime's words, in its versions, for outputs that are not of the shape that was bound."""


class BoundRuns:
    """How the graphs of one session run on one device. Thread-safe.

    Args:
        accelerator: the device.
        inputs: the graph's inputs, of fixed-size types.
        outputs: its outputs, likewise.
    """

    def __init__(
        self, accelerator: Accelerator, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self.accelerator = accelerator
        self.inputs = inputs
        self.outputs = outputs
        self._device = (accelerator.runtime.kind, accelerator.runtime.index)
        self._foresees = True
        self._no_room: Room = [None] * len(outputs)

    def run(self, session: Any, given: Mapping[str, Tensor], options: Any) -> dict[str, Tensor]:
        """Runs the graph on ``given``, which must fit its inputs. Raises what ONNX Runtime raises, and BackendError."""
        inputs = self._aligned(Tensor.move([given[spec.name] for spec in self.inputs], self.accelerator))
        room = self.room(inputs) if self._foresees else self._no_room
        try:
            return self.bound(session, inputs, room, options)
        except RuntimeError as error:
            if not any(room) or not any(words in str(error) for words in _OTHER_SHAPE):
                raise
        self._foresees = False  # the graph says of its outputs what is not so
        return self.bound(session, inputs, self._no_room, options)

    def room(self, inputs: Sequence[Tensor]) -> Room:
        """Memory for each output whose shape is known from the inputs'."""
        sizes: dict[str, int] = {}
        for spec, tensor in zip(self.inputs, inputs, strict=True):
            for dim, size in zip(spec.shape, tensor.shape, strict=False):  # unranked: no dimensions
                if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                    return self._no_room
        return [self._room(spec, sizes) for spec in self.outputs]

    def _room(self, spec: TensorSpec, sizes: Mapping[str, int]) -> Tensor | None:
        shape = []
        for dim in spec.shape:
            size = sizes.get(dim) if isinstance(dim, str) else dim
            if not size:  # not known; or there are no elements, and ONNX Runtime takes no memory for them
                return None
            shape.append(size)
        if not shape:  # ONNX Runtime says this of any number of dimensions too
            return None
        nbytes = math.prod(shape) * spec.dtype.itemsize
        return Tensor.from_device(spec.dtype, tuple(shape), self.accelerator.allocate(nbytes))

    def bound(self, session: Any, inputs: Sequence[Tensor], room: Room, options: Any) -> dict[str, Tensor]:
        """One run with ``inputs`` on the device, and the outputs in ``room`` as far as there is any."""
        binding = session.io_binding()
        for spec, tensor in zip(self.inputs, inputs, strict=True):
            binding.bind_input(spec.name, *self._device, spec.dtype.onnx, tensor.shape, tensor.pointer)
        for spec, own in zip(self.outputs, room, strict=True):
            if own is None:
                binding.bind_output(spec.name, *self._device)
            else:
                binding.bind_output(spec.name, *self._device, spec.dtype.onnx, own.shape, own.pointer)
        try:
            session.run_with_iobinding(binding, options)
        except BaseException:
            # A run that ends early may leave kernels behind, and what they read and write is about to be free.
            self.accelerator.runtime.synchronize_all()
            raise
        return {
            spec.name: self._output(spec, value, own, inputs, session)
            for spec, value, own in zip(self.outputs, binding.get_outputs(), room, strict=True)
        }

    def _output(
        self, spec: TensorSpec, value: Any, own: Tensor | None, inputs: Sequence[Tensor], session: Any
    ) -> Tensor:
        pointer = value.data_ptr()
        if own is not None and own.pointer == pointer:
            return own
        shape = tuple(value.shape())
        # The session's allocator frees the value's memory, so it has to be there until then: a tuple drops its last
        # element first.
        memory = self.accelerator.adopt((session, value), pointer, math.prod(shape) * spec.dtype.itemsize)
        tensor = Tensor.from_device(spec.dtype, shape, memory)
        if any(tensor.may_share_memory(given) for given in inputs):
            return tensor.copied()  # a graph that has an input as its output passes its memory on
        return tensor

    def _aligned(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Kernels read several elements at once; rows of a batch may begin anywhere."""
        return [tensor.copied() if tensor.pointer % ALIGNMENT else tensor for tensor in tensors]


class CapturedRuns(BoundRuns):
    """As :class:`BoundRuns`, with CUDA graphs: all kernels of a run are launched as one.

    What is captured are addresses: so there are fixed ones for each shape of the inputs, which inputs are copied to
    and outputs from. ONNX Runtime captures for each thread anew, and keeps that for good: all runs are one thread's.
    """

    def __init__(
        self, accelerator: Accelerator, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        super().__init__(accelerator, inputs, outputs)
        self._thread = ThreadPoolExecutor(1, "kserve-wasm-cuda-graphs")
        self._captures: dict[tuple[tuple[int, ...], ...], _Capture] = {}
        self._captured = 0

    def run(self, session: Any, given: Mapping[str, Tensor], options: Any) -> dict[str, Tensor]:
        """As :meth:`BoundRuns.run`; replayed where the inputs have shapes of earlier ones."""
        return self._thread.submit(self._run, session, given, options or ort.RunOptions()).result()

    def _run(self, session: Any, given: Mapping[str, Tensor], options: Any) -> dict[str, Tensor]:
        if options.terminate:
            raise RuntimeError("the run waited for others until it was stopped")
        inputs = [given[spec.name] for spec in self.inputs]
        shapes = tuple([tensor.shape for tensor in inputs])
        capture = self._capture(shapes, inputs)
        if capture is None:
            options.add_run_config_entry(_GRAPH_ID, "-1")
            return super().run(session, given, options)
        options.add_run_config_entry(_GRAPH_ID, str(capture.id))
        with self.accelerator.completing():
            for tensor, fixed in zip(inputs, capture.inputs, strict=True):
                if tensor.memory is not None and tensor.memory.accelerator is self.accelerator:
                    self.accelerator.copy(fixed.pointer, tensor.pointer, tensor.nbytes)
                else:
                    self.accelerator.upload(fixed.pointer, tensor.numpy())
        try:
            outputs = self.bound(session, capture.inputs, capture.room, options)
        except BaseException:
            # ONNX Runtime also keeps what it captured of a run that failed or was stopped, and would replay that part.
            del self._captures[shapes]
            raise
        return {name: tensor.copied() for name, tensor in outputs.items()}

    def _capture(self, shapes: tuple[tuple[int, ...], ...], inputs: Sequence[Tensor]) -> _Capture | None:
        """The fixed memory for inputs of these shapes; None where there is to be none."""
        found = self._captures.get(shapes)
        if found is None and self._captured < _CAPTURES:
            room = self.room(inputs)
            if None not in room:
                fixed = [
                    Tensor.from_device(tensor.dtype, tensor.shape, self.accelerator.allocate(tensor.nbytes))
                    for tensor in inputs
                ]
                self._captured += 1
                found = self._captures[shapes] = _Capture(self._captured, fixed, room)
        return found


class _Capture:
    """Memory at fixed addresses for inputs of one shape.

    Attributes:
        id: the captured graph's number, from 1 on.
        inputs: what inputs are copied to.
        room: what the outputs are written to.
    """

    __slots__ = ("id", "inputs", "room")

    def __init__(self, number: int, inputs: Sequence[Tensor], room: Room) -> None:
        self.id = number
        self.inputs = inputs
        self.room = room
