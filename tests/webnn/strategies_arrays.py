"""Uses of operators that move, gather, scatter, reduce and sum elements."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from tests.webnn.strategies import (
    ALL,
    FLOATS,
    INDICES,
    WIDE,
    Draw,
    bits,
    blocked,
    elements,
    narrower,
    numbers,
    options,
    shapes,
    sizes,
    sometimes,
    subsets,
)
from tests.webnn.uses import Use

dtypes = st.sampled_from(ALL)


# --- Moving


@st.composite
def reshape(draw: Draw) -> Use:
    shape = draw(shapes())
    count = math.prod(shape)
    dims: list[int] = []
    for _ in range(draw(st.integers(0, 3))):
        dims.append(draw(st.sampled_from([n for n in range(1, count + 1) if count % n == 0])))
        count //= dims[-1]
    if count > 1 or draw(st.booleans()):
        dims.append(count)
    return Use("reshape", (draw(bits(draw(dtypes), shape)), tuple(dims)))


@st.composite
def transpose(draw: Draw) -> Use:
    shape = draw(shapes())
    permutation = draw(sometimes(st.permutations(range(len(shape)))))
    return Use("transpose", (draw(bits(draw(dtypes), shape)),), options(permutation=permutation))


@st.composite
def concat(draw: Draw) -> Use:
    shape, dtype = draw(shapes(least=1)), draw(dtypes)
    axis = draw(st.integers(0, len(shape) - 1))
    parts = [
        draw(bits(dtype, (*shape[:axis], size, *shape[axis + 1 :])))
        for size in draw(st.lists(sizes, min_size=1, max_size=4))
    ]
    return Use("concat", (tuple(parts), axis))


@st.composite
def split(draw: Draw) -> Use:
    shape = draw(shapes(least=1))
    axis = draw(st.integers(0, len(shape) - 1))
    parts = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    size = sum(parts)
    equal = draw(st.booleans())
    splits = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0])) if equal else parts
    array = draw(bits(draw(dtypes), (*shape[:axis], size, *shape[axis + 1 :])))
    return Use("split", (array, splits), {} if axis == 0 and draw(st.booleans()) else {"axis": axis})


@st.composite
def slices(draw: Draw) -> Use:
    shape = draw(shapes())
    starts = tuple(draw(st.integers(0, dim - 1)) for dim in shape)
    lengths = tuple(draw(st.integers(1, dim - start)) for dim, start in zip(shape, starts, strict=True))
    strides = tuple(draw(st.integers(1, 3)) for _ in shape) if draw(st.booleans()) else None
    return Use("slice", (draw(bits(draw(dtypes), shape)), starts, lengths), options(strides=strides))


@st.composite
def pad(draw: Draw) -> Use:
    shape, dtype = draw(shapes(least=1, most=3)), draw(dtypes)
    mode = draw(sometimes(st.sampled_from(["constant", "edge", "reflection"])))
    before, after = (
        tuple(draw(st.integers(0, dim - 1 if mode == "reflection" else 3)) for dim in shape) for _ in range(2)
    )
    value = None
    if mode in (None, "constant") and draw(st.booleans()):
        limits = (-2.5, 2.5) if dtype in FLOATS else (0 if dtype.startswith("u") else -100, 100)
        value = draw(st.floats(*limits, width=16) if dtype in FLOATS else st.integers(*limits))
    return Use("pad", (draw(bits(dtype, shape)), before, after), options(mode=mode, value=value))


@st.composite
def reverse(draw: Draw) -> Use:
    shape = draw(shapes())
    return Use(
        "reverse", (draw(bits(draw(dtypes), shape)),), options(axes=draw(sometimes(subsets(len(shape)))))
    )


@st.composite
def tile(draw: Draw) -> Use:
    shape = draw(shapes(most=3))
    return Use("tile", (draw(bits(draw(dtypes), shape)), tuple(draw(st.integers(1, 3)) for _ in shape)))


@st.composite
def expand(draw: Draw) -> Use:
    shape = draw(shapes())
    return Use("expand", (draw(bits(draw(dtypes), draw(narrower(shape)))), shape))


@st.composite
def triangular(draw: Draw) -> Use:
    shape = draw(shapes(least=2))
    given = options(upper=draw(sometimes(st.booleans())), diagonal=draw(sometimes(st.integers(-6, 6))))
    return Use("triangular", (draw(bits(draw(dtypes), shape)),), given)


# --- Gathering and scattering


@st.composite
def indices(draw: Draw, dtype: str, shape: tuple[int, ...], size: int) -> np.ndarray:
    """Positions along a dimension of ``size``; signed ones count from the end too."""
    low = 0 if dtype == "uint32" else -size
    return draw(elements(dtype, shape, low, size - 1))


@st.composite
def gather(draw: Draw) -> Use:
    shape, index_shape = draw(shapes(least=1, most=3)), draw(shapes(most=3))
    axis = draw(st.integers(0, len(shape) - 1))
    places = draw(indices(draw(st.sampled_from(INDICES)), index_shape, shape[axis]))
    array = draw(bits(draw(dtypes), shape))
    return Use("gather", (array, places), {} if axis == 0 and draw(st.booleans()) else {"axis": axis})


@st.composite
def gather_elements(draw: Draw) -> Use:
    shape = draw(shapes(least=1))
    axis = draw(st.integers(0, len(shape) - 1))
    index_shape = (*shape[:axis], draw(sizes), *shape[axis + 1 :])
    places = draw(indices(draw(st.sampled_from(INDICES)), index_shape, shape[axis]))
    return Use("gatherElements", (draw(bits(draw(dtypes), shape)), places), {"axis": axis})


@st.composite
def coordinates(draw: Draw, shape: tuple[int, ...], unique: bool) -> np.ndarray:
    """Indices of the first dimensions of ``shape``, [..., coordinate]."""
    depth = draw(st.integers(1, len(shape)))
    count = math.prod(shape[:depth])
    leading = draw(shapes(most=2))
    assume(not unique or math.prod(leading) <= count)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    flat = rng.choice(count, math.prod(leading), replace=not unique)
    places = np.stack(np.unravel_index(flat, shape[:depth]), -1).reshape((*leading, depth))
    dtype = draw(st.sampled_from(INDICES))
    if dtype != "uint32":
        places = places - np.asarray(shape[:depth]) * rng.integers(0, 2, places.shape)
    return places.astype(dtype)


@st.composite
def gather_nd(draw: Draw) -> Use:
    shape = draw(shapes(least=1))
    return Use("gatherND", (draw(bits(draw(dtypes), shape)), draw(coordinates(shape, unique=False))))


@st.composite
def scatter_elements(draw: Draw) -> Use:
    """Each position is written once: of several writes, the specification does not say which one stays."""
    shape, dtype = draw(shapes(least=1)), draw(dtypes)
    axis = draw(st.integers(0, len(shape) - 1))
    length = draw(st.integers(1, shape[axis]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    order = np.argsort(rng.random(shape), axis)
    places = np.take(order, range(length), axis)
    index_type = draw(st.sampled_from(INDICES))
    if index_type != "uint32":
        places = places - shape[axis] * rng.integers(0, 2, places.shape)
    updates = draw(bits(dtype, places.shape))
    return Use(
        "scatterElements", (draw(bits(dtype, shape)), places.astype(index_type), updates), {"axis": axis}
    )


@st.composite
def scatter_nd(draw: Draw) -> Use:
    """Each position is written once: of several writes, the specification does not say which one stays."""
    shape, dtype = draw(shapes(least=1)), draw(dtypes)
    places = draw(coordinates(shape, unique=True))
    updates = draw(bits(dtype, (*places.shape[:-1], *shape[places.shape[-1] :])))
    return Use("scatterND", (draw(bits(dtype, shape)), places, updates))


# --- Reducing


@st.composite
def reduction(
    draw: Draw, name: str, dtypes: tuple[str, ...] = FLOATS, low: float = -8.0, high: float = 8.0
) -> Use:
    """Any axes, all, or none."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(shapes())
    array = draw(elements(dtype, shape, low, high) if dtype in FLOATS else numbers(dtype, shape))
    given = options(axes=draw(sometimes(subsets(len(shape)))), keepDimensions=draw(sometimes(st.booleans())))
    return Use(name, (array,), given)


