from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_wasm.errors import InvalidRequest
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec

FP32 = DTYPES["FP32"]


def zeros(*shape: int, dtype: str = "f4") -> Tensor:
    return Tensor.from_numpy(np.zeros(shape, dtype))


@given(
    st.lists(st.one_of(st.integers(0, 3), st.sampled_from(["n", "m"]), st.none()), max_size=4),
    st.lists(st.integers(0, 3), max_size=4),
)
def test_a_shape_fits_when_every_fixed_dimension_is_met(want: list[int | str | None], got: list[int]) -> None:
    spec = TensorSpec("x", FP32, tuple(want))
    # V2's own form of the shape: -1 takes anything
    fits = len(want) == len(got) and all(w in (-1, g) for w, g in zip(spec.v2_shape, got, strict=True))
    if fits:
        spec.check(zeros(*got))
    else:
        with pytest.raises(InvalidRequest, match="input 'x' must have shape"):
            spec.check(zeros(*got))


def test_errors_say_what_was_expected_and_what_came() -> None:
    spec = TensorSpec("image", FP32, ("batch", 3, None))
    with pytest.raises(InvalidRequest) as dtype:
        spec.check(zeros(1, 3, 5, dtype="f8"))
    assert str(dtype.value) == "input 'image' must be FP32, got FP64"
    with pytest.raises(InvalidRequest) as shape:
        spec.check(zeros(1, 4, 5))
    assert str(shape.value) == "input 'image' must have shape [-1, 3, -1] (-1: any size), got [1, 4, 5]"


def test_equal_symbols_may_be_unequal_sizes() -> None:
    TensorSpec("x", FP32, ("n", "n")).check(zeros(2, 3))
