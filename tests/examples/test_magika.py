"""The magika example against the package ``magika`` on files of many kinds."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_wasm.artifact import load_model_dir
from kserve_wasm.artifact.config import MIB
from kserve_wasm.errors import GuestRejected, InvalidRequest
from kserve_wasm.guest import GuestModel
from kserve_wasm.protocol.checks import check_inputs
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


Answer: TypeAlias = tuple[str, str, str, str, float]


def guest_says(model: GuestModel, files: list[bytes], mode: str = "high_confidence") -> list[Answer]:
    outputs = ask(model, files, prediction_mode=mode).outputs
    rows = zip(*(outputs[name].numpy().tolist() for name in (*TEXTS, "score")), strict=True)
    return [(*(text.decode() for text in row[:4]), pytest.approx(row[4], abs=1e-5)) for row in rows]


def magika_says(oracle: ModuleType, files: list[bytes], mode: str = "high_confidence") -> list[Answer]:
    """The package's answers, its model asked about 64 files at once as the guest does.

    The score of a file depends a little on the batch that it is in, with any caller: up to 0.007 seen.
    """
    magika = oracle.Magika(prediction_mode=oracle.PredictionMode(mode))
    results, waiting = {}, []
    for i, data in enumerate(files):
        stream = oracle.types.Seekable(io.BytesIO(data))
        results[str(i)], features = magika._get_result_or_features_from_seekable(stream)
        if features is not None:
            waiting.append((Path(str(i)), features))
    for start in range(0, len(waiting), 64):
        results |= magika._get_results_from_features(waiting[start : start + 64])
    return [
        (str(r.output.label), r.output.mime_type, r.output.group, r.output.description, r.score)
        for r in (results[str(i)] for i in range(len(files)))
    ]


def test_answers_equal_those_of_magika(
    model: GuestModel, oracle: ModuleType, corpus: dict[str, bytes]
) -> None:
    magika = oracle.Magika()
    assert len(corpus) >= 60
    for name, data in corpus.items():
        (answer,) = guest_says(model, [data])
        says = magika.identify_bytes(data)
        expected = says.output
        texts = (str(expected.label), expected.mime_type, expected.group, expected.description)
        assert answer == (*texts, says.score), name


@pytest.mark.parametrize("mode", ["high_confidence", "medium_confidence", "best_guess"])
def test_many_files_in_one_request_are_answered_as_magika_answers_them(
    mode: str, model: GuestModel, oracle: ModuleType, corpus: dict[str, bytes]
) -> None:
    files = list(corpus.values())
    assert guest_says(model, files, mode) == magika_says(oracle, files, mode)


def test_the_files_are_of_many_kinds(model: GuestModel, corpus: dict[str, bytes]) -> None:
    labels = ask(model, list(corpus.values())).outputs["label"].numpy()
    assert len(set(labels)) >= 40


def test_pieces_of_files_are_answered_as_magika_answers_them(
    model: GuestModel, oracle: ModuleType, corpus: dict[str, bytes]
) -> None:
    pieces = []
    for data in corpus.values():
        pieces += [data[:n] for n in (3, 9, 60, 1500, 4097)]
        pieces += [data[-n:] for n in (30, 2048)]
        pieces.append(b"\n\t " * 500 + data[:3000] + b" \r\n" * 700)
    assert guest_says(model, pieces) == magika_says(oracle, pieces)


@given(files=st.lists(st.binary(max_size=200) | st.text(max_size=50).map(str.encode), max_size=5))
def test_any_bytes_are_answered_as_magika_answers_them(
    files: list[bytes], model: GuestModel, oracle: ModuleType
) -> None:
    assert guest_says(model, files) == magika_says(oracle, files)


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
        inputs = {"contents": Tensor.from_numpy(wrong)}
        with pytest.raises(InvalidRequest, match="contents"):
            check_inputs(inputs, model.inputs)
        # The guest does not rely on a host that checks.
        with pytest.raises(GuestRejected, match="contents"):
            model.infer(InferenceRequest(inputs))


def test_the_artefact_says_what_goes_in_and_comes_out(model: GuestModel) -> None:
    assert [(i.name, i.dtype.name, i.v2_shape) for i in model.inputs] == [("contents", "BYTES", [-1])]
    outputs = {o.name: (o.dtype.name, o.v2_shape) for o in model.outputs}
    assert outputs == {"score": ("FP32", [-1])} | dict.fromkeys(TEXTS, ("BYTES", [-1]))


def test_the_pinned_package_is_the_one_that_is_used(build: ModuleType, oracle: ModuleType) -> None:
    assert Path(str(oracle.__file__)).is_relative_to(build.package())
