"""The scale-out engine: all that imports ray. kserve_wasm works without it."""

from ray_app.application import app

__all__ = ["app"]
