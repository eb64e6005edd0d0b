"""Tensors on the way of a request: element types, specifications, and data without copies."""

from kserve_wasm.tensors.dtypes import DTYPES, DType
from kserve_wasm.tensors.spec import TensorSpec
from kserve_wasm.tensors.tensor import Tensor

__all__ = ["DTYPES", "DType", "Tensor", "TensorSpec"]
