"""Graphs that run when their guest has ended: the same answers and errors as when it waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kserve_wasm.backends import GraphSource
from kserve_wasm.batching import Caller
from kserve_wasm.errors import GuestError, GuestLimitExceeded, GuestRejected, InvalidRequest, WasmServingError
from kserve_wasm.guest import GuestModel
from kserve_wasm.guest.pending import PendingResponse
from kserve_wasm.request import InferenceRequest, InferenceResponse
from tests.backends import models
from tests.guest.support import BINDINGS, config_of, request

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.full((2, 3), 10, np.float32)
OpenModel = Callable[..., GuestModel]

GUEST = """(module
  (import "kserve_wasm" "run_graph" (func $run (param i32 i32) (result i32)))
  (import "kserve_wasm" "input_by_index" (func $input (param i32 i32) (result i32)))
  (import "kserve_wasm" "output_set" (func $output (param i32 i32 i32) (result i32)))
  (import "kserve_wasm" "output_parameter" (func $parameter (param i32 i32 i32 i32) (result i32)))
  (import "kserve_wasm" "fail" (func $fail (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "sums") (data (i32.const 4) "swap") (data (i32.const 8) "sum")
  (data (i32.const 16) "key")
  (func $pass (drop (call $input (i32.const 0) (i32.const 64)))
    (drop (call $output (i32.const 8) (i32.const 3) (i32.load (i32.const 64)))))
  (func (export "infer") (result i32) {body}))"""
RUN = "(call $run (i32.const 0) (i32.const 4))"
SWAP = "(call $run (i32.const 4) (i32.const 4))"


def swap() -> onnx.ModelProto:
    """``difference`` = b - a, of the same inputs as the other graph."""
    node = onnx.helper.make_node("Sub", ["b", "a"], ["difference"])
    spec = ("FP32", ["n", 3])
    return models.model([node], {"a": spec, "b": spec}, {"difference": spec})


@pytest.fixture
def open_guest(tmp_path: Path, binding: str) -> Iterator[OpenModel]:
    opened: list[GuestModel] = []

    def open_(body: str, **settings: Any) -> GuestModel:
        graphs = {"sums": models.add_and_subtract(), "swap": swap()}
        config = replace(
            config_of(tmp_path, GUEST.format(body=body), **settings),
            graphs=tuple(GraphSource(n, "onnx", data=g.SerializeToString()) for n, g in graphs.items()),
        )
        model = GuestModel(config, binding=BINDINGS[binding])
        model.load()
        opened.append(model)
        return model

    yield open_
    for model in opened:
        model.close()


def answer(model: GuestModel, asked: InferenceRequest, *, defers: bool) -> InferenceResponse:
    caller = Caller()
    caller.defers = defers
    response = model.begin(asked, caller)
    if isinstance(response, PendingResponse):
        assert defers
        response = response.complete(response.scheduler.compute(response.inputs, Caller()))
    return response


def pending(model: GuestModel, asked: InferenceRequest) -> bool:
    caller = Caller()
    caller.defers = True
    return isinstance(model.begin(asked, caller), PendingResponse)


@pytest.mark.parametrize("reuse", [False, True], ids=["fresh", "kept"])
@pytest.mark.parametrize("defers", [False, True], ids=["waits", "put off"])
@pytest.mark.parametrize(
    ("body", "outputs", "parameters"),
    [
        (RUN, {"sum": A + B, "difference": A - B}, {}),
        (
            f"(drop {RUN}) (call $parameter (i32.const 16) (i32.const 3) (i32.const 0) (i32.const 4))",
            {"sum": A + B, "difference": A - B},
            {"key": "sums"},
        ),
        # What is set later counts.
        (f"(call $pass) {RUN}", {"sum": A + B, "difference": A - B}, {}),
        (f"(drop {RUN}) (call $pass) (i32.const 0)", {"sum": A, "difference": A - B}, {}),
        (f"(drop {RUN}) {SWAP}", {"sum": A + B, "difference": B - A}, {}),
        (f"(drop {SWAP}) {RUN}", {"difference": A - B, "sum": A + B}, {}),
    ],
    ids=["graph", "and parameter", "set before", "set after", "two graphs", "two graphs, other order"],
)
def test_the_answer_is_what_the_guest_made_of_it(open_guest, body, outputs, parameters, defers, reuse):
    model = open_guest(body, reuse=reuse)
    for _ in range(3):  # a kept instance has nothing left of what it put off
        response = answer(model, request(a=A, b=B), defers=defers)
        assert response.parameters == parameters
        assert response.outputs.keys() == outputs.keys()
        for name, expected in outputs.items():
            np.testing.assert_array_equal(response.outputs[name].numpy(), expected)


def test_a_graph_is_put_off_only_until_the_guest_goes_on(open_guest):
    assert pending(open_guest(RUN), request(a=A, b=B))
    assert not pending(open_guest(f"(drop {RUN}) (call $pass) (i32.const 0)"), request(a=A, b=B))


@pytest.mark.parametrize("defers", [False, True], ids=["waits", "put off"])
def test_only_the_outputs_that_the_client_wants_are_in_the_answer(open_guest, defers):
    asked = replace(request(a=A, b=B), outputs=["difference"])
    outputs = answer(open_guest(RUN), asked, defers=defers).outputs
    assert list(outputs) == ["difference"]
    with pytest.raises(GuestError, match="did not set the requested output 'other'"):
        answer(open_guest(RUN), replace(asked, outputs=["difference", "other"]), defers=defers)


@pytest.mark.parametrize("defers", [False, True], ids=["waits", "put off"])
@pytest.mark.parametrize(
    ("body", "inputs", "error", "words"),
    [
        (RUN, {"a": A}, InvalidRequest, "input 'b' is missing"),
        (RUN, {"a": A, "b": B.astype(np.float64)}, InvalidRequest, "'b' must be FP32, got FP64"),
        (RUN, {"a": A, "b": np.vstack([B, B])}, InvalidRequest, "'n' is 2 in 'a' and 4 in 'b'"),
        (
            f"(drop {RUN}) (drop (call $fail (i32.const 0) (i32.const 0) (i32.const 4))) (i32.const 1)",
            {"a": A, "b": B},
            GuestRejected,
            "^sums$",
        ),
        (f"(drop {RUN}) (unreachable)", {"a": A, "b": B}, WasmServingError, "unreachable"),
    ],
    ids=["missing", "type", "shapes", "guest refuses", "guest traps"],
)
def test_errors_are_the_same(open_guest, body, inputs, error, words, defers):
    with pytest.raises(error, match=words):
        answer(open_guest(body), request(**inputs), defers=defers)


def test_a_guest_that_fails_leaves_nothing_to_run(open_guest):
    model = open_guest(f"(drop {RUN}) (i32.const 7)")
    with pytest.raises(GuestError):
        answer(model, request(a=A, b=B), defers=True)
    assert model.metrics.statistics.snapshot()["execution_count"] == 0


def test_outputs_beyond_the_guests_limit_are_refused(open_guest):
    model = open_guest(RUN, tensor_bytes=A.nbytes)
    with pytest.raises(GuestLimitExceeded, match=f"{2 * A.nbytes} bytes, and {A.nbytes} are allowed"):
        answer(model, request(a=A, b=B), defers=True)
