"""Guests that build graphs of operators: what they compute, what they cost, and what hostile ones get."""

from __future__ import annotations

import gc
import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kserve_wasm.artifact.config import Batching, Limits, ModelConfig
from kserve_wasm.backends import GraphSource
from kserve_wasm.batching import Caller
from kserve_wasm.errors import DeadlineExceeded, GuestError, InvalidRequest, WasmServingError
from kserve_wasm.guest import GuestModel
from kserve_wasm.wasi_nn import built
from tests.backends import models
from tests.guest.support import BINDINGS, request
from tests.support.guests import compile_guest

SCALE = """
#include "kserve_wasm_ml.h"
KW_EXPORT("infer") uint32_t infer(void) {
  kw_tensor x, y;
  kw_graph graph;
  KW_TRY(kw_input_by_index(0, &x));
  ml_builder b = ml_create_builder();
  ml_operand in = ml_input(b, KW_STR("x"), KW_UINT8, (const int64_t[]){-1, 3}, 2);
  ml_operand mean = ml_vector_f32(b, (const float[]){1, 2, 3}, 3);
  ml_operand scaled = ml_clamp(ml_div(ml_sub(ml_cast(in, KW_FP32), mean), ml_scalar_f32(b, 2)), -1, 100);
  KW_TRY(ml_build_one(b, KW_STR("scaled"), scaled, &graph));
  KW_TRY(kw_dispatch(graph, &x, 1, &y, 1));
  return kw_output_set(KW_STR("y"), y);
}
"""
"""Answers ``y = clamp((x - [1, 2, 3]) / 2, -1, 100)`` for its uint8 input [n, 3]."""


def scaled(x: np.ndarray) -> np.ndarray:
    return np.clip((x.astype(np.float32) - np.array([1, 2, 3], np.float32)) / 2, -1, 100)


def config(source: str, graphs: tuple[GraphSource, ...] = (), **settings: Any) -> ModelConfig:
    module = compile_guest(source)
    code = module.read_bytes()
    digest = f"sha256:{hashlib.sha256(code).hexdigest()}"
    return ModelConfig("m", "1", module, len(code), digest, graphs=graphs, **settings)


def body(statements: str, before: str = "") -> str:
    """A guest whose ``infer`` has a builder ``b``, its operand ``x`` (FP32 [open, 3]), and these statements."""
    return f"""
#include "kserve_wasm_ml.h"
{before}
KW_EXPORT("infer") uint32_t infer(void) {{
  kw_graph graph = 0;
  ml_builder b = ml_create_builder();
  ml_operand x = ml_input(b, KW_STR("x"), KW_FP32, (const int64_t[]){{-1, 3}}, 2);
  (void)x, (void)graph;
  {statements}
}}
"""


@pytest.fixture
def opened() -> Iterator[Any]:
    models_: list[GuestModel] = []

    def open_(source: str, binding: str = "unchecked", **settings: Any) -> GuestModel:
        model = GuestModel(config(source, **settings), binding=BINDINGS[binding])
        model.load()
        models_.append(model)
        return model

    yield open_
    for model in models_:
        model.close()


X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_guest_computes_with_operators(opened: Any, binding: str) -> None:
    model = opened(SCALE, binding)
    rng = np.random.default_rng(0)
    for n in (1, 2, 7):
        x = rng.integers(0, 256, (n, 3), dtype=np.uint8)
        np.testing.assert_allclose(model.infer(request(x=x)).outputs["y"].numpy(), scaled(x), rtol=1e-6)


def test_the_same_graph_is_opened_once_for_all_instances(opened: Any) -> None:
    model = opened(SCALE)
    openings = []
    inner = model._open_program
    model._built._open = lambda program: (openings.append(program), inner(program))[1]
    for _ in range(20):
        model.infer(request(x=np.zeros((1, 3), np.uint8)))
    assert len(openings) == 1


