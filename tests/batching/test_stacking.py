"""Stacking and splitting are NumPy's ``concatenate`` and slices, for everything that a request can be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_wasm.artifact.config import Batching, Padding
from kserve_wasm.batching.signature import BatchSignature, Fit
from kserve_wasm.batching.stacking import merged_shapes, padding_values, split, stack
from kserve_wasm.batching.staging import Staging
from kserve_wasm.errors import BackendError
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec
from tests.backends.contract import some_tensor
from tests.support.counts import count

ROOM = 32


def signature(*inputs: TensorSpec, padding: dict[str, Padding] | None = None) -> BatchSignature:
    """Of a graph that gives its inputs back."""
    return BatchSignature(inputs, inputs, Batching(max_batch_size=ROOM, padding=padding or {}))


def stacked(found: BatchSignature, requests: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], list[Fit]]:
    """The requests' inputs in one, and how each of them fits."""
    fits = [fit for request in requests if (fit := found.fit(request))]
    assert len(fits) == len(requests)
    assert len({fit.key for fit in fits}) == 1
    shapes = merged_shapes(found, fits, requests[0])
    padding = padding_values({name: Padding(()) for name in found.padding})
    return stack(requests, Staging(found, ROOM).take(shapes), padding), fits


def bits(tensor: Tensor) -> bytes:
    """All of a tensor: NaNs too are to stay what they are."""
    return bytes(tensor.buffer())


def joined(arrays: list[npt.NDArray[Any]]) -> bytes:
    return bits(Tensor.from_numpy(np.concatenate(arrays)))


@given(
    dtypes=st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=3),
    inner=st.lists(st.integers(0, 3), max_size=2),
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    seed=st.integers(0, 1 << 20),
)
def test_any_requests_become_one_and_each_gets_its_own_back(
    dtypes: list[str], inner: list[int], rows: list[int], seed: int
) -> None:
    names = [f"x{i}" for i in range(len(dtypes))]
    found = signature(*(TensorSpec(n, DTYPES[d], ("n", *inner)) for n, d in zip(names, dtypes, strict=True)))
    requests = [
        {n: some_tensor(DTYPES[d], (r, *inner), seed + 10 * i) for n, d in zip(names, dtypes, strict=True)}
        for i, r in enumerate(rows)
    ]
    together, fits = stacked(found, requests)
    for name in names:
        assert bits(together[name]) == joined([request[name].numpy() for request in requests])
    parts = split(together, found, fits)
    for request, part in zip(requests, parts, strict=True):
        assert list(part) == names
        for name in names:
            assert part[name].dtype is request[name].dtype
            assert part[name].shape == request[name].shape == part[name].numpy().shape
            assert bits(part[name]) == bits(request[name])
    count("batches that were stacked and split")


@given(
    dtype=st.sampled_from(sorted(set(DTYPES) - {"BYTES"})),
    rows=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    offset=st.integers(1, 7),
)
def test_memory_may_be_misaligned_and_read_only(dtype: str, rows: list[int], offset: int) -> None:
    """As it is where a tensor lies somewhere in a request's body."""
    kind = DTYPES[dtype]
    found = signature(TensorSpec("x", kind, ("n", 3)))
    whole = [bits(some_tensor(kind, (r, 3), i)) for i, r in enumerate(rows)]
    requests = [
        {"x": Tensor.from_buffer(kind, (r, 3), memoryview(b"\1" * offset + body)[offset:])}
        for r, body in zip(rows, whole, strict=True)
    ]
    assert not requests[0]["x"].numpy().flags.writeable
    together, _ = stacked(found, requests)
    assert bits(together["x"]) == b"".join(whole)


@given(
    dtype=st.sampled_from(("FP32", "INT64", "BOOL", "BF16", "UINT8")),
    lengths=st.lists(st.integers(0, 8), min_size=1, max_size=5),
    value=st.sampled_from((0.0, 1.0)),
)
def test_what_is_padded_has_the_value_behind_it_and_loses_it_again(
    dtype: str, lengths: list[int], value: float
) -> None:
    kind = DTYPES[dtype]
    padding = {"length": Padding((8,), {"x": value})}
    found = signature(TensorSpec("x", kind, ("n", "length", 2)), padding=padding)
    requests = [{"x": some_tensor(kind, (1 + i % 2, n, 2), i)} for i, n in enumerate(lengths)]
    fits = [fit for request in requests if (fit := found.fit(request))]
    shapes = merged_shapes(found, fits, requests[0])
    longest = max(lengths)
    assert shapes == ((longest, 2),)
    buffers = Staging(found, ROOM).take(shapes)
    buffers["x"].view(np.uint8).fill(1)  # what an earlier batch left
    together = stack(requests, buffers, padding_values(padding))
    expected = [
        np.concatenate([x, np.full((x.shape[0], longest - x.shape[1], 2), value, kind.numpy)], axis=1)
        for x in (request["x"].numpy() for request in requests)
    ]
    assert bits(together["x"]) == joined(expected)
    for request, part in zip(requests, split(together, found, fits), strict=True):
        assert part["x"].shape == request["x"].shape
        assert bits(part["x"]) == bits(request["x"])


