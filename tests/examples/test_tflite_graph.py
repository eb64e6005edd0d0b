"""The faces example's ONNX graph against LiteRT on the weights that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from tests.examples import faces
from tests.support import require

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def converted(faces_build: ModuleType) -> faces.Model:
    """The ONNX graph, which takes NCHW."""
    session = ort.InferenceSession(faces_build.graph().SerializeToString())
    names = ["regressors", "classificators"]
    return lambda x: tuple(session.run(names, {"input": x.transpose(0, 3, 1, 2)}))


@pytest.fixture(scope="session")
def original(faces_build: ModuleType) -> Callable[[Floats], Any]:
    """The TFLite model in LiteRT."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        require(False, "ai-edge-litert is not installed")
    interpreter = Interpreter(model_content=faces_build.weights())
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    outputs = {output["name"]: output["index"] for output in interpreter.get_output_details()}

    def run(x: Floats) -> Any:
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return tuple(interpreter.get_tensor(outputs[name]) for name in ("regressors", "classificators"))

    return run


@pytest.mark.parametrize("seed", range(4))
def test_the_graph_gives_what_tflite_gives(seed: int, converted: faces.Model, original: faces.Model) -> None:
    x = np.random.default_rng(seed).uniform(-1, 1, (1, 128, 128, 3)).astype(np.float32)
    for got, expected in zip(converted(x), original(x), strict=True):
        assert np.abs(expected).max() > 10
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=5e-4)


def test_rows_of_a_batch_are_independent(converted: faces.Model) -> None:
    x = np.random.default_rng(9).uniform(-1, 1, (3, 128, 128, 3)).astype(np.float32)
    alone = [converted(row[None]) for row in x]
    for got, expected in zip(converted(x), map(np.concatenate, zip(*alone, strict=True)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_faces_are_found_where_tflite_finds_them(
    converted: faces.Model, original: faces.Model, astronaut: Any
) -> None:
    image = np.asarray(astronaut)
    got, expected = faces.find(converted, image), faces.find(original, image)
    assert len(expected.boxes) == 1
    for name in ("boxes", "scores", "points"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-4, atol=1e-2)
