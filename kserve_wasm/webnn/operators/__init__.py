"""WebNN's operators, by families. Importing this registers them all."""

from kserve_wasm.webnn.operators import (
    activation,
    convolution,
    elementwise,
    indexing,
    linear,
    movement,
    normalization,
    own,
    pooling,
    quantization,
    recurrent,
    reductions,
    resampling,
    scanning,
)

__all__ = [
    "activation",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "movement",
    "normalization",
    "own",
    "pooling",
    "quantization",
    "recurrent",
    "reductions",
    "resampling",
    "scanning",
]
