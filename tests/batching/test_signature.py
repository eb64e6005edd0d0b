"""Which graphs can be batched, and which requests go together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_wasm.artifact.config import Batching, Padding
from kserve_wasm.batching.signature import BatchSignature, Fit, batch_signature
from kserve_wasm.errors import ModelLoadError
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec

Shape = tuple[int | str | None, ...]


def specs(shapes: dict[str, Shape], dtype: str = "FP32") -> list[TensorSpec]:
    return [TensorSpec(name, DTYPES[dtype], shape) for name, shape in shapes.items()]


def signature(inputs: dict[str, Shape], outputs: dict[str, Shape], **options: Any) -> BatchSignature | None:
    return batch_signature("g", specs(inputs), specs(outputs), Batching(**options))


def known(inputs: dict[str, Shape], **options: Any) -> BatchSignature:
    found = signature(inputs, {"y": ("n",)}, **options)
    assert found is not None
    return found


def tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: Tensor.from_numpy(np.zeros(shape, np.float32)) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"x": ("n", 3)}, {"y": ("n", 2)}),
        ({"x": (None, 3)}, {"y": (None,)}),
        ({"x": ("n",)}, {"y": ("other", 4)}),
        ({"a": ("n", "length"), "b": ("n", "length")}, {"y": ("n", "length"), "z": ("n",)}),
        ({"x": (None, None)}, {"y": (None, None)}),
    ],
)
def test_an_open_first_dimension_everywhere_is_a_batch(
    inputs: dict[str, Shape], outputs: dict[str, Shape]
) -> None:
    assert signature(inputs, outputs) is not None
    assert signature(inputs, outputs, declared=True) is not None
    assert signature(inputs, outputs, max_batch_size=1) is None


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ({}, {"y": ("n",)}, "it has no inputs"),
        ({"x": (1, 3)}, {"y": ("n",)}, "the first dimension of input 'x' is 1 and not open"),
        ({"x": ("n",), "k": ()}, {"y": ("n",)}, "input 'k' has no dimensions"),
        ({"x": ("n",)}, {"y": ()}, "output 'y' has no dimensions"),
        ({"x": ("n",)}, {"y": ("n",), "z": (7,)}, "the first dimension of output 'z' is 7 and not open"),
        (
            {"a": ("n",), "b": ("m",)},
            {"y": ("n",)},
            "the inputs' first dimensions have different names: m, n",
        ),
        ({"a": ("n",), "b": (None,)}, {"y": ("n",)}, "different names: None, n"),
        ({"x": ("n", "n")}, {"y": ("n",)}, "'n' is also a further dimension of 'x'"),
        ({"x": ("n", 3)}, {"y": ("m", "n")}, "'n' is also a further dimension of 'y'"),
    ],
)
def test_any_other_signature_is_none_and_an_error_where_it_is_declared(
    inputs: dict[str, Shape], outputs: dict[str, Shape], reason: str
) -> None:
    assert signature(inputs, outputs) is None
    with pytest.raises(ModelLoadError, match=reason) as caught:
        signature(inputs, outputs, declared=True, max_batch_size=7)
    assert "max_batch_size is 7" in str(caught.value)
    assert "graph 'g'" in str(caught.value)


def test_padding_asks_for_a_dimension_that_is_there() -> None:
    padding = {"length": Padding((8,))}
    assert signature({"x": ("n", "length")}, {"y": ("n",)}, padding=padding) is not None
    for shape in (("n", 4), ("n", None), ("n", "time"), ("length", 4)):
        with pytest.raises(ModelLoadError, match="no input of graph 'g' has a dimension 'length'") as caught:
            signature({"x": shape}, {"y": ("n", "length")}, padding=padding)
        assert ("'time'" in str(caught.value)) == ("time" in shape)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("UINT8", -1.0), ("UINT8", 256.0), ("INT64", 0.5), ("INT32", 2.0**31), ("BOOL", 2.0), ("FP16", 1e6)],
)
def test_padding_is_with_values_of_the_inputs_type(dtype: str, value: float) -> None:
    inputs, outputs = specs({"x": ("n", "length")}, dtype), specs({"y": ("n",)})
    with pytest.raises(ModelLoadError, match=rf"padding.*'x'.*{dtype}"):
        batch_signature("g", inputs, outputs, Batching(padding={"length": Padding((8,), {"x": value})}))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("UINT8", 255.0), ("INT64", -1.0), ("BOOL", 1.0), ("FP16", 0.1), ("FP32", float("-inf")), ("BF16", 0.1)],
)
def test_padding_is_with_any_value_that_the_type_has(dtype: str, value: float) -> None:
    inputs, outputs = specs({"x": ("n", "length")}, dtype), specs({"y": ("n",)})
    batching = Batching(padding={"length": Padding((8,), {"x": value})})
    assert batch_signature("g", inputs, outputs, batching) is not None


@pytest.mark.parametrize("name", ["other", "z"])
def test_padding_names_inputs_that_have_the_dimension(name: str) -> None:
    inputs, outputs = specs({"x": ("n", "length"), "z": ("n", 3)}), specs({"y": ("n",)})
    with pytest.raises(ModelLoadError, match=f"padding.*'{name}'"):
        batch_signature("g", inputs, outputs, Batching(padding={"length": Padding((8,), {name: 1.0})}))


def test_padding_of_text_is_without_a_value() -> None:
    inputs, outputs = specs({"x": ("n", "length")}, "BYTES"), specs({"y": ("n",)})
    with pytest.raises(ModelLoadError, match=r"padding.*'x'.*BYTES"):
        batch_signature("g", inputs, outputs, Batching(padding={"length": Padding((8,), {"x": 1.0})}))


# --- Requests


def test_requests_that_differ_only_in_their_entries_go_together() -> None:
    found = known({"a": ("n", "length"), "b": ("n", 2)})
    one = found.fit(tensors(a=(1, 5), b=(1, 2)))
    three = found.fit(tensors(b=(3, 2), a=(3, 5)))
    other = found.fit(tensors(a=(1, 6), b=(1, 2)))
    assert one is not None
    assert three is not None
    assert other is not None
    assert (one.rows, three.rows, other.rows) == (1, 3, 1)
    assert one.key == three.key
    assert one.key != other.key
    assert hash(one.key) == hash(three.key)


@pytest.mark.parametrize(
    "shapes",
    [
        {"a": (1, 5)},
        {"a": (1, 5), "b": (1, 2), "c": (1, 2)},
        {"a": (1, 5), "c": (1, 2)},
        {"a": (1, 5), "b": (1, 3)},
        {"a": (1, 5), "b": (2,)},
        {"a": (1, 5), "b": ()},
        {"a": (1, 5), "b": (2, 2)},
        {"a": (0, 5), "b": (2, 2)},
        {"a": (2, 5), "b": (0, 2)},
        {"a": (0, 5), "b": (0, 2)},
        {"a": (9, 5), "b": (9, 2)},
    ],
    ids=str,
)
def test_what_the_graph_would_refuse_or_has_no_room_for_is_run_alone(
    shapes: dict[str, tuple[int, ...]],
) -> None:
    found = known({"a": ("n", "length"), "b": ("n", 2)}, max_batch_size=8)
    assert found.fit(tensors(**shapes)) is None


def test_another_type_is_run_alone() -> None:
    found = known({"x": ("n",)})
    assert found.fit({"x": Tensor.from_numpy(np.zeros(2, np.float32))}) == Fit(2, ((),), ())
    assert found.fit({"x": Tensor.from_numpy(np.zeros(2, np.float64))}) is None


def test_padded_sizes_go_together_up_to_the_same_bound() -> None:
    found = known({"x": ("n", "length", 3)}, padding={"length": Padding((4, 8))})
    fits = {length: found.fit(tensors(x=(2, length, 3))) for length in (0, 1, 4, 5, 8, 9, 10)}
    assert all(fit is not None and fit.sizes == (length,) for length, fit in fits.items())
    keys = {length: fit.key for length, fit in fits.items() if fit is not None}
    assert keys[0] == keys[1] == keys[4]
    assert keys[5] == keys[8]
    assert len(set(map(repr, keys.values()))) == 4  # up to 4, up to 8, and 9 and 10 each with its like


def test_one_padded_dimension_is_of_one_size_in_all_inputs() -> None:
    found = known({"a": ("n", "length"), "b": ("n", "length")}, padding={"length": Padding((8,))})
    assert found.fit(tensors(a=(1, 3), b=(1, 3))) is not None
    assert found.fit(tensors(a=(1, 3), b=(1, 4))) is None


@given(
    rows=st.integers(0, 5),
    sizes=st.lists(st.integers(0, 12), min_size=2, max_size=2),
    other_rows=st.integers(0, 5),
    other_sizes=st.lists(st.integers(0, 12), min_size=2, max_size=2),
)
def test_requests_with_equal_keys_can_be_stacked(
    rows: int, sizes: list[int], other_rows: int, other_sizes: list[int]
) -> None:
    """Not-padded sizes agree; padded ones are all at most the bound that both are held to."""
    found = known({"x": ("n", "length", "width")}, padding={"length": Padding((4, 8))})
    one, two = (found.fit(tensors(x=(n, *more))) for n, more in ((rows, sizes), (other_rows, other_sizes)))
    assert (one is None) == (rows == 0)
    if one is not None and two is not None:
        bounds = [4, 8, *range(9, 13)]
        same_bucket = [next(b for b in bounds if s[0] <= b) for s in (sizes, other_sizes)]
        assert (one.key == two.key) == (same_bucket[0] == same_bucket[1] and sizes[1] == other_sizes[1])
