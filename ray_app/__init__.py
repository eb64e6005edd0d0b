"""The scale-out engine: all that imports ray. kserve_wasm works without it."""

from typing import Any


def __getattr__(name: str) -> Any:
    """``ray_app:app``, made when it is asked for: the other modules do not need it, nor Ray Serve for that."""
    if name == "app":
        from ray_app.application import app

        return app
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
