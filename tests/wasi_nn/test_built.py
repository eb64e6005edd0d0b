"""Graphs that guests have built, when their model is closed."""

from __future__ import annotations

import pytest

from kserve_wasm.batching import GraphScheduler
from kserve_wasm.errors import ModelNotReady
from kserve_wasm.tensors.dtypes import FP32
from kserve_wasm.wasi_nn.built import BuiltGraphs
from kserve_wasm.webnn import Builder, Program


def test_a_closed_model_opens_no_graph_that_a_request_builds_late() -> None:
    opened: list[Program] = []

    def open_program(program: Program) -> GraphScheduler:
        opened.append(program)
        raise AssertionError

    built = BuiltGraphs(open_program)
    b = Builder(1 << 20, built.recordings)
    program = b.build([("y", b.add("relu", (b.input("x", FP32, (1,)),))[0])])
    built.close()
    with pytest.raises(ModelNotReady):
        built.use(program)
    assert not opened
