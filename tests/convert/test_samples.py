"""Guesses at inputs: whatever the datatype and rank, an array that a tensor can be made of."""

from __future__ import annotations

import pytest

from kserve_wasm.convert.samples import samples
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sample_has_the_datatype_and_shape_of_its_input(dtype: str, shape: tuple[int, ...]) -> None:
    for sample in samples([TensorSpec("x", DTYPES[dtype], shape)], {}, 0):
        tensor = Tensor.from_numpy(sample["x"])
        assert (tensor.dtype.name, tensor.shape) == (dtype, shape)
