"""ONNX models to ``.wasm`` models, verified before they are written."""

from kserve_wasm.convert.convert import Conversion, convert
from kserve_wasm.convert.errors import ConversionError

__all__ = ["Conversion", "ConversionError", "convert"]