@st.composite
def extreme(draw: Draw, name: str) -> Use:
    """Where the extreme is; equal elements occur."""
    shape, dtype = draw(shapes(least=1)), draw(dtypes)
    given = options(
        keepDimensions=draw(sometimes(st.booleans())),
        outputDataType=draw(sometimes(st.sampled_from(["int32", "int64"]))),
    )
    array = np.rint(draw(elements(dtype, shape, -3, 3))).astype(dtype)
    return Use(name, (array, draw(st.integers(0, len(shape) - 1))), given)


@st.composite
def cumulative_sum(draw: Draw) -> Use:
    shape = draw(shapes(least=1))
    given = options(exclusive=draw(sometimes(st.booleans())), reversed=draw(sometimes(st.booleans())))
    array = draw(numbers(draw(st.sampled_from(WIDE)), shape))
    return Use("cumulativeSum", (array, draw(st.integers(0, len(shape) - 1))), given)


# --- Quantizing

QUANTIZED = ("uint8", "int8", "uint32", "int32")


@st.composite
def dequantize(draw: Draw) -> Use:
    shape, dtype, real = draw(shapes()), draw(st.sampled_from(QUANTIZED)), draw(st.sampled_from(FLOATS))
    block = draw(blocked(shape))
    # What float16 can hold.
    return Use(
        "dequantizeLinear",
        (
            draw(elements(dtype, shape, -200, 200)),
            draw(elements(real, block, 0.01, 2)),
            draw(elements(dtype, block, -50, 50)),
        ),
    )


