"""The orientation example, served, against NumPy and ONNX Runtime on pages whose rotation is known."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.examples import orientation
from tests.server.process import Server

SIZES = [(1240, 1754), (640, 480), (300, 400), (256, 256), (257, 391), (1500, 500), (250, 1400), (40, 60)]


@pytest.fixture(scope="module")
def session(orientation_build: ModuleType) -> ort.InferenceSession:
    return ort.InferenceSession(orientation_build.logits_graph().SerializeToString())


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def ask(client: triton.InferenceServerClient, image: npt.NDArray[Any]) -> triton.InferResult:
    tensor = triton.InferInput("image", image.shape, "UINT8")
    tensor.set_data_from_numpy(image)
    return client.infer("orientation", [tensor])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("size", SIZES)
def test_answers_are_those_of_numpy_and_onnx_runtime(
    size: tuple[int, int], degrees: int, client: Any, session: ort.InferenceSession, pages: ModuleType
) -> None:
    image = np.asarray(pages.turned(pages.page(*size, seed=degrees), degrees))
    answer = ask(client, image[None])
    rotation, probabilities = orientation.orientation(session, image)
    np.testing.assert_array_equal(answer.as_numpy("rotation"), np.array([rotation], np.int32), strict=True)
    np.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities, rtol=1e-3, atol=1e-4)
    if min(size) >= 250:  # smaller letters cannot be read
        assert rotation == degrees


def test_noise_is_answered_as_by_hand(client: Any, session: ort.InferenceSession) -> None:
    """Its neighbouring pixels differ as much as they can, so that every step of the scaling shows."""
    chance = np.random.default_rng(3)
    for size in [(32, 32), (33, 250), (224, 300), (1000, 777)]:
        image = chance.integers(0, 256, (*size, 3), np.uint8)
        _, expected = orientation.orientation(session, image)
        got = ask(client, image[None]).as_numpy("probabilities")
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((1, 1, 1, 3), "sides of 32 to 8192 pixels"),
        ((1, 0, 0, 3), "sides of 32 to 8192 pixels"),
        ((1, 0, 500, 3), "sides of 32 to 8192 pixels"),
        ((1, 32, 257, 3), "at most 8 times as long"),
        ((1, 1030, 8193, 3), "8192"),
        ((1, 500, 500, 4), r"\[1, -1, -1, 3\]"),
        ((2, 500, 500, 3), r"\[1, -1, -1, 3\]"),
        ((500, 500, 3), r"\[1, -1, -1, 3\]"),
    ],
)
def test_what_is_no_picture_is_refused(shape: tuple[int, ...], told: str, client: Any) -> None:
    with pytest.raises(InferenceServerException, match=told) as refused:
        ask(client, np.zeros(shape, np.uint8))
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_the_smallest_and_the_longest_pictures_are_taken(client: Any) -> None:
    for shape in [(1, 32, 32, 3), (1, 32, 256, 3), (1, 256, 32, 3)]:
        assert ask(client, np.zeros(shape, np.uint8)).as_numpy("probabilities").shape == (1, 4)


def test_no_byte_of_a_tensor_enters_or_leaves_the_guests_memory(server: Server, client: Any) -> None:
    ask(client, np.zeros((1, 300, 400, 3), np.uint8))
    copied = {
        dict(labels)["direction"]: value
        for (name, labels), value in server.metrics().items()
        if name == "kserve_wasm_guest_copy_bytes_total" and ("model", "orientation") in labels
    }
    assert copied == {"to_guest": 0, "from_guest": 0}
