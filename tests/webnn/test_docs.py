"""docs/operators.md names every operator, and its guest does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from kserve_wasm.guest import GuestModel
from kserve_wasm.webnn.operator import OPERATORS
from tests.guest.support import request
from tests.guest.test_operators import config

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()


def test_the_table_names_every_operator_and_no_other() -> None:
    rows = re.findall(r"^\| [^|]+ \| (`.*) \|$", PAGE, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(OPERATORS)


def test_the_guest_of_the_page_gives_the_three_best_classes() -> None:
    (source,) = re.findall(r"^```c[^\n]*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    model = GuestModel(config(source))
    model.load()
    scores = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    outputs = {name: tensor.numpy() for name, tensor in model.infer(request(scores=scores)).outputs.items()}
    model.close()
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["probabilities"], probabilities, rtol=1e-5)
    classes = np.argsort(-scores, axis=1)[:, :3]
    np.testing.assert_array_equal(outputs["classes"], classes)
    np.testing.assert_allclose(outputs["best"], np.take_along_axis(probabilities, classes, axis=1), rtol=1e-5)