@st.composite
def quantize(draw: Draw) -> Use:
    """Quotients that lie well within what is rounded to one integer, and exact ties where scales are powers of two."""
    shape, dtype, real = draw(shapes()), draw(st.sampled_from(QUANTIZED)), draw(st.sampled_from(FLOATS))
    block = draw(blocked(shape))
    whole = np.rint(draw(elements("float32", shape, -300, 300)))
    zero_point = draw(elements(dtype, block, -50, 50))
    if draw(st.booleans()):
        scale = 2.0 ** np.rint(draw(elements("float32", block, -3, 3)))
        quotient = whole + draw(st.sampled_from([0.5, 0.0]))
    else:
        scale = draw(elements("float32", block, 0.1, 2)).astype(real)
        quotient = whole + draw(elements("float32", shape, -0.3, 0.3))
    spread = scale
    for axis, size in enumerate(shape):
        spread = np.repeat(spread, size // block[axis], axis)
    return Use("quantizeLinear", ((quotient * spread).astype(real), scale.astype(real), zero_point))


USES: dict[str, st.SearchStrategy[Use]] = {
    "reshape": reshape(),
    "transpose": transpose(),
    "concat": concat(),
    "split": split(),
    "slice": slices(),
    "pad": pad(),
    "reverse": reverse(),
    "tile": tile(),
    "expand": expand(),
    "triangular": triangular(),
    "gather": gather(),
    "gatherElements": gather_elements(),
    "gatherND": gather_nd(),
    "scatterElements": scatter_elements(),
    "scatterND": scatter_nd(),
    **{name: reduction(name, WIDE) for name in ("reduceL1", "reduceSum", "reduceSumSquare")},
    **{name: reduction(name, ALL) for name in ("reduceMax", "reduceMin")},
    **{name: reduction(name) for name in ("reduceL2", "reduceLogSumExp", "reduceMean")},
    "reduceLogSum": reduction("reduceLogSum", low=0.1),
    "reduceProduct": reduction("reduceProduct", WIDE, -1.5, 1.5),
    "argMin": extreme("argMin"),
    "argMax": extreme("argMax"),
    "cumulativeSum": cumulative_sum(),
    "dequantizeLinear": dequantize(),
    "quantizeLinear": quantize(),
}
"""A strategy for each operator."""
