"""Element types of WASI-NN tensors: three numberings told apart.

A type's number alone does not name it: 3 is ``u8`` today, was ``i32`` until 2023, and is ``bf16`` in WAMR 2.1 to 2.3.
Together with the bytes that an element takes, which the length of the data tells, it does: no pair means two types.
"""

from __future__ import annotations

import math

from kserve_wasm.tensors.dtypes import (
    BF16,
    BOOL,
    BYTES,
    FP16,
    FP32,
    FP64,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    DType,
)

TODAY = (FP16, FP32, FP64, UINT8, INT32, INT64)
"""wasi-nn.witx since August 2023."""
FORMER = (FP16, FP32, UINT8, INT32)
"""wasi-nn.witx until then, and WAMR's module ``wasi_nn``."""
WIT_ORDER = (FP16, FP32, FP64, BF16, UINT8, INT32, INT64)
"""The order of wasi-nn.wit, which WAMR 2.1.2 to 2.3.1 uses in ``wasi_ephemeral_nn``."""

_BY_TAG: tuple[tuple[DType, ...], ...] = tuple(
    tuple(dict.fromkeys(n[tag] for n in (TODAY, FORMER, WIT_ORDER) if tag < len(n)))
    for tag in range(len(WIT_ORDER))
)
_BY_TAG_AND_WIDTH = {(tag, dtype.itemsize): dtype for tag, dtypes in enumerate(_BY_TAG) for dtype in dtypes}

CARRIERS: dict[DType, frozenset[DType]] = {
    BOOL: frozenset({UINT8}),
    INT8: frozenset({UINT8}),
    INT16: frozenset({FP16, BF16}),
    UINT16: frozenset({FP16, BF16}),
    BF16: frozenset(),
    UINT32: frozenset({INT32}),
    UINT64: frozenset({INT64}),
    BYTES: frozenset({UINT8}),
}
"""For each type that WASI-NN cannot name (BF16: not in every dialect), those that its bits may be sent as."""

MAX_DIMS = 64
"""NumPy's own maximum."""


def fits(tag: int, elements: int, nbytes: int, wanted: DType) -> bool:
    """Whether data can be taken as elements of type ``wanted``.

    It can if number and width name ``wanted``; or if WASI-NN has no number for ``wanted`` and the guest sent its bits
    under another name: one of :data:`CARRIERS`, or ``u8`` with as many bytes as the elements need. Empty data fits
    every type that the number may mean.

    Args:
        tag: the number of the type.
        elements: the product of the dimensions.
        nbytes: the length of the data.
        wanted: the type of the graph's input, of fixed size.
    """
    if nbytes != elements * wanted.itemsize:
        return False
    if elements == 0:
        return may_mean(tag, wanted)
    named = _BY_TAG_AND_WIDTH.get((tag, wanted.itemsize))
    if named is wanted:
        return True
    carriers = CARRIERS.get(wanted)
    return carriers is not None and (named in carriers or (named is None and UINT8 in _meanings(tag)))


def may_mean(tag: int, wanted: DType) -> bool:
    """Whether ``tag`` stands for ``wanted``, or for a carrier of it, in any numbering."""
    meanings = _meanings(tag)
    return wanted in meanings or not CARRIERS.get(wanted, frozenset()).isdisjoint(meanings)


def _meanings(tag: int) -> tuple[DType, ...]:
    return _BY_TAG[tag] if tag < len(_BY_TAG) else ()


def describe(tag: int, elements: int, nbytes: int) -> str:
    """What came, for a message."""
    named = _BY_TAG_AND_WIDTH.get((tag, nbytes // elements)) if elements and nbytes % elements == 0 else None
    return f"{named or f'type number {tag}'}, {elements} elements in {nbytes} bytes"


def fits_an_array(dims: tuple[int, ...]) -> bool:
    """Whether an array can have these dimensions: NumPy multiplies all but the empty ones, at up to 8 bytes each."""
    return len(dims) <= MAX_DIMS and (math.prod(dims) or math.prod(d or 1 for d in dims)) < 1 << 60
