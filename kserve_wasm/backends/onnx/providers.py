"""What ONNX Runtime's execution providers are started with.

Source: ONNX Runtime, "CUDA Execution Provider" and "TensorRT Execution Provider", "Configuration Options".
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from kserve_wasm.backends.onnx.options import CUDA, TENSORRT, OnnxOptions
from kserve_wasm.errors import ModelLoadError

_CACHES = ("trt_engine_cache_enable", "trt_timing_cache_enable")


def provider_options(
    options: OnnxOptions, provider: str, model: bytes, weights: Path | None
) -> dict[str, str]:
    """What ``provider`` is started with.

    Args:
        options: of the graph.
        provider: ONNX Runtime's name.
        model: the graph,
        weights: and the file that its weights are in: TensorRT's caches do not tell graphs apart by them.

    Raises:
        ModelLoadError: there is no safe place for what TensorRT keeps.
    """
    given = options.provider_options.get(provider, {})
    if provider == CUDA:
        captured = {"enable_cuda_graph": "1"} if options.cuda_graphs else {}
        return {**given, **captured, "device_id": str(options.device_id)}
    if provider == TENSORRT:
        folder = _folder(model, weights) if any(given.get(name, "0") not in _OFF for name in _CACHES) else {}
        return {**given, **folder, "device_id": str(options.device_id)}
    return dict(given)


_OFF = ("0", "False", "false")


def _folder(model: bytes, weights: Path | None) -> dict[str, str]:
    """TensorRT's caches hold code: only this user is to write there."""
    root = Path(os.environ.get("KSERVE_WASM_CACHE_DIR") or Path.home() / ".cache" / "kserve_wasm")
    identity = hashlib.sha256(model)
    try:
        if weights is not None:
            file = weights.stat()
            identity.update(f"{weights} {file.st_size} {file.st_mtime_ns}".encode())
        folder = root / "tensorrt" / identity.hexdigest()[:32]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise ModelLoadError(f"TensorRT's cache cannot be made: {error.strerror}") from error
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ModelLoadError(
            "TensorRT's cache must belong to this user and be writable by nobody else (chmod 700), or leave its "
            "options out"
        )
    return {"trt_engine_cache_path": str(folder), "trt_timing_cache_path": str(folder)}