def test_text_is_padded_with_nothing() -> None:
    padding = {"length": Padding((8,))}
    found = signature(TensorSpec("x", DTYPES["BYTES"], ("n", "length")), padding=padding)
    requests = [{"x": Tensor.from_numpy(np.array([row], dtype=object))} for row in ([b"a", b"bc"], [b"d"])]
    together, fits = stacked(found, requests)
    assert together["x"].numpy().tolist() == [[b"a", b"bc"], [b"d", b""]]
    assert [p["x"].numpy().tolist() for p in split(together, found, fits)] == [[[b"a", b"bc"]], [[b"d"]]]


@pytest.mark.parametrize("shape", [(), (4, 3), (6, 3), (1, 5, 3), (0,)])
def test_an_output_that_does_not_keep_the_first_dimension_is_an_error(shape: tuple[int, ...]) -> None:
    found = signature(TensorSpec("x", DTYPES["FP32"], ("n", 3)))
    fits = [Fit(2, "", ()), Fit(3, "", ())]
    outputs = {"x": Tensor.from_numpy(np.zeros(shape, np.float32))}
    with pytest.raises(BackendError, match=r"output 'x' .* batch of 5.*set batching.max_batch_size to 1"):
        split(outputs, found, fits)


def test_parts_are_views_and_not_copies() -> None:
    found = signature(TensorSpec("x", DTYPES["FP32"], ("n", 3)))
    whole = np.arange(15, dtype=np.float32).reshape(5, 3)
    parts = split({"x": Tensor.from_numpy(whole)}, found, [Fit(2, "", ()), Fit(3, "", ())])
    assert [p["x"].numpy().tolist() for p in parts] == [whole[:2].tolist(), whole[2:].tolist()]
    assert all(np.shares_memory(p["x"].numpy(), whole) for p in parts)


# --- Memory


def test_a_buffer_is_used_again_for_the_same_shapes_and_no_others() -> None:
    staging = Staging(signature(TensorSpec("x", DTYPES["FP32"], ("n", "length"))), 4)
    first = staging.take(((3,),))
    assert first["x"].shape == (4, 3)
    staging.give_back(((3,),), first)
    assert staging.take(((2,),))["x"].shape == (4, 2)
    assert staging.take(((3,),))["x"] is first["x"]
    assert staging.take(((3,),))["x"] is not first["x"], "two owners of one buffer"


def test_buffers_are_kept_up_to_a_size_those_used_last_first() -> None:
    staging = Staging(
        signature(TensorSpec("x", DTYPES["FP32"], ("n", "length"))), 4, max_bytes=2 * 4 * 4 * 10
    )
    ten, nine, eight, huge = (staging.take(((n,),)) for n in (10, 9, 8, 100))
    for length, buffers in ((10, ten), (9, nine), (8, eight), (100, huge)):
        staging.give_back(((length,),), buffers)
    assert staging.take(((8,),))["x"] is eight["x"]
    assert staging.take(((9,),))["x"] is nine["x"]
    assert staging.take(((10,),))["x"] is not ten["x"]
    assert staging.take(((100,),))["x"] is not huge["x"]


def test_clients_cannot_make_it_keep_any_number_of_buffers() -> None:
    """Tensors of no bytes are no exception."""
    staging = Staging(signature(TensorSpec("x", DTYPES["FP32"], ("n", "length", "width"))), 4)
    for width in range(1000):
        shapes = ((0, width),)
        staging.give_back(shapes, staging.take(shapes))
    assert len(staging._kept) <= 100


def test_texts_are_not_kept() -> None:
    staging = Staging(signature(TensorSpec("x", DTYPES["BYTES"], ("n",))), 4)
    buffers = staging.take(((),))
    buffers["x"][:] = b"secret"
    staging.give_back(((),), buffers)
    again = staging.take(((),))
    assert again["x"] is not buffers["x"]
    assert b"secret" not in again["x"].tolist()


@given(
    uses=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=40),
)
def test_no_buffer_has_two_owners_and_the_count_of_bytes_is_right(uses: list[tuple[int, int, bool]]) -> None:
    staging = Staging(signature(TensorSpec("x", DTYPES["INT16"], ("n", "a", "b"))), 4, max_bytes=60)
    owned: list[tuple[Any, Any]] = []
    for a, b, back in uses:
        if back and owned:
            staging.give_back(*owned.pop(0))
        else:
            owned.append((((a, b),), staging.take(((a, b),))))
        arrays = [id(buffers["x"]) for _, buffers in [*owned, *staging._kept]]
        assert len(set(arrays)) == len(arrays)
        kept = sum(2 * 4 * math.prod(shapes[0]) for shapes, _ in staging._kept)
        assert staging._kept_bytes == kept <= 60
