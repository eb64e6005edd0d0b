"""TorchScript archives.

``torch.jit.load`` reads them with an unpickler of its own, which makes tensors and TorchScript's objects, not Python's.
What the code in an archive may do is another matter: TorchScript has operators that read and write files, open
connections and call into other libraries. Archives whose code could come to those are refused before PyTorch reads
anything of them. That is no sandbox: PyTorch's own advice is to load only archives that one trusts.
"""

from __future__ import annotations

import io
import math
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kserve_wasm.backends.torch.archive import Archive
from kserve_wasm.backends.torch.errors import plain
from kserve_wasm.backends.torch.exchange import TORCH_DTYPES, as_tensor
from kserve_wasm.backends.torch.interruptible import Interruptible
from kserve_wasm.backends.torch.options import SPEC_EXAMPLE, PyTorchOptions
from kserve_wasm.backends.torch.program import Program, Stopped
from kserve_wasm.backends.torch.storages import check_storages
from kserve_wasm.errors import BackendError, ModelLoadError
from kserve_wasm.tensors import DTYPES, DType, TensorSpec

warnings.filterwarnings("ignore", r"`torch\.jit\.(load|freeze)` is ", DeprecationWarning)

_REFUSED_WORDS = re.compile(
    rb"\b(?:from_file|save)\b"  # operators of aten that map and write files
    rb"|(?<![.\w])ops\b(?!\.(?:aten|prim|quantized)\.)[\s.]*\w*"  # operators of other libraries; not a module's name
)
"""What code in an archive may not hold, wherever it stands: TorchScript makes no names out of data, but with these:"""
_GETATTR = re.compile(rb'\bgetattr\((?:(?!getattr\b)[\w.()]){1,1000}, "[^"\\\n]*"\)|(\bgetattr\b)')
"""As PyTorch writes it, or else. Its parser also takes literals in parts or with escapes, which show no word."""
_CLASSES = re.compile(rb"(?<=\btorch\.)classes\b(?!\.quantized\.)[.\w]*|(?<!\w\.)\bclasses\b")
"""Classes that are written in C++, but those of quantised weights."""

_READ = ("data", "constants", "code", "traced_inputs", "version", "byteorder", ".data")
"""Where the records lie that PyTorch reads."""

_NUMBERS = {"IntType": DTYPES["INT64"], "FloatType": DTYPES["FP64"], "BoolType": DTYPES["BOOL"]}
_LEARNING = 10.0
"""Seconds for the run on zeros."""
_MOST_ZEROS = 64 << 20
"""Elements that it may take."""


def open_program(archive: Archive, options: PyTorchOptions, device: torch.device) -> Program:
    """Opens the archive's method ``forward`` on ``device``.

    Raises:
        BackendError: it is damaged, changes itself, or has what is not allowed here.
        ModelLoadError: types are in neither the archive nor the options.
    """
    _refuse(archive)
    check_storages(archive)
    has_types = "traced_inputs.pkl" in archive
    loaded = torch.jit.load(
        io.BytesIO(archive.rewritten(_READ)), map_location=device, _restore_shapes=has_types
    )
    module: Any = loaded.eval()._c
    if not module._has_method("forward"):
        raise BackendError("the module has no method 'forward'")
    schema = module._get_method("forward").schema
    types = [value.type() for value in module._get_method("forward").graph.inputs()][1:]
    if options.optimize:
        frozen = torch.jit.freeze(loaded) if not any(_is_frozen(loaded)) else loaded
        module = frozen._c
    inputs, zeros = _inputs(schema.arguments[1:], types, options.inputs)
    numbers = frozenset(a.name for a in schema.arguments if a.type.kind() in _NUMBERS)
    names = [spec.name for spec in inputs]
    arguments = [
        (names.index(a.name) if a.name in names else None, a.default_value) for a in schema.arguments[1:]
    ]
    run = Interruptible(module, arguments, stateless=options.optimize, device=device)
    outputs = options.outputs or _learn(run, zeros, inputs, numbers, device)

    def call(values: list[Any], deadline: float) -> Sequence[Any]:
        return _pick(run(values, deadline), outputs)

    return Program(call, inputs, outputs, numbers.intersection(names))


def _is_frozen(module: Any) -> list[bool]:
    """A module that was frozen before it was saved cannot be frozen again: it does not know whether it is training."""
    return [True] if not hasattr(module, "training") else []


def _refuse(archive: Archive) -> None:
    for name in archive.names:
        is_code = name.startswith("code/")
        if name.endswith(".debug_pkl") or not (is_code or name.endswith(".pkl")):
            continue
        content = archive.read(name)
        # In a pickle, a line break stands between a class and its module.
        found = _CLASSES.search(content if is_code else content.replace(b"\n", b"."))
        if is_code:
            found = found or _REFUSED_WORDS.search(content) or _other_getattr(content)
        if found:
            raise BackendError(
                f"the archive says '{found[0].decode(errors='replace')}', which can reach beyond tensors; leave it "
                "out, rename what is called so, or export the module with torch.export"
            )


