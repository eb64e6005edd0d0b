"""What can go wrong in a conversion."""

from __future__ import annotations

from kserve_wasm.errors import WasmServingError


class ConversionError(WasmServingError):
    """The model cannot be converted, or the converted model does not answer as the original does."""