def test_instances_that_build_the_same_graph_at_once_open_it_once(opened: Any) -> None:
    model = opened(SCALE)
    openings = []
    inner = model._open_program

    def slow(program: Any) -> Any:
        openings.append(program)
        time.sleep(0.2)
        return inner(program)

    model._built._open = slow
    threads = [
        threading.Thread(target=model.infer, args=(request(x=np.zeros((1, 3), np.uint8)),)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(openings) == 1


def test_requests_of_many_guests_run_together_and_get_their_own_answers(opened: Any) -> None:
    model = opened(SCALE, batching={"": Batching(max_batch_size=32, adaptive=False, max_queue_delay=0.05)})
    sizes: list[int] = []
    model.infer(request(x=np.zeros((1, 3), np.uint8)))
    (graph,) = model._built._graphs.values()
    run = graph.scheduler.graph.run

    def counting(inputs: Any, deadline: float) -> Any:
        time.sleep(0.01)  # so that others come meanwhile
        sizes.append(inputs["x"].shape[0])
        return run(inputs, deadline)

    graph.scheduler.graph.run = counting
    wrong: list[Any] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(10):
            x = rng.integers(0, 256, (int(rng.integers(1, 4)), 3), dtype=np.uint8)
            y = model.infer(request(x=x)).outputs["y"].numpy()
            if y.shape != x.shape or not np.allclose(y, scaled(x), rtol=1e-6):
                wrong.append((x, y))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert max(sizes) > 3
    assert len(sizes) < 160


def test_a_graph_whose_rows_depend_on_each_other_is_never_run_for_several_requests(opened: Any) -> None:
    flip = """
  ml_operand row = ml_constant(b, KW_FP32, (const int64_t[]){2, 3}, 2, (const float[]){1, 2, 3, 4, 5, 6}, 24);
  KW_TRY(ml_build_one(b, KW_STR("y"), ml_add(x, row), &graph));
  kw_tensor in, out;
  KW_TRY(kw_input_by_index(0, &in));
  KW_TRY(kw_dispatch(graph, &in, 1, &out, 1));
  return kw_output_set(KW_STR("y"), out);"""
    model = opened(body(flip))
    model.infer(request(x=X))
    (graph,) = model._built._graphs.values()
    assert not graph.program.merges()
    assert not graph.scheduler.merging_pays
    assert graph.scheduler.concurrency == 0


def test_graph_to_operators_to_graph_without_a_byte_through_the_guest(opened: Any) -> None:
    source = GraphSource("adder", "onnx", data=models.add_and_subtract().SerializeToString())
    chain = """
#include "kserve_wasm_ml.h"
KW_EXPORT("infer") uint32_t infer(void) {
  kw_tensor in[2], between[2], doubled, out[2];
  kw_graph adder, twice;
  KW_TRY(kw_input_by_name(KW_STR("a"), &in[0]));
  KW_TRY(kw_input_by_name(KW_STR("b"), &in[1]));
  KW_TRY(kw_load_by_name(KW_STR("adder"), &adder));
  KW_TRY(kw_dispatch(adder, in, 2, between, 2));
  ml_builder b = ml_create_builder();
  ml_operand x = ml_input(b, KW_STR("x"), KW_FP32, (const int64_t[]){-1, 3}, 2);
  KW_TRY(ml_build_one(b, KW_STR("y"), ml_mul(x, ml_scalar_f32(b, 2)), &twice));
  KW_TRY(kw_dispatch(twice, between, 1, &doubled, 1));
  KW_TRY(kw_dispatch(adder, (const kw_tensor[]){doubled, between[1]}, 2, out, 2));
  return kw_output_set(KW_STR("y"), out[0]);
}"""
    model = opened(chain, graphs=(source,))
    a, b = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    y = model.infer(request(a=a, b=b)).outputs["y"].numpy()
    np.testing.assert_allclose(y, 2 * (a + b) + (a - b), rtol=1e-6)


# --- What guests get wrong


def failing(opened: Any, statements: str, **settings: Any) -> str:
    with pytest.raises(GuestError) as caught:
        opened(body(statements), **settings).infer(request(x=X))
    return str(caught.value)


def test_an_operator_that_does_not_fit_is_named_with_its_operands_when_the_graph_is_built(
    opened: Any,
) -> None:
    two = "ml_operand two = ml_constant(b, KW_FP32, (const int64_t[]){2}, 1, (const float[]){1, 2}, 8);"
    told = failing(opened, f'{two} return ml_build_one(b, KW_STR("y"), ml_sin(ml_add(x, two)), &graph);')
    assert "add: the shapes cannot be broadcast" in told
    assert "FP32 [?, 3]" in told
    assert "FP32 [2]" in told
    told = failing(opened, 'return ml_build_one(b, KW_STR("y"), ml_logical_not(x), &graph);')
    assert "logicalNot: input must be one of UINT8, got FP32" in told


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        ('return ml_build_one(b, KW_STR("y"), ml_sin(4711), &graph);', "sin: input: 4711 is not the handle"),
        ('return ml_build_one(b, KW_STR("y"), ml_sin(ML_NONE), &graph);', "0 is not the handle"),
        (
            "x = ml_sin(4711); for (int i = 0; i < 1000; i++) x = ml_cos(x);"
            'return ml_build_one(b, KW_STR("y"), x, &graph);',
            "build: output 'y' is what a call that failed gave: sin: input: 4711 is not the handle of an operand",
        ),
        ('return ml_build_one(b, KW_STR("y"), b, &graph);', "is not the handle of an operand"),
        ('return ml_build_one(4711, KW_STR("y"), x, &graph);', "4711 is not the handle of a graph in the"),
        (
            "ml_builder c = ml_create_builder();"
            'ml_operand z = ml_input(c, KW_STR("z"), KW_FP32, 0, 0);'
            'return ml_build_one(b, KW_STR("y"), ml_add(x, z), &graph);',
            "belongs to another graph",
        ),
        (
            "ml_builder c = ml_create_builder();"
            'ml_operand z = ml_input(c, KW_STR("z"), KW_FP32, 0, 0);'
            'return ml_build_one(b, KW_STR("y"), z, &graph);',
            "belongs to another graph",
        ),
        (
            'KW_TRY(ml_build_one(b, KW_STR("y"), ml_sin(x), &graph));'
            'ml_builder c = ml_create_builder(); ml_input(c, KW_STR("z"), KW_FP32, 0, 0);'
            'return ml_build_one(c, KW_STR("y"), ml_sin(x), &graph);',
            "is not the handle of an operand",
        ),
        (
            'KW_TRY(ml_build_one(b, KW_STR("y"), ml_sin(x), &graph));'
            'return ml_build_one(b, KW_STR("y"), x, &graph);',
            "is not the handle of a graph in the making",
        ),
        ('return ml_build_one(b, KW_STR("x"), ml_sin(x), &graph);', "each output needs a name of its own"),
        ('return ml_build_one(b, KW_STR(""), ml_sin(x), &graph);', "each output needs a name of its own"),
        ("return ml_build(b, 0, 0, &graph);", "needs an input and an output"),
        ("return ml_build(b, 0, 1u << 30, &graph);", "may have 4096 outputs"),
        ("return ml_build(b, (const ml_output *)0xFFFFFF00u, 4000, &graph);", "build"),
        (
            'ml_input(b, KW_STR("x"), KW_FP32, 0, 0); return ml_build_one(b, KW_STR("y"), x, &graph);',
            "'x' must be a name that no other input has",
        ),
        (
            'ml_input(b, KW_STR("t"), KW_BYTES, 0, 0); return ml_build_one(b, KW_STR("y"), x, &graph);',
            "must be one of",
        ),
        (
            'ml_input(b, KW_STR("t"), KW_FP32, (const int64_t[]){0}, 1);'
            'return ml_build_one(b, KW_STR("y"), x, &graph);',
            "each at least 1",
        ),
        (
            'ml_input(b, KW_STR("t"), KW_FP32, (const int64_t[]){1ll << 40}, 1);'
            'return ml_build_one(b, KW_STR("y"), x, &graph);',
            "each at least 1",
        ),
        (
            'ml_input(b, KW_STR("t"), KW_FP32, 0, 1u << 31); return ml_build_one(b, KW_STR("y"), x, &graph);',
            "at most 64 dimensions",
        ),
        (
            "ml_constant(b, KW_FP32, (const int64_t[]){3}, 1, &graph, 4);"
            'return ml_build_one(b, KW_STR("y"), x, &graph);',
            "needs 12 bytes, got 4",
        ),
        (
            "ml_constant(b, KW_FP32, (const int64_t[]){-1}, 1, &graph, 4);"
            'return ml_build_one(b, KW_STR("y"), x, &graph);',
            "constant",
        ),
        (
            "ml_constant(b, KW_FP32, 0, 0, (const void *)0xFFFFFFF0u, 0x7FFFFFFFu);"
            'return ml_build_one(b, KW_STR("y"), x, &graph);',
            "constant",
        ),
        (
            'for (int i = 0; i < 100000; i++) x = ml_sin(x); return ml_build_one(b, KW_STR("y"), x, &graph);',
            "4096 operands",
        ),
        (
            "for (int i = 0; i < 100; i++) b = ml_create_builder();"
            'return ml_build_one(b, KW_STR("y"), x, &graph);',
            "16 graphs in the making",
        ),
        (
            "for (int i = 0; i < 100; i++) {"
            "  ml_builder c = ml_create_builder();"
            '  ml_operand z = ml_input(c, KW_STR("z"), KW_FP32, 0, 0);'
            '  KW_TRY(ml_build_one(c, KW_STR("y"), ml_mul(z, ml_scalar_f32(c, i)), &graph));'
            "} return 0;",
            "64 built graphs",
        ),
    ],
)
def test_what_a_guest_gets_wrong_ends_its_request_with_the_reason(
    opened: Any, statements: str, reason: str
) -> None:
    assert reason in failing(opened, statements)


