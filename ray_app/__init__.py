"""The scale-out engine: all that imports ray. kserve_wasm works without it."""
