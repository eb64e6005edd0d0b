"""ONNX graphs, run by ONNX Runtime."""

from kserve_wasm.backends.onnx.backend import OnnxBackend

__all__ = ["OnnxBackend"]
