"""The options of a PyTorch graph: ``graphs[].options`` in ``model.yaml``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from kserve_wasm.errors import ModelLoadError
from kserve_wasm.tensors import DTYPES, TensorSpec


@dataclass(frozen=True, slots=True)
class PyTorchOptions:
    """How PyTorch opens and runs a graph.

    Attributes:
        intra_op_threads: threads that one operator may use; 0 takes the CPUs this process may use, its cgroup's quota
            included. PyTorch keeps this number for each calling thread, so graphs with different ones do not disturb
            each other; only MKL, in builds that have it, keeps one for the process: that of the graph that ran last.
        device_id: which GPU, where the device is one.
        fallback: run on the CPU where there is no GPU.
        inputs: names, types and shapes of the inputs, in order, for TorchScript, whose archives hold types only where
            they were traced. An exported program says them itself.
        outputs: likewise. Left out, they are learnt from one run on zeros, which needs the inputs' types.
        optimize: fold what is constant in TorchScript, its weights included, when it is opened. Needs a module without
            state that changes.
    """

    intra_op_threads: int = 0
    device_id: int = 0
    fallback: bool = False
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    optimize: bool = True


SPEC_EXAMPLE = "[{name: x, datatype: FP32, shape: [-1, 4]}]"
"""How ``inputs`` and ``outputs`` are written."""


def parse(options: Mapping[str, Any]) -> PyTorchOptions:
    """Reads ``options`` as they stand in ``model.yaml``.

    Raises:
        ModelLoadError: an option is unknown, or its value is not one it takes.
    """
    known = {f.name for f in fields(PyTorchOptions)}
    unknown = sorted(str(name) for name in options if name not in known)
    if unknown:
        raise ModelLoadError(
            f"unknown option {', '.join(unknown)} of a PyTorch graph; known: {', '.join(sorted(known))}"
        )
    return PyTorchOptions(**{name: _READERS[name](name, value) for name, value in options.items()})


def _wrong(name: str, expected: str, value: object) -> ModelLoadError:
    return ModelLoadError(f"option '{name}' of a PyTorch graph must be {expected}, got {value!r}")


def _number(name: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1024:
        return value
    raise _wrong(name, "a number from 0 to 1024", value)


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _wrong(name, "true or false", value)


def _specs(name: str, value: object) -> tuple[TensorSpec, ...]:
    specs = tuple(map(_spec, value)) if isinstance(value, list | tuple) else ()
    found = [spec for spec in specs if spec is not None]
    if not found or len(found) < len(specs) or len({spec.name for spec in found}) < len(specs):
        raise _wrong(name, f"a list such as {SPEC_EXAMPLE}, with names that differ and no BYTES", value)
    return tuple(found)


def _spec(item: object) -> TensorSpec | None:
    if not isinstance(item, Mapping) or item.keys() != {"name", "datatype", "shape"}:
        return None
    name, datatype, shape = item["name"], item["datatype"], item["shape"]
    if not (isinstance(name, str) and name and isinstance(datatype, str) and isinstance(shape, list | tuple)):
        return None
    dtype = DTYPES.get(datatype)
    if dtype is None or dtype.itemsize == 0 or not all(map(_is_dimension, shape)):
        return None
    return TensorSpec(name, dtype, tuple(None if d == -1 else d for d in shape))


def _is_dimension(value: object) -> bool:
    return bool(value) if isinstance(value, str) else type(value) is int and value >= -1  # a bool is an int


_READERS: dict[str, Callable[[str, object], Any]] = {
    "intra_op_threads": _number,
    "device_id": _number,
    "fallback": _flag,
    "inputs": _specs,
    "outputs": _specs,
    "optimize": _flag,
}
