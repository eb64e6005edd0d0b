"""Compares the converted model with the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kserve_wasm.artifact.write import Blob, chunks
from kserve_wasm.convert.errors import ConversionError
from kserve_wasm.convert.reference import Reference, SampleRefusedError
from kserve_wasm.convert.samples import Sample, samples
from kserve_wasm.tensors import Tensor, TensorSpec

ROUNDS = 4

_TOLERANCE = {"FP16": 1e-2, "BF16": 5e-2, "FP32": 1e-4, "FP64": 1e-8}
"""Relative to the largest value of the tensor: the same sums, added up in another order. All else must be equal."""


@dataclass(frozen=True, slots=True)
class Example:
    """Inputs, and the original's answer."""

    inputs: Sample
    outputs: Mapping[str, npt.NDArray[Any]]


def examples(
    reference: Reference,
    specs: Sequence[TensorSpec],
    shapes: Mapping[str, Sequence[int]],
    rounds: int = ROUNDS,
) -> list[Example]:
    """The original's answers to random inputs, of other sizes each time where the model leaves them open.

    Raises:
        ConversionError: the original takes none of the inputs that were tried.
    """
    found = []
    for seed in range(rounds):
        refusal: SampleRefusedError | None = None
        for sample in samples(specs, shapes, seed):
            try:
                found.append(Example(sample, reference.run(sample)))
                break
            except SampleRefusedError as error:
                refusal = refusal or error
        else:
            if not found:
                names = ", ".join(f"--shape {s.name}=…" for s in specs)
                raise ConversionError(
                    "ONNX Runtime refuses every random input that was tried, so the conversion could not be "
                    f"verified; give sizes that the model takes ({names}). It said: {refusal}"
                )
    return found


def compare(example: Example, answer: Mapping[str, Tensor]) -> None:
    """Raises ConversionError, naming the output, unless ``answer`` is the original's."""
    if list(answer) != list(example.outputs):
        raise ConversionError(f"expected the outputs {list(example.outputs)}, got {list(answer)}")
    for name, want in example.outputs.items():
        tensor = answer[name]
        expected = Tensor.from_numpy(want)
        if tensor.dtype is not expected.dtype or tensor.shape != expected.shape:
            raise ConversionError(
                f"output '{name}': the original gives {expected}, the converted model {tensor}"
            )
        got, want = tensor.numpy(), expected.numpy()
        tolerance = _TOLERANCE.get(tensor.dtype.name)
        if tolerance is None:
            equal = bool(np.array_equal(got, want))
        else:
            equal = _close(got.astype(np.float64), want.astype(np.float64), tolerance)
        if not equal:
            raise ConversionError(f"output '{name}' {list(want.shape)} differs from the original's")


def _close(got: npt.NDArray[np.float64], want: npt.NDArray[np.float64], tolerance: float) -> bool:
    finite = np.abs(want[np.isfinite(want)])
    scale = float(finite.max()) if finite.size else 1.0
    return bool(np.allclose(got, want, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def check(
    found: Sequence[Example],
    answer: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    reopen: Callable[[], Reference],
    done: Callable[[int], None],
) -> None:
    """Gives the examples' inputs to the converted model.

    Args:
        found: what the original answered.
        answer: the converted model.
        reopen: opens the original again, to tell a model that is not deterministic from a failed conversion.
        done: told the number of examples that are right.

    Raises:
        ConversionError: one of them is answered otherwise.
    """
    for number, example in enumerate(found, 1):
        try:
            compare(example, answer({name: Tensor.from_numpy(a) for name, a in example.inputs.items()}))
        except ConversionError as error:
            with reopen() as reference:
                again = {name: Tensor.from_numpy(a) for name, a in reference.run(example.inputs).items()}
            try:
                compare(example, again)
            except ConversionError:
                raise ConversionError(
                    "the original answers the same input differently each time (random operators?), so that no "
                    "conversion of it can be verified; take the randomness out, or in as an input"
                ) from None
            raise error
        done(number)


def check_weights(
    path: Path, weights: Sequence[Blob], offsets: Sequence[int], done: Callable[[int], None]
) -> None:
    """Compares the weights in the artefact at ``path`` with their sources, byte for byte.

    Args:
        path: the artefact.
        weights: the sources.
        offsets: where each of them is in the artefact.
        done: told the bytes of every chunk that is right.

    Raises:
        ConversionError: a byte differs.
    """
    with path.open("rb") as file:
        for blob, offset in zip(weights, offsets, strict=True):
            file.seek(offset)
            for expected in chunks(blob):
                if file.read(len(expected)) != expected:
                    raise ConversionError(
                        f"weights at offset {offset} differ from the original's; is the disk faulty?"
                    )
                done(len(expected))
