"""The magika example against the package ``magika`` on files of many kinds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_wasm.artifact import load_model_dir
from kserve_wasm.artifact.config import MIB
from kserve_wasm.errors import GuestRejected, InvalidRequest
from kserve_wasm.guest import GuestModel
from kserve_wasm.request import InferenceRequest, InferenceResponse, Parameter
from kserve_wasm.tensors import Tensor
from tests.examples.magika import MAGIKA

TEXTS = ("label", "mime_type", "group", "description")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestModel]:
    folder = tmp_path_factory.mktemp("magika")
    subprocess.run([sys.executable, MAGIKA / "build.py", "-o", folder / "model.wasm"], check=True)
    (config,) = load_model_dir(folder, "magika")
    model = GuestModel(config)
    model.load()
    yield model
    model.close()


@pytest.fixture(scope="module")
def corpus(samples: ModuleType) -> dict[str, bytes]:
    return dict(samples.samples())


def ask(
    model: GuestModel, files: list[bytes], outputs: list[str] | None = None, **parameters: Parameter
) -> InferenceResponse:
    contents = np.empty(len(files), object)
    contents[:] = files
    return model.infer(InferenceRequest({"contents": Tensor.from_numpy(contents)}, outputs, parameters))


def differences(
    model: GuestModel, oracle: ModuleType, files: dict[str, bytes], mode: str = "high_confidence"
) -> list[str]:
    """Ask both about all files, and say where they disagree."""
    magika = oracle.Magika(prediction_mode=oracle.PredictionMode(mode))
    answer = ask(model, list(files.values()), prediction_mode=mode).outputs
    rows = zip(files, zip(*(answer[name].numpy() for name in (*TEXTS, "score")), strict=True), strict=True)
    found = []
    for name, row in rows:
        expected = magika.identify_bytes(files[name])
        output = expected.output
        texts = (str(output.label), output.mime_type, output.group, output.description)
        if tuple(text.decode() for text in row[:4]) != texts or abs(row[4] - expected.score) > 1e-4:
            found.append(f"{name}: {row}, magika says {texts} {expected.score}")
    return found


@pytest.mark.parametrize("mode", ["high_confidence", "medium_confidence", "best_guess"])
def test_answers_equal_those_of_magika(
    mode: str, model: GuestModel, oracle: ModuleType, corpus: dict[str, bytes]
) -> None:
    assert len(corpus) >= 60
    assert differences(model, oracle, corpus, mode) == []


def test_the_files_are_of_many_kinds(model: GuestModel, corpus: dict[str, bytes]) -> None:
    labels = ask(model, list(corpus.values())).outputs["label"].numpy()
    assert len(set(labels)) >= 40


def test_answers_equal_those_of_magika_on_pieces_of_files(
    model: GuestModel, oracle: ModuleType, corpus: dict[str, bytes]
) -> None:
    pieces = {}
    for name, data in corpus.items():
        pieces |= {f"{name}[:{n}]": data[:n] for n in (3, 9, 60, 1500, 4097)}
        pieces |= {f"{name}[-{n}:]": data[-n:] for n in (30, 2048)}
        pieces[f"{name} in white space"] = b"\n\t " * 500 + data[:3000] + b" \r\n" * 700
    assert differences(model, oracle, pieces) == []


@given(files=st.lists(st.binary(max_size=200) | st.text(max_size=50).map(str.encode), max_size=5))
def test_answers_equal_those_of_magika_on_any_bytes(
    files: list[bytes], model: GuestModel, oracle: ModuleType
) -> None:
    assert differences(model, oracle, {str(i): data for i, data in enumerate(files)}) == []


def test_batches_answer_as_single_files_do(model: GuestModel, corpus: dict[str, bytes]) -> None:
    files = [data for data in corpus.values() for _ in range(3)]
    together = ask(model, files).outputs
    for i in range(0, len(files), 7):
        alone = ask(model, [files[i]]).outputs
        assert [alone[name].numpy()[0] for name in TEXTS] == [together[name].numpy()[i] for name in TEXTS]


def test_no_file_gets_no_answer(model: GuestModel) -> None:
    answer = ask(model, []).outputs
    assert {name: tensor.shape for name, tensor in answer.items()} == dict.fromkeys((*TEXTS, "score"), (0,))


def test_a_hundred_thousand_empty_files_are_answered(model: GuestModel) -> None:
    answer = ask(model, [b""] * 100_000, ["label", "score"]).outputs
    assert set(answer) == {"label", "score"}
    assert set(answer["label"].numpy()) == {b"empty"}
    assert (answer["score"].numpy() == 1).all()


def test_a_large_file_stays_outside_the_sandbox(model: GuestModel, samples: ModuleType) -> None:
    small = GuestModel(replace(model.config, limits=replace(model.config.limits, memory=2 * MIB)))
    small.load()
    answer = ask(small, [samples.document() + bytes(40 * MIB)], ["label"]).outputs
    assert answer["label"].numpy().tolist() == [b"pdf"]
    small.close()


def test_a_mode_that_is_none_is_refused_with_those_there_are(model: GuestModel) -> None:
    for mode in ("guess", "", "x" * 1000, True):
        with pytest.raises(GuestRejected, match="high_confidence, medium_confidence or best_guess"):
            ask(model, [b"x"], prediction_mode=mode)


def test_contents_that_are_not_a_list_of_files_are_refused(model: GuestModel) -> None:
    for wrong in (np.zeros(3, np.uint8), np.array([[b"x"]], object)):
        with pytest.raises(InvalidRequest, match="contents"):
            model.infer(InferenceRequest({"contents": Tensor.from_numpy(wrong)}))


def test_the_artefact_says_what_goes_in_and_comes_out(model: GuestModel) -> None:
    assert [(i.name, i.dtype.name, i.v2_shape) for i in model.inputs] == [("contents", "BYTES", [-1])]
    outputs = {o.name: (o.dtype.name, o.v2_shape) for o in model.outputs}
    assert outputs == {"score": ("FP32", [-1])} | dict.fromkeys(TEXTS, ("BYTES", [-1]))


def test_the_pinned_package_is_the_one_that_is_used(build: ModuleType, oracle: ModuleType) -> None:
    assert Path(str(oracle.__file__)).is_relative_to(build.package())
