"""Hostile guests made at random: every one ends with an answer or a typed error, the same over both bindings."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kserve_wasm.artifact.config import Limits, ModelConfig
from kserve_wasm.backends.base import GraphSource
from kserve_wasm.convert.pass_through import pass_through
from kserve_wasm.errors import DeadlineExceeded, ModelLoadError, WasmServingError
from kserve_wasm.guest import HOST_FUNCTIONS, GuestModel
from kserve_wasm.guest.host_functions import OPERATOR_MODULES
from kserve_wasm.guest.wasi import REPLACED
from kserve_wasm.request import InferenceRequest
from tests.backends import models
from tests.guest.support import BINDINGS, ECHO, request
from tests.support.counts import count

X = np.arange(8, dtype=np.float32).reshape(2, 4)
LIMITS = Limits(memory=1 << 20, handles=32, tensor_bytes=1 << 20, load_bytes=1 << 16, timeout=5.0)
WORDS = {"i": 0xFFFFFFFF, "I": 0xFFFFFFFFFFFFFFFF}
LETTERS = {"i": "i32", "I": "i64", "F": "f64"}
NAMES = {f"f{n}": f for n, f in enumerate((*HOST_FUNCTIONS, *REPLACED))}
BASIC_NAMES = [name for name, f in NAMES.items() if f.module not in OPERATOR_MODULES]

BY_NAME = {(f.module, f.name): key for key, f in NAMES.items()}
LOAD_BY_NAME = BY_NAME["wasi_ephemeral_nn", "load_by_name"]
INIT_CONTEXT = BY_NAME["wasi_ephemeral_nn", "init_execution_context"]

near = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 20, 64, 100, 256, 1024, 65532, 65535, 65536, 65537, 2**20])
huge = st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 2**32 - 16, 2**32 - 65536])


def value(letter: str) -> st.SearchStrategy[float]:
    if letter == "F":
        return st.sampled_from([0.0, 1.0, -1.5, 1e300, math.inf, -math.inf, math.nan])
    return st.one_of(near, near, huge, st.integers(0, WORDS[letter]))


calls = st.lists(
    # Of the operators there are many, and they are not to be all that is called.
    st.one_of(st.sampled_from(sorted(NAMES)), st.sampled_from(sorted(BASIC_NAMES))).flatmap(
        lambda name: st.tuples(st.just(name), *(value(p) for p in NAMES[name].params))
    ),
    min_size=1,
    max_size=12,
)


def program(sequence: list[tuple[object, ...]], data: bytes, errno: int) -> str:
    """A guest whose memory starts with ``data``, and that makes these calls whatever they answer."""
    used = sorted({str(call[0]) for call in sequence})
    imports = "".join(
        f'(import "{NAMES[n].module}" "{NAMES[n].name}" (func ${n} '
        f"(param {' '.join(LETTERS[p] for p in NAMES[n].params)}) (result i32)))"
        for n in used
    )
    body = "".join(
        f"(drop (call ${call[0]} "
        + " ".join(
            f"({LETTERS[p]}.const {v})" for p, v in zip(NAMES[str(call[0])].params, call[1:], strict=True)
        )
        + "))"
        for call in sequence
    )
    text = "".join(f"\\{byte:02x}" for byte in data)
    return f"""(module {imports} (memory (export "memory") 1) (data (i32.const 0) "{text}")
        (func (export "infer") (result i32) {body} (i32.const {errno})))"""


def model_of(directory: Path, code: bytes, binding: str, graphs: tuple[GraphSource, ...] = ()) -> GuestModel:
    module = directory / "m.wasm"
    module.write_bytes(code)
    digest = f"sha256:{hashlib.sha256(code).hexdigest()}"
    config = ModelConfig("m", "1", module, len(code), digest, limits=LIMITS, graphs=graphs)
    return GuestModel(config, binding=BINDINGS[binding])


def outcome(model: GuestModel, asked: InferenceRequest) -> object:
    """What a request ends with, in a form that can be compared."""
    try:
        response = model.infer(asked)
    except WasmServingError as error:
        kind, message = type(error).__name__, str(error)
    else:
        return {n: (t.dtype.name, t.shape, bytes(t.buffer())) for n, t in response.outputs.items()}
    assert "internal error" not in message  # nothing a guest does is a fault of the host's
    return kind, message


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    sequence=calls,
    data=st.binary(max_size=96),
    errno=st.sampled_from([0, 0, 0, 5, 2**31]),
    opened=st.booleans(),
)
def test_any_sequence_of_host_calls_ends_the_same_over_both_bindings(
    tmp_path: Path, sequence: list[tuple[object, ...]], data: bytes, errno: int, opened: bool
) -> None:
    if opened:  # graph 1 and its context 2, so that calls reach further
        data = b"default" + data
        sequence = [(LOAD_BY_NAME, 0, 7, 900), (INIT_CONTEXT, 1, 900), *sequence]
    code = bytes(wasmtime.wat2wasm(program(sequence, data, errno)))
    graphs = (GraphSource("\0\0\0\0", "onnx", data=MLP), GraphSource("default", "onnx", data=MLP))
    outcomes = []
    for name in BINDINGS:
        model = model_of(tmp_path, code, name, graphs)
        model.load()
        outcomes.append(outcome(model, request(x=X)))
        model.close()
    assert outcomes[0] == outcomes[1]
    count("guests of random host calls (both bindings)")
    count("random host calls", 2 * len(sequence))


MLP = models.mlp().SerializeToString()
SEEDS = [bytes(wasmtime.wat2wasm(ECHO)), bytes(wasmtime.wat2wasm(program([("f0", 0)], b"seed", 0)))]


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    seed=st.sampled_from(SEEDS),
    cut=st.one_of(st.none(), st.integers(0, 400)),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
)
def test_a_doctored_module_is_refused_or_contained(
    tmp_path: Path, seed: bytes, cut: int | None, edits: list[tuple[int, int]]
) -> None:
    code = bytearray(seed[:cut])
    for at, byte in edits:
        if code:
            code[at % len(code)] = byte
    count("doctored modules")
    model = model_of(tmp_path, bytes(code), "unchecked")
    model.config = replace(model.config, limits=replace(LIMITS, timeout=0.05))
    started = time.monotonic()
    try:
        model.load()
    except ModelLoadError:
        return
    count("doctored modules that ran")
    result = outcome(model, request(x=X))
    model.close()
    # Whatever the edit made of it: no hang past the deadline (0.05 s and two ticks; the rest is for a slow machine).
    assert time.monotonic() - started < 5, result


def test_concurrent_hostile_and_honest_guests_do_not_disturb_each_other(tmp_path: Path) -> None:
    """An honest model answers right while others trap, spin and grow beside it on other threads."""
    bad = []
    for n, body in enumerate(
        (
            "unreachable",
            "(loop (br 0)) (i32.const 0)",
            "(loop (drop (memory.grow (i32.const 1))) (br 0)) (i32.const 0)",
            "(i32.load (i32.const -1))",
        )
    ):
        directory = tmp_path / str(n)
        directory.mkdir()
        wat = f'(module (memory (export "memory") 1) (func (export "infer") (result i32) {body}))'
        model = model_of(directory, bytes(wasmtime.wat2wasm(wat)), "unchecked")
        model.config = replace(model.config, limits=replace(LIMITS, timeout=0.05))
        model.load()
        bad.append(model)
    honest = model_of(tmp_path, SEEDS[0], "unchecked")
    honest.load()
    stop = threading.Event()

    def attack(model: GuestModel) -> None:
        while not stop.is_set():
            with pytest.raises(WasmServingError):
                model.infer(InferenceRequest({}))
            count("hostile requests beside honest ones")

    threads = [threading.Thread(target=attack, args=(model,)) for model in bad]
    for thread in threads:
        thread.start()
    try:
        for turn in range(300):
            data = np.full(5, turn, np.int32)
            np.testing.assert_array_equal(honest.infer(request(x=data)).outputs["y"].numpy(), data)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_deadline_in_a_graph_is_the_requests_deadline(tmp_path: Path) -> None:
    """A guest that computes for ever inside the backend, where epochs do not reach, is stopped as well."""
    code = pass_through("default")
    graph = GraphSource("default", "onnx", data=models.count().SerializeToString())
    model = model_of(tmp_path, code, "unchecked", (graph,))
    model.config = replace(model.config, limits=replace(LIMITS, timeout=0.2))
    model.load()
    with pytest.raises(DeadlineExceeded):
        model.infer(request(n=np.array(2**40, np.int64)))
    model.close()
