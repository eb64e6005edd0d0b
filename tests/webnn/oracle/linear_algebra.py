"""Matrix products and convolutions."""

# ruff: noqa: A002, N802, N803, N806  # the specification's names

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.webnn.oracle.precision import Array, arranged, in_double


@in_double
def matmul(a: Array, b: Array) -> Array:
    return a @ b


@in_double
def gemm(
    a: Array,
    b: Array,
    *,
    c: Array | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    aTranspose: bool = False,
    bTranspose: bool = False,
) -> Array:
    product = alpha * ((a.T if aTranspose else a) @ (b.T if bTranspose else b))
    return product if c is None else product + beta * c


@in_double
def conv2d(
    input: Array,
    filter: Array,
    *,
    bias: Array | None = None,
    padding: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    groups: int = 1,
    inputLayout: str = "nchw",
    filterLayout: str = "oihw",
) -> Array:
    """The convolution (no kernel is mirrored): padding is [top, bottom, left, right]."""
    x = arranged(input, inputLayout, "nchw")
    w = arranged(filter, filterLayout, "oihw")
    x = np.pad(x, [(0, 0), (0, 0), tuple(padding[:2]), tuple(padding[2:])])
    taps_h, taps_w = (
        np.arange(size) * dilation for size, dilation in zip(w.shape[2:], dilations, strict=True)
    )
    rows = np.arange(0, x.shape[2] - taps_h[-1], strides[0])
    columns = np.arange(0, x.shape[3] - taps_w[-1], strides[1])
    # [n, c, output row, output column, kernel row, kernel column]
    windows = x[
        :, :, (rows[:, None] + taps_h)[:, None, :, None], (columns[:, None] + taps_w)[None, :, None, :]
    ]
    results = [
        np.einsum("nchwij,ocij->nohw", part, kernels)
        for part, kernels in zip(np.split(windows, groups, 1), np.split(w, groups, 0), strict=True)
    ]
    result = np.concatenate(results, 1)
    if bias is not None:
        result = result + bias[:, None, None]
    return arranged(result, "nchw", inputLayout)


@in_double
def convTranspose2d(
    input: Array,
    filter: Array,
    *,
    bias: Array | None = None,
    padding: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    outputPadding: Sequence[int] = (0, 0),
    outputSizes: Sequence[int] | None = None,
    groups: int = 1,
    inputLayout: str = "nchw",
    filterLayout: str = "iohw",
) -> Array:
    """Each element of the input adds the filter, scaled by it, to the output at its place times the stride."""
    x = arranged(input, inputLayout, "nchw")
    w = arranged(filter, filterLayout, "iohw")
    if outputSizes is None:
        outputSizes = [
            (x.shape[2 + n] - 1) * strides[n]
            + (w.shape[2 + n] - 1) * dilations[n]
            + 1
            - sum(padding[2 * n : 2 * n + 2])
            + outputPadding[n]
            for n in range(2)
        ]
    batches, channels, height, width = x.shape
    result = np.zeros((batches, w.shape[1] * groups, *outputSizes))
    for channel in range(channels):
        group = channel // (channels // groups)
        outputs = slice(group * w.shape[1], (group + 1) * w.shape[1])
        for i, j, k, m in np.ndindex(height, width, *w.shape[2:]):
            row = i * strides[0] + k * dilations[0] - padding[0]
            column = j * strides[1] + m * dilations[1] - padding[2]
            if 0 <= row < outputSizes[0] and 0 <= column < outputSizes[1]:
                result[:, outputs, row, column] += x[:, channel, i, j, None] * w[channel, :, k, m]
    if bias is not None:
        result = result + bias[:, None, None]
    return arranged(result, "nchw", inputLayout)
