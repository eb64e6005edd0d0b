"""Backends, found by the name of their graphs' encoding and imported when a graph first needs them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from kserve_wasm.backends.base import Backend, Device, Graph, GraphSource
from kserve_wasm.errors import ModelLoadError

__all__ = ["Backend", "Device", "Graph", "GraphSource", "known_encodings", "open_graph"]

ENTRY_POINTS = "kserve_wasm.backends"
_BUILT_IN = {
    "onnx": "kserve_wasm.backends.onnx:OnnxBackend",
    "pytorch": "kserve_wasm.backends.torch:PyTorchBackend",
}
_EXTRAS = {"pytorch": "the extra 'torch' of kserve-wasm"}
"""What brings the framework of a built-in backend, where the package itself does not."""


def known_encodings() -> list[str]:
    """The encodings that :func:`open_graph` has a backend for, sorted."""
    return sorted({*_BUILT_IN, *entry_points(group=ENTRY_POINTS).names})


def open_graph(source: GraphSource, device: Device) -> Graph:
    """Opens ``source`` with the backend of its encoding: a built-in one, or a package's own by entry point.

    Raises:
        ModelLoadError: no backend knows the encoding, its framework is not installed, or an option is wrong.
        DeviceUnavailable, BackendError: see :class:`~kserve_wasm.backends.base.Backend`.
    """
    return _backend(source).open(source, device)


def _backend(source: GraphSource) -> Backend:
    try:
        if source.encoding in _BUILT_IN:
            module, _, name = _BUILT_IN[source.encoding].partition(":")
            factory = getattr(import_module(module), name)
        else:
            found = entry_points(group=ENTRY_POINTS, name=source.encoding)
            if not found:
                raise ModelLoadError(
                    f"graph '{source.name}' is encoded as '{source.encoding}', for which there is no backend; "
                    f"known encodings: {', '.join(known_encodings())}"
                )
            factory = next(iter(found)).load()
    except ImportError as error:
        raise ModelLoadError(
            f"the backend for '{source.encoding}' cannot be imported ({error}); install "
            f"{_EXTRAS.get(source.encoding, 'its framework')}"
        ) from error
    return cast(Backend, factory())
