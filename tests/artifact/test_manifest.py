"""The manifest's schema."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_wasm.artifact.manifest import Manifest, parse_manifest
from kserve_wasm.errors import ArtifactError
from tests.support.counts import count

SPEC = {"name": "x", "datatype": "FP32", "shape": [-1, "n", 3]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected a mapping, got a list"),
        ({}, "the key 'abi' is missing"),
        ({"abi": "tensor-9"}, "abi: expected the guest ABI tensor, got 'tensor-9'"),
        ({"abi": 1}, "abi: expected text, got 1"),
        ({"abi": "tensor", "extra": 1}, "unknown key 'extra'; the keys here are abi, name"),
        ({"abi": "tensor", "name": "../etc"}, "name: expected letters"),
        ({"abi": "tensor", "version": 3}, "version: expected text, got 3"),
        ({"abi": "tensor", "inputs": {}}, "inputs: expected a list, got a mapping"),
        (
            {"abi": "tensor", "inputs": [{**SPEC, "datatype": "FLOAT"}]},
            r"inputs\[0\].datatype: expected one of BOOL",
        ),
        (
            {"abi": "tensor", "inputs": [{**SPEC, "shape": [1.5]}]},
            r"inputs\[0\].shape\[0\]: expected an integer",
        ),
        ({"abi": "tensor", "inputs": [{**SPEC, "shape": [-2]}]}, r"shape\[0\]: expected an integer from -1"),
        (
            {"abi": "tensor", "inputs": [{**SPEC, "shape": [True]}]},
            r"shape\[0\]: expected an integer, got True",
        ),
        ({"abi": "tensor", "inputs": [{**SPEC, "shape": [""]}]}, "got an empty string"),
        (
            {"abi": "tensor", "inputs": [{"name": "x", "shape": []}]},
            r"inputs\[0\]: the key 'datatype' is missing",
        ),
        ({"abi": "tensor", "inputs": [SPEC, SPEC]}, "'x' is listed twice"),
        ({"abi": "tensor", "inputs": [{**SPEC, "name": "\x1b[2J"}]}, "without control characters"),
        ({"abi": "tensor", "graphs": [{"name": "g"}]}, "the key 'encoding' is missing"),
        (
            {
                "abi": "tensor",
                "graphs": [{"name": "g", "encoding": "onnx", "weights": [{"offset": -1, "length": 1}]}],
            },
            r"graphs\[0\].weights\[0\].offset: expected an integer from 0",
        ),
        (
            {"abi": "tensor", "graphs": [{"name": "g", "encoding": "onnx"}] * 2},
            "the graph 'g' is listed twice",
        ),
        ({"abi": "tensor", "batching": 1}, "batching: expected a mapping, got 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(document, message):
    with pytest.raises(ArtifactError, match=message):
        parse_manifest(json.dumps(document).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"abi": "tensor", "abi": "tensor"}',
        b'{"abi": "tensor", "batching": {"a": NaN}}',
        b'{"abi": "tensor", "batching": {"a": "\\ud800"}}',
        b"[" * 100_000,
        b'{"abi": ' + b"1" * 5000 + b"}",
    ],
)
def test_what_is_no_json_is_refused(data):
    with pytest.raises(ArtifactError, match="manifest: expected JSON"):
        parse_manifest(data)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
KEYS = st.sampled_from(
    ["abi", "name", "version", "inputs", "outputs", "graphs", "batching", "producer", "other"]
)


@given(st.dictionaries(KEYS, JSON, max_size=8).map(lambda d: {"abi": "tensor", **d}))
def test_any_json_is_read_or_refused(document):
    count("manifests parsed")
    try:
        manifest = parse_manifest(json.dumps(document).encode())
    except ArtifactError:
        return
    assert parse_manifest(manifest.encode()) == manifest


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_or_read(data):
    count("manifests parsed")
    try:
        parse_manifest(data)
    except ArtifactError:
        return
    json.loads(data)


def test_the_smallest_manifest_is_an_abi():
    assert parse_manifest(b'{"abi": "tensor"}') == Manifest("tensor")
