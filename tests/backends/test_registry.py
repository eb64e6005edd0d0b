from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kserve_wasm.backends import GraphSource, known_encodings, open_graph
from kserve_wasm.errors import ModelLoadError


def test_an_unknown_encoding_names_the_known_ones() -> None:
    with pytest.raises(ModelLoadError, match=r"graph 'g' is encoded as 'nope', .*known encodings: .*onnx"):
        open_graph(GraphSource("g", "nope", data=b""), "cpu")
    assert "onnx" in known_encodings()


def test_importing_the_backends_imports_no_framework() -> None:
    code = "import sys, kserve_wasm.backends, kserve_wasm.batching; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert "kserve_wasm" in imported
    assert not imported & {"onnx", "onnxruntime", "torch", "openvino", "kserve", "ray"}


def test_opening_an_onnx_graph_does_not_import_onnx() -> None:
    """It takes longer than everything else about opening one."""
    code = """
import sys
from kserve_wasm.backends import GraphSource, open_graph
try:
    open_graph(GraphSource("g", "onnx", data=b"location"), "cpu")
except Exception as error:
    print(type(error).__name__)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("BackendError")
    assert "onnxruntime" in done.stdout.split()
    assert "onnx" not in done.stdout.split()


def package(folder: Path, encoding: str, module: str) -> None:
    """A distribution with one entry point, as an installed third-party backend has."""
    info = folder / f"{encoding}_backend-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {encoding}-backend\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[kserve_wasm.backends]\n{encoding} = {module}:Backend\n")


def test_a_package_can_bring_a_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "custom", "custom_backend_for_test")
    (tmp_path / "custom_backend_for_test.py").write_text(
        "class Backend:\n    def open(self, source, device):\n        return (source.name, device)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert open_graph(GraphSource("g", "custom", data=b""), "gpu") == ("g", "gpu")
    assert {"custom", "onnx"} <= set(known_encodings())


def test_a_backend_whose_framework_is_missing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "lacking", "lacking_backend_for_test")
    (tmp_path / "lacking_backend_for_test.py").write_text("import a_framework_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ModelLoadError, match=r"'lacking' cannot be imported .*a_framework_that_is_not_there.*install"
    ):
        open_graph(GraphSource("g", "lacking", data=b""), "cpu")


def test_a_host_without_pytorch_says_what_to_install() -> None:
    code = """
import sys
sys.modules["torch"] = None
from kserve_wasm.backends import GraphSource, known_encodings, open_graph
assert "pytorch" in known_encodings()
try:
    open_graph(GraphSource("g", "pytorch", data=b""), "cpu")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ModelLoadError the backend for 'pytorch' cannot be imported")
    assert done.stdout.endswith("install the extra 'torch' of kserve-wasm\n")
