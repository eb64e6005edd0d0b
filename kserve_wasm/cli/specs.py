"""Tensors on the command line: ``name:DTYPE:shape`` and ``name=shape``."""

from __future__ import annotations

import argparse

from kserve_wasm.tensors import DTYPES, TensorSpec


def tensor_spec(text: str) -> TensorSpec:
    """Reads ``name:FP32:batch,3,-1``; names may hold colons. Nothing after the last colon is a scalar."""
    parts = text.rsplit(":", 2)
    if len(parts) != 3 or not parts[0]:
        raise argparse.ArgumentTypeError(
            f"expected NAME:DTYPE:SHAPE such as image:UINT8:-1,224,224,3; got '{text}'"
        )
    name, dtype, shape = parts
    if dtype not in DTYPES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(DTYPES)} in '{text}', got '{dtype}'")
    return TensorSpec(name, DTYPES[dtype], tuple(_dimension(d, text) for d in shape.split(",") if shape))


def named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Reads ``name=1,3,224,224``; ``name=`` is a scalar."""
    name, equals, shape = text.rpartition("=")
    try:
        sizes = tuple(int(d) for d in shape.split(",") if shape)
    except ValueError:
        sizes = (-1,)
    if not equals or any(size < 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"expected NAME=SIZE,SIZE,… such as image=1,3,224,224; got '{text}'")
    return name, sizes


def _dimension(text: str, whole: str) -> int | str | None:
    text = text.strip()
    if text == "-1":
        return None
    if text.isdecimal():
        return int(text)
    if not text.isidentifier():
        raise argparse.ArgumentTypeError(
            f"expected sizes, -1 or names as dimensions in '{whole}', got '{text}'"
        )
    return text
