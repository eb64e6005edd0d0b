"""Graphs that a guest builds in ``load`` and keeps under a name: later instances find them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from kserve_wasm.backends import GraphSource
from kserve_wasm.errors import GuestError, WasmServingError
from kserve_wasm.guest import GuestModel
from kserve_wasm.wasi_nn import built
from tests.backends import models
from tests.guest.support import BINDINGS, request
from tests.guest.test_operators import X, config


def guest(load: str = "", infer: str = "") -> str:
    """A guest that keeps ``y = 2 x`` as ``twice`` and answers with it; with further statements first."""
    return f"""
#include "kserve_wasm_ml.h"
static kw_graph graph;
static kw_errno build(void) {{
  ml_builder b = ml_create_builder();
  ml_operand x = ml_input(b, KW_STR("x"), KW_FP32, (const int64_t[]){{-1, 3}}, 2);
  return ml_build_one(b, KW_STR("y"), ml_add(x, x), &graph);
}}
KW_EXPORT("load") kw_errno load(void) {{
  {load}
  if (kw_load_by_name(KW_STR("twice"), &graph) == KW_SUCCESS) return KW_SUCCESS;
  KW_TRY(build());
  return mlx_keep(graph, KW_STR("twice"));
}}
KW_EXPORT("infer") kw_errno infer(void) {{
  kw_tensor x, y;
  {infer}
  KW_TRY(kw_input_by_index(0, &x));
  KW_TRY(kw_dispatch(graph, &x, 1, &y, 1));
  return kw_output_set(KW_STR("y"), y);
}}
"""


def opened(source: str, binding: str = "unchecked", **settings: Any) -> GuestModel:
    model = GuestModel(config(source, **settings), binding=BINDINGS[binding])
    model.load()
    return model


def kept(model: GuestModel) -> dict[str, built.BuiltGraph]:
    assert model._built is not None
    return dict(model._built._named)


@pytest.mark.parametrize("binding", BINDINGS)
def test_it_is_built_once_and_found_by_every_instance(binding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built_programs = []
    use = built.BuiltGraphs.use
    monkeypatch.setattr(
        built.BuiltGraphs,
        "use",
        lambda self, program: (built_programs.append(program), use(self, program))[1],
    )
    model = opened(guest(), binding)
    for n in range(1, 6):
        x = np.full((n, 3), n, np.float32)
        np.testing.assert_array_equal(model.infer(request(x=x)).outputs["y"].numpy(), 2 * x)
    assert len(built_programs) == 1
    (graph,) = kept(model).values()
    assert graph.users == 1  # its name's
    model.close()
    assert graph.users == 0
    assert not kept(model)


def test_sizes_that_its_operators_do_not_take_are_refused_of_a_graph_that_was_found_as_well() -> None:
    model = opened(guest())
    for _ in range(2):
        with pytest.raises(WasmServingError, match=r"input 'x' must have shape \[-1, 3\], got \[2, 4\]"):
            model.infer(request(x=np.zeros((2, 4), np.float32)))
    model.close()


def test_instances_at_once_answer_with_the_one_that_is_kept() -> None:
    model = opened(guest())
    answers: list[Any] = []

    def ask() -> None:
        answers.append(model.infer(request(x=X)).outputs["y"].numpy())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16
    for answer in answers:
        np.testing.assert_array_equal(answer, 2 * X)
    assert list(kept(model)) == ["twice"]
    model.close()


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ('KW_TRY(build()); KW_TRY(mlx_keep(graph, KW_STR("other")));', "in 'load' alone"),
        ('KW_TRY(mlx_keep(graph, KW_STR("twice")));', "in 'load' alone"),
    ],
)
def test_a_request_keeps_nothing(statement: str, reason: str) -> None:
    """What one client sends would decide what others get."""
    model = opened(guest(infer=statement))
    for _ in range(2):
        with pytest.raises(GuestError, match=reason):
            model.infer(request(x=X))
    assert list(kept(model)) == ["twice"]
    model.close()


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ('KW_TRY(build()); KW_TRY(mlx_keep(graph, KW_STR("default")));', "the model has a graph 'default'"),
        (
            'KW_TRY(kw_load_by_name(KW_STR("default"), &graph)); KW_TRY(mlx_keep(graph, KW_STR("mine")));',
            "not built of operators",
        ),
        ('KW_TRY(mlx_keep(12345, KW_STR("mine")));', "12345"),
        ('KW_TRY(build()); KW_TRY(mlx_keep(graph, "\\xff", 1));', "UTF-8"),
        (
            "KW_TRY(build()); for (char n = 0; n < 65; n++) KW_TRY(mlx_keep(graph, &n, 1));",
            f"keeps {built.MAX_NAMED} graphs",
        ),
    ],
)
def test_what_cannot_be_kept_is_told(statement: str, reason: str) -> None:
    graphs = (GraphSource("default", "onnx", data=models.identity("FP32", ["n"]).SerializeToString()),)
    model = opened(guest(load=statement), graphs=graphs)
    with pytest.raises(GuestError, match=reason):
        model.infer(request(x=X))
    model.close()


def test_a_guest_without_room_for_a_handle_leaves_no_use_behind() -> None:
    more = 'for (;;) KW_TRY(kw_load_by_name(KW_STR("twice"), &graph));'
    model = opened(guest(infer=more))
    for _ in range(3):
        with pytest.raises(GuestError, match="handles"):
            model.infer(request(x=X))
    (graph,) = kept(model).values()
    assert graph.users == 1
    model.close()