def test_operands_that_take_more_than_the_limit_are_refused_before_anything_runs(opened: Any) -> None:
    # Each doubling broadcasts [k, 1] and [1, k] to [k, k]: 2^40 elements were asked for in few operators.
    wide = """
  ml_operand column = ml_input(b, KW_STR("c"), KW_FP32, (const int64_t[]){1 << 20, 1}, 2);
  ml_operand row = ml_input(b, KW_STR("r"), KW_FP32, (const int64_t[]){1, 1 << 20}, 2);
  return ml_build_one(b, KW_STR("y"), ml_add(column, row), &graph);"""
    told = failing(opened, wide)
    assert "add: the result, FP32 [1048576, 1048576], takes 4398046511104 bytes" in told
    assert "limits.tensor_bytes" in told


def test_open_dimensions_are_held_to_the_limit_when_their_sizes_are_known(opened: Any) -> None:
    outer = """
  ml_operand row = ml_input(b, KW_STR("r"), KW_FP32, (const int64_t[]){1, -2}, 2);
  ml_operand column = ml_input(b, KW_STR("c"), KW_FP32, (const int64_t[]){-3, 1}, 2);
  ml_output y = {KW_STR("y"), ml_add(column, row)};
  KW_TRY(ml_build(b, &y, 1, &graph));
  kw_tensor in[3], out;
  KW_TRY(kw_input_by_name(KW_STR("x"), &in[0]));
  KW_TRY(kw_input_by_name(KW_STR("r"), &in[1]));
  KW_TRY(kw_input_by_name(KW_STR("c"), &in[2]));
  KW_TRY(kw_dispatch(graph, in, 3, &out, 1));
  return kw_output_set(KW_STR("y"), out);"""
    model = opened(body(outer), limits=Limits(tensor_bytes=1 << 20))
    small = np.arange(10, dtype=np.float32)
    answer = model.infer(request(x=X, r=small[None], c=small[:, None])).outputs["y"].numpy()
    np.testing.assert_array_equal(answer, small[:, None] + small[None])
    large = np.zeros(1000, np.float32)
    with pytest.raises(InvalidRequest, match=r"add: with FP32 \[1000, 1000\].*limits.tensor_bytes"):
        model.infer(request(x=X, r=large[None], c=large[:, None]))


