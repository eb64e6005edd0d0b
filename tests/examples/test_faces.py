"""The faces example, served, against NumPy and ONNX Runtime on pictures with faces."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests.examples import faces
from tests.server.process import Server


@pytest.fixture(scope="module")
def by_hand(faces_build: ModuleType) -> faces.Model:
    session = ort.InferenceSession(faces_build.graph().SerializeToString())
    names = ["regressors", "classificators"]
    return lambda x: tuple(session.run(names, {"input": x.transpose(0, 3, 1, 2)}))


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def ask(client: triton.InferenceServerClient, image: npt.NDArray[Any]) -> triton.InferResult:
    tensor = triton.InferInput("image", image.shape, "UINT8")
    tensor.set_data_from_numpy(image)
    return client.infer("faces", [tensor])


def three(astronaut: Image.Image) -> Image.Image:
    """A picture with three faces, one of them mirrored and one smaller."""
    face = astronaut.crop((120, 30, 330, 250))
    picture = Image.new("RGB", (460, 460), "white")
    picture.paste(face, (0, 0))
    picture.paste(face.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (240, 200))
    picture.paste(face.resize((160, 168)), (250, 10))
    return picture


PICTURES = {
    "the picture": (lambda picture: picture, 1),
    "wider than high": (lambda picture: picture.crop((0, 30, 512, 300)), 1),
    "higher than wide": (lambda picture: picture.crop((130, 0, 320, 511)), 1),
    "larger than it was": (lambda picture: picture.resize((1300, 1201)), 1),
    "smaller than the model's input": (lambda picture: picture.crop((120, 30, 330, 250)).resize((90, 94)), 1),
    "three faces": (three, 3),
    "no face": (lambda picture: picture.crop((300, 250, 512, 512)), 0),
}


@pytest.mark.parametrize("name", PICTURES)
def test_faces_are_those_that_numpy_finds(
    name: str, client: Any, by_hand: faces.Model, astronaut: Image.Image
) -> None:
    change, count = PICTURES[name]
    image = np.asarray(change(astronaut))
    answer = ask(client, image[None])
    expected = faces.find(by_hand, image)
    assert len(expected.scores) == count
    for output in ("boxes", "scores", "points"):
        got = answer.as_numpy(output)
        assert got.dtype == np.float32
        assert got.shape == getattr(expected, output).shape
        np.testing.assert_allclose(got, getattr(expected, output), rtol=1e-4, atol=1e-2)


def test_the_face_is_where_it_is(client: Any, astronaut: Image.Image) -> None:
    """Places read off the picture by eye, in pixels."""
    answer = ask(client, np.asarray(astronaut)[None])
    (points,) = answer.as_numpy("points")
    seen = {"right eye": (203, 101), "left eye": (246, 103), "nose": (224, 126), "mouth": (222, 145)}
    seen |= {"right ear": (179, 118), "left ear": (272, 123)}
    np.testing.assert_allclose(points, list(seen.values()), atol=9)
    (box,) = answer.as_numpy("boxes")
    np.testing.assert_allclose(box, [180, 80, 268, 179], atol=9)  # from the hair to the chin


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((1, 1, 1, 3), "sides of 16 to 8192 pixels"),
        ((1, 0, 0, 3), "sides of 16 to 8192 pixels"),
        ((1, 20, 321, 3), "at most 16 times as long"),
        ((1, 500, 500, 4), r"\[1, -1, -1, 3\]"),
        ((2, 500, 500, 3), r"\[1, -1, -1, 3\]"),
    ],
)
def test_what_is_no_picture_is_refused(shape: tuple[int, ...], told: str, client: Any) -> None:
    with pytest.raises(InferenceServerException, match=told) as refused:
        ask(client, np.zeros(shape, np.uint8))
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_no_byte_of_a_tensor_enters_or_leaves_the_guests_memory(
    server: Server, client: Any, astronaut: Image.Image
) -> None:
    ask(client, np.asarray(astronaut)[None])
    copied = {
        dict(labels)["direction"]: value
        for (name, labels), value in server.metrics().items()
        if name == "kserve_wasm_guest_copy_bytes_total" and ("model", "faces") in labels
    }
    assert copied == {"to_guest": 0, "from_guest": 0}