def _other_getattr(code: bytes) -> re.Match[bytes] | None:
    return next((found for found in _GETATTR.finditer(code) if found[1]), None)


def _inputs(
    arguments: Sequence[Any], types: Sequence[Any], given: Sequence[TensorSpec]
) -> tuple[tuple[TensorSpec, ...], list[list[int]]]:
    """The inputs' specifications, and shapes that they may have: those of the trace, else 1 for open dimensions."""
    known = {a.name: (a, t) for a, t in zip(arguments, types, strict=True)}
    wanted = [spec.name for spec in given] or [a.name for a in arguments if not a.has_default_value()]
    missing = [n for n, (a, _) in known.items() if n not in wanted and not a.has_default_value()]
    if missing or not known.keys() >= set(wanted):
        raise ModelLoadError(
            f"option 'inputs' must name the arguments {', '.join(map(repr, known))} of the module's forward, "
            f"got {', '.join(map(repr, wanted))}"
        )
    specs: list[TensorSpec] = []
    shapes: list[list[int]] = []
    untyped = []
    for i, name in enumerate(wanted):
        argument, traced = known[name]
        kind = argument.type.kind()
        dtype = _NUMBERS.get(kind)
        spec = given[i] if given else None
        shape: list[int] = []
        if kind not in _NUMBERS and kind not in ("TensorType", "OptionalType"):
            raise BackendError(
                f"input '{name}' is a {argument.type.annotation_str}; wrap the module in one that takes tensors"
            )
        if dtype is None:
            sizes = traced.sizes() if traced.kind() == "TensorType" else None
            dtype = None if sizes is None else TORCH_DTYPES.get(traced.dtype())
            shape = sizes or []
        if spec is not None:
            fits = dtype is None or (spec.dtype is dtype and len(spec.shape) == len(shape))
            if not fits:
                raise ModelLoadError(
                    f"option 'inputs' says {spec.dtype} {spec.v2_shape} of '{name}', the module {dtype} "
                    f"with {len(shape)} dimensions"
                )
            shape = shape or [d if isinstance(d, int) else 1 for d in spec.shape]
        elif dtype is None:
            untyped.append(name)
            continue
        else:
            spec = TensorSpec(name, dtype, (None,) * len(shape))
        specs.append(spec)
        shapes.append(shape)
    if untyped:
        raise ModelLoadError(
            f"the archive does not say the types of {', '.join(map(repr, wanted))}: it was not traced. Give the graph "
            f"the option 'inputs', such as {SPEC_EXAMPLE}, trace the module, or export it with torch.export"
        )
    return tuple(specs), shapes


def _learn(
    run: Interruptible,
    shapes: Sequence[Sequence[int]],
    inputs: Sequence[TensorSpec],
    numbers: frozenset[str],
    device: torch.device,
) -> tuple[TensorSpec, ...]:
    """What the program gives for zeros: names, types, and numbers of dimensions."""
    dtypes = {dtype: torch_dtype for torch_dtype, dtype in TORCH_DTYPES.items()}
    try:
        if sum(math.prod(shape) for shape in shapes) > _MOST_ZEROS:
            raise RuntimeError("the inputs are too large")
        with torch.inference_mode():
            zeros = [
                torch.zeros(shape, dtype=dtypes[s.dtype], device=device)
                for s, shape in zip(inputs, shapes, strict=True)
            ]
            values = [z.item() if s.name in numbers else z for s, z in zip(inputs, zeros, strict=True)]
            result = run(values, time.monotonic() + _LEARNING)
    except Exception as error:  # torch.jit.Error is no RuntimeError
        why = "it takes too long" if isinstance(error, Stopped) else plain(error)
        raise ModelLoadError(
            f"the outputs' types could not be learnt from a run on zeros ({why}); give the graph the option "
            f"'outputs', such as {SPEC_EXAMPLE}"
        ) from error
    outputs = []
    for name, value in _named(result):
        tensor = as_tensor(value)
        dtype: DType | None = None if tensor is None else TORCH_DTYPES.get(tensor.dtype)
        if tensor is None or dtype is None:
            raise BackendError(f"output '{name}' is a {type(value).__name__} that no V2 datatype holds")
        outputs.append(TensorSpec(name, dtype, (None,) * tensor.dim()))
    return tuple(outputs)


def _named(result: Any) -> list[tuple[str, Any]]:
    if isinstance(result, Mapping):
        return [(str(name), value) for name, value in result.items()]
    if isinstance(result, tuple | list):
        names = getattr(result, "_fields", None) or [f"output_{i}" for i in range(len(result))]
        return list(zip(names, result, strict=True))
    return [("output", result)]


def _pick(result: Any, outputs: Sequence[TensorSpec]) -> Sequence[Any]:
    if isinstance(result, Mapping):
        missing = [spec.name for spec in outputs if spec.name not in result]
        if missing:
            raise BackendError(f"it gave no {', '.join(map(repr, missing))}, only {', '.join(result)}")
        return [result[spec.name] for spec in outputs]
    return result if isinstance(result, tuple | list) else [result]
