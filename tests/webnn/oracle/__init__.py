"""WebNN's operators in NumPy, written from the specification's text: the oracle that our lowering is compared with.

A function has the operator's name; operands are arrays, attributes are keywords with the specification's names and
defaults. Floating-point results are computed in float64 and rounded once to the type that the specification gives
them; integer arithmetic wraps; comparisons give uint8.

Source: https://www.w3.org/TR/webnn/ (Candidate Recommendation), sections "MLGraphBuilder interface".
"""

from inspect import isfunction

from tests.webnn.oracle import (
    activations,
    detection,
    elementwise,
    indexing,
    linear_algebra,
    movement,
    normalization,
    quantization,
    recurrent,
    reductions,
    windows,
)

OPERATORS = {
    name: function
    for module in (
        *(activations, detection, elementwise, indexing, linear_algebra, movement, normalization),
        *(quantization, recurrent, reductions, windows),
    )
    for name, function in vars(module).items()
    if isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
}
"""Every operator by its name."""
