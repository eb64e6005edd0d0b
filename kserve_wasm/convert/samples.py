"""Random inputs for a model of which only names, types and shapes are known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kserve_wasm.tensors import TensorSpec

Sample = dict[str, npt.NDArray[Any]]

MAX_ELEMENTS = 1 << 25
"""Of one input tensor with open dimensions; guesses at them that pass this are not tried."""

_UNIFORM = (1, 2, 4, 8, 16, 32, 64, 128, 224, 256, 512)
_INTEGERS = (100, 10, 2, 1)
_WORDS = ("", "a", "word", "Grüße", "naïve café", "日本語", "🙂", "42", "-1.5", "x" * 100)
_NUMBERS = ("0", "1", "42", "-7", "1.5")


def samples(specs: Sequence[TensorSpec], fixed: Mapping[str, Sequence[int]], seed: int) -> Iterator[Sample]:
    """Guesses at inputs that the model takes, likely ones first: sizes vary, then ranges of integers and words.

    Args:
        specs: the inputs.
        fixed: shapes that the user gave, by input name.
        seed: the same seed gives the same guesses.
    """
    for sizes in _sizes(specs, seed):
        shapes = {s.name: _shape(s, sizes, fixed.get(s.name)) for s in specs}
        if sizes and any(math.prod(shape) > MAX_ELEMENTS for shape in shapes.values()):
            continue
        for below in _INTEGERS:
            rng = np.random.default_rng(seed)
            yield {s.name: _values(rng, s, shapes[s.name], below) for s in specs}


def _sizes(specs: Sequence[TensorSpec], seed: int) -> Iterator[dict[str, int]]:
    """Sizes of the open dimensions; a dimension without a name goes by its input's name and its place."""
    keys = dict.fromkeys(_key(s, i) for s in specs for i, d in enumerate(s.shape) if not isinstance(d, int))
    # Different sizes for different symbols find what equal sizes hide.
    yield {key: 1 if seed == 1 else 2 + (i + seed) % 5 for i, key in enumerate(keys)}
    for size in _UNIFORM if keys else ():
        # The first is mostly the batch, which fits any size; the others may have to be 224.
        yield dict.fromkeys(keys, size) | {next(iter(keys)): 1}
        yield dict.fromkeys(keys, size)


def _key(spec: TensorSpec, index: int) -> str:
    dim = spec.shape[index]
    return dim if isinstance(dim, str) else f"{spec.name}[{index}]"


def _shape(spec: TensorSpec, sizes: Mapping[str, int], fixed: Sequence[int] | None) -> tuple[int, ...]:
    if fixed is not None:
        return tuple(fixed)
    return tuple(d if isinstance(d, int) else sizes[_key(spec, i)] for i, d in enumerate(spec.shape))


def _values(
    rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], below: int
) -> npt.NDArray[Any]:
    kind = spec.dtype.numpy.kind
    if spec.dtype.itemsize == 0:
        words = np.array(_WORDS if below > _INTEGERS[1] else _NUMBERS, dtype=object)
        # Of a scalar, indexing gives the word and no array.
        return np.asarray(words[rng.integers(0, len(words), shape)], dtype=object).reshape(shape)
    if kind == "b":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if kind in "iu":
        if (
            below == _INTEGERS[0] and spec.dtype.itemsize == 1
        ):  # pixels and quantised values use the whole range
            limits = np.iinfo(spec.dtype.numpy)
            return rng.integers(limits.min, limits.max, shape, spec.dtype.numpy, endpoint=True)
        return rng.integers(0, below, shape).astype(spec.dtype.numpy)
    return np.asarray(rng.standard_normal(shape)).astype(spec.dtype.numpy)
