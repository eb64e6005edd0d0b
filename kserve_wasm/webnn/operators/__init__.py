"""WebNN's operators, by families. Importing this registers them all."""

from kserve_wasm.webnn.operators import elementwise

__all__ = ["elementwise"]