def test_constants_in_the_making_count_against_the_limit_and_are_freed(opened: Any) -> None:
    hoard = """
  for (int i = 0; i < 100; i++)
    ml_constant(b, KW_UINT8, (const int64_t[]){1 << 16}, 1, (const void *)0, 1 << 16);
  return ml_build_one(b, KW_STR("y"), ml_sin(x), &graph);"""
    assert "limits.tensor_bytes" in failing(opened, hoard, limits=Limits(tensor_bytes=1 << 20))
    dropped = """
  for (int i = 0; i < 40; i++) {
    ml_builder c = ml_create_builder();
    ml_constant(c, KW_UINT8, (const int64_t[]){1 << 16}, 1, (const void *)0, 1 << 16);
    ml_build(c, 0, 0, &graph);
  }
  return KW_SUCCESS;"""
    opened(body(dropped), limits=Limits(tensor_bytes=1 << 20)).infer(request(x=X))


def test_constants_of_open_graphs_count_against_the_limit_until_they_are_unloaded(opened: Any) -> None:
    several = """
  static uint8_t data[1 << 16];
  for (int i = 0; i < 40; i++) {
    data[0] = (uint8_t)i;
    ml_builder c = ml_create_builder();
    ml_operand z = ml_input(c, KW_STR("z"), KW_UINT8, 0, 0);
    ml_operand k = ml_constant(c, KW_UINT8, (const int64_t[]){1 << 16}, 1, data, sizeof data);
    KW_TRY(ml_build_one(c, KW_STR("y"), ml_reduce_max(ml_max(z, k), 0, 0, 0), &graph));
    UNLOAD
  }
  return KW_SUCCESS;"""
    limits = Limits(tensor_bytes=1 << 20)
    assert "limits.tensor_bytes" in failing(opened, several.replace("UNLOAD", ""), limits=limits)
    module = '__attribute__((import_module("wasi_ephemeral_nn"), import_name("unload")))'
    unload = f"{module} extern kw_errno unload(kw_graph);"
    dropped = body(several.replace("UNLOAD", "KW_TRY(unload(graph));"), unload)
    opened(dropped, limits=limits).infer(request(x=X))


