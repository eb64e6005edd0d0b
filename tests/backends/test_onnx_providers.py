"""What execution providers are asked for and started with; they themselves need a GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from kserve_wasm.backends.onnx.backend import wanted_providers
from kserve_wasm.backends.onnx.options import CPU, CUDA, TENSORRT, parse
from kserve_wasm.backends.onnx.providers import provider_options
from kserve_wasm.errors import DeviceUnavailable, ModelLoadError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSERVE_WASM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def build_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)


def started(options: dict[str, Any], provider: str = CUDA, model: bytes = b"m") -> dict[str, str]:
    return provider_options(parse(options), provider, model, None)


@pytest.mark.usefixtures("build_with_everything")
def test_tensorrt_comes_before_cuda_on_a_gpu_alone() -> None:
    assert wanted_providers(parse({}), "gpu") == [CUDA, CPU]
    assert wanted_providers(parse({"tensorrt": True}), "gpu") == [TENSORRT, CUDA, CPU]
    assert wanted_providers(parse({"tensorrt": True}), "cpu") == [CPU]
    listed = parse({"tensorrt": True, "providers": [CUDA, TENSORRT, CPU]})
    assert wanted_providers(listed, "gpu") == [CUDA, TENSORRT, CPU]


@pytest.mark.usefixtures("build_with_everything")
@pytest.mark.parametrize("options", [{"tensorrt": True}, {"providers": [TENSORRT, CUDA, CPU]}])
def test_tensorrt_captures_no_graphs(options: dict[str, Any]) -> None:
    with pytest.raises(ModelLoadError, match=r"'tensorrt' and 'cuda_graphs' .* exclude each other"):
        wanted_providers(parse({**options, "cuda_graphs": True}), "gpu")
    assert wanted_providers(parse({"tensorrt": True, "cuda_graphs": True}), "cpu") == [CPU]


def test_what_this_build_lacks_is_refused_or_left_out() -> None:
    if TENSORRT in ort.get_available_providers():
        pytest.skip("this build of ONNX Runtime has TensorRT")
    with pytest.raises(DeviceUnavailable, match=f"no {TENSORRT}"):
        wanted_providers(parse({"tensorrt": True}), "gpu")
    assert wanted_providers(parse({"tensorrt": True, "fallback": True}), "gpu")[-1] == CPU


def test_options_go_to_their_provider_as_text() -> None:
    options = {
        "device_id": 3,
        "cuda_graphs": True,
        "provider_options": {
            CUDA: {"gpu_mem_limit": 1 << 32, "use_tf32": False},
            TENSORRT: {"trt_fp16_enable": True},
        },
    }
    assert started(options) == {
        "gpu_mem_limit": "4294967296",
        "use_tf32": "0",
        "enable_cuda_graph": "1",
        "device_id": "3",
    }
    assert started(options, TENSORRT) == {
        "trt_fp16_enable": "1",
        "device_id": "3",
    }
    assert started(options, CPU) == {}
    assert started({}) == {"device_id": "0"}


def test_engines_are_kept_apart_for_each_graph_with_its_weights(cache: Path, tmp_path: Path) -> None:
    options = parse({"provider_options": {TENSORRT: {"trt_engine_cache_enable": True}}})
    weights = tmp_path / "weights"
    folders = []
    for content in (b"1", b"22"):
        weights.write_bytes(content)
        for model in (b"a", b"b"):
            found = provider_options(options, TENSORRT, model, weights)
            assert found["trt_engine_cache_path"] == found["trt_timing_cache_path"]
            folders.append(Path(found["trt_engine_cache_path"]))
            assert provider_options(options, TENSORRT, model, weights) == found
    assert len(set(folders)) == 4
    for folder in folders:
        assert folder.parent == cache / "tensorrt"
        assert not folder.stat().st_mode & 0o077


def test_no_folder_is_made_where_nothing_is_cached(cache: Path) -> None:
    for value in (False, 0, "0"):
        options = {"provider_options": {TENSORRT: {"trt_engine_cache_enable": value}}}
        assert "trt_engine_cache_path" not in started(options, TENSORRT)
    assert not cache.exists()


def test_a_folder_that_others_may_write_to_is_refused(cache: Path) -> None:
    options = {"provider_options": {TENSORRT: {"trt_timing_cache_enable": True}}}
    folder = started(options, TENSORRT)["trt_timing_cache_path"]
    os.chmod(folder, 0o777)
    with pytest.raises(ModelLoadError, match="belong to this user and be writable by nobody else") as caught:
        started(options, TENSORRT)
    assert str(cache) not in str(caught.value)
