"""What convolutions and pooling share: windows that move over the height and the width of a 4-D operand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kserve_wasm.webnn.operand import Dim, Operand, Scope
from kserve_wasm.webnn.operator import Arguments, Param

if TYPE_CHECKING:
    from kserve_wasm.webnn.emit import Emitter, Value

INPUT_LAYOUTS = ("nchw", "nhwc")
"""By the number that a guest gives (``MLInputOperandLayout``)."""

PADDING = Param("padding", "u32[]", in_options=True, length=4, default=(0, 0, 0, 0))
STRIDES = Param("strides", "u32[]", in_options=True, length=2, default=(1, 1))
DILATIONS = Param("dilations", "u32[]", in_options=True, length=2, default=(1, 1))


@dataclass(frozen=True, slots=True)
class Axis:
    """How a window moves along the height or the width. Sizes may be open, the numbers are the guest's.

    Attributes:
        name: ``height`` or ``width``.
        size: of the input.
        window: elements that the window takes.
        before, after: padding.
        stride: from one window to the next.
        dilation: from one element that the window takes to the next.
    """

    name: str
    size: Dim
    window: Dim
    before: int
    after: int
    stride: int
    dilation: int

    @property
    def reach(self) -> int:
        """From the window's first element to its last, with both; the window has a size."""
        return (self.window - 1) * self.dilation + 1

    def count(self, a: Arguments, scope: Scope, *, up: bool = False) -> Dim:
        """How many windows there are; the last one may reach out with ``up``."""
        if self.size >= 0 and self.window >= 0:
            free = self.size + self.before + self.after - self.reach
            if free < 0:
                a.fail(
                    f"the window reaches over {self.reach} elements of the {self.name}, and there are "
                    f"{self.size + self.before + self.after} with padding"
                )
            return (-(-free // self.stride) if up else free // self.stride) + 1
        reach = self.reach if self.window >= 0 else 1
        grown = self.before + self.after - reach + 1
        if self.window >= 0 and self.stride == 1 and grown == 0:
            return self.size
        most = scope.bounds.get(self.size, self.size)
        return scope.open(max(most + grown, 1) if most >= 0 else None)


def axes(a: Arguments, sizes: Sequence[Dim], windows: Sequence[Dim]) -> tuple[Axis, Axis]:
    """Height and width by the attributes padding, strides and dilations, which are checked."""
    for name in ("strides", "dilations"):
        if 0 in getattr(a, name):
            a.fail(f"{name} must be at least 1, got {list(getattr(a, name))}")
    height, width = (
        Axis(name, sizes[n], windows[n], a.padding[2 * n], a.padding[2 * n + 1], a.strides[n], a.dilations[n])
        for n, name in enumerate(("height", "width"))
    )
    return height, width


def pads(axes: tuple[Axis, Axis]) -> list[int]:
    """The padding as ONNX has it: first what is before, then what is after."""
    return [axis.before for axis in axes] + [axis.after for axis in axes]


# --- Layouts


def layout(a: Arguments, name: str, layouts: Sequence[str]) -> str:
    """The layout that the attribute's number stands for."""
    number: int = getattr(a, name)
    if number >= len(layouts):
        known = ", ".join(f"{n} {text}" for n, text in enumerate(layouts))
        a.fail(f"{name} must be one of {known}; got {number}")
    return layouts[number]


def arranged(shape: Sequence[Dim], given: str, wanted: str) -> tuple[Dim, ...]:
    """A shape whose dimensions are the letters of ``given``, in the order of ``wanted``."""
    return tuple(shape[given.index(letter)] for letter in wanted)


def transposed(e: Emitter, value: Value, given: str, wanted: str) -> Value:
    """A value whose dimensions are the letters of ``given``, in the order of ``wanted``."""
    if given == wanted:
        return value
    order = [given.index(letter) for letter in wanted]
    if value.array is not None:
        return e.constant(np.transpose(value.array, order))
    result = Operand(value.dtype, arranged(value.shape, given, wanted))
    return e.node("Transpose", value, result=result, perm=order)