def test_a_deadline_ends_a_guest_that_builds_without_end(opened: Any) -> None:
    endless = """
  for (;;) {
    ml_builder c = ml_create_builder();
    ml_operand z = ml_input(c, KW_STR("z"), KW_FP32, 0, 0);
    for (int i = 0; i < 2000; i++) z = ml_sin(z);
    ml_build(c, 0, 0, &graph);
  }"""
    model = opened(body(endless))
    with pytest.raises(DeadlineExceeded):
        model.infer(request(x=X), Caller(time.monotonic() + 0.5))


def test_graphs_that_differ_with_every_request_do_not_pile_up(opened: Any) -> None:
    each = """
#include "kserve_wasm_ml.h"
KW_EXPORT("infer") uint32_t infer(void) {
  kw_tensor x, y;
  kw_graph graph;
  float value;
  KW_TRY(kw_input_by_index(0, &x));
  KW_TRY(kw_tensor_read(x, 0, &value, sizeof value));
  ml_builder b = ml_create_builder();
  ml_operand in = ml_input(b, KW_STR("x"), KW_FP32, (const int64_t[]){1}, 1);
  KW_TRY(ml_build_one(b, KW_STR("y"), ml_add(in, ml_scalar_f32(b, value)), &graph));
  KW_TRY(kw_dispatch(graph, &x, 1, &y, 1));
  return kw_output_set(KW_STR("y"), y);
}"""
    model = opened(each)
    for i in range(3 * built.MAX_KEPT):
        y = model.infer(request(x=np.array([i], np.float32))).outputs["y"].numpy()
        np.testing.assert_array_equal(y, [2 * i])
    assert len(model._built._graphs) == built.MAX_KEPT
    assert not model._built._used


def test_nothing_is_left_of_ten_thousand_requests(opened: Any) -> None:
    model = opened(SCALE)
    hostile = opened(body("ml_sin(ml_add(x, ml_scalar_i32(b, 1))); ml_create_builder(); return 1;"))
    asked = request(x=np.zeros((1, 3), np.uint8))

    def some(count: int) -> None:
        for _ in range(count):
            model.infer(asked)
            with pytest.raises(WasmServingError):
                hostile.infer(request(x=X))

    some(100)
    gc.collect()
    before = len(gc.get_objects())
    some(5_000)
    gc.collect()
    assert len(gc.get_objects()) - before < 500
    assert not model._built._used
    assert len(model._built._graphs) == 1


def test_a_closed_model_closes_the_graphs_that_were_built() -> None:
    model = GuestModel(config(SCALE))
    model.load()
    model.infer(request(x=np.zeros((1, 3), np.uint8)))
    (graph,) = model._built._graphs.values()  # type: ignore[union-attr]
    scheduler = graph.scheduler
    assert scheduler is not None
    model.close()
    with pytest.raises(WasmServingError, match="closed"):
        scheduler.compute({}, Caller())
