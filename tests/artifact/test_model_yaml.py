"""``model.yaml``: every key, and every way to get one wrong."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_wasm.artifact.config import Instances, Limits
from kserve_wasm.artifact.model_yaml import GraphOverride, parse_model_yaml, read_model_yaml
from kserve_wasm.errors import ModelLoadError
from kserve_wasm.tensors import DTYPES, TensorSpec
from tests.support.counts import count

EVERYTHING = b"""\
module: guest.wasm
name: sentiment
version: 3
inputs:
  - {name: text, datatype: BYTES, shape: [batch, 1]}
outputs:
  - {name: label, datatype: BYTES, shape: [-1]}
graphs:
  - name: default
    options: {intra_op_threads: 2}
  - name: tokens
    path: graphs/tokens.onnx
    encoding: onnx
device: gpu
limits:
  memory: 64Mi
  table_elements: 10
  handles: 20
  tensor_bytes: 1G
  log_bytes: 0.5Ki
  timeout: 2.5
instances: {reuse: true, workers: 4, queue: 8}
parameters: {labels: "good,bad", top: 3, verbose: true, scale: 0.5}
batching: {max_batch_size: 16}
nn: {allow_load: true, max_load_bytes: 10Mi}
"""


def test_every_key_is_read():
    found = parse_model_yaml(EVERYTHING)
    assert (found.module, found.name, found.version, found.device) == ("guest.wasm", "sentiment", "3", "gpu")
    assert found.inputs == (TensorSpec("text", DTYPES["BYTES"], ("batch", 1)),)
    assert found.outputs == (TensorSpec("label", DTYPES["BYTES"], (None,)),)
    assert found.graphs == (
        GraphOverride("default", options={"intra_op_threads": 2}),
        GraphOverride("tokens", path="graphs/tokens.onnx", encoding="onnx"),
    )
    assert found.limits == Limits(
        memory=64 * 2**20,
        table_elements=10,
        handles=20,
        tensor_bytes=10**9,
        log_bytes=512,
        timeout=2.5,
        load_bytes=10 * 2**20,
    )
    assert found.instances == Instances(reuse=True, workers=4, queue=8)
    assert found.parameters == {"labels": "good,bad", "top": "3", "verbose": "true", "scale": "0.5"}
    assert {name: option.value for name, option in found.batching.general.items()} == {"max_batch_size": 16}


@pytest.mark.parametrize("data", [b"", b"# nothing\n", b"{}"])
def test_an_empty_file_says_nothing(data):
    found = parse_model_yaml(data)
    assert (found.name, found.limits, found.inputs, dict(found.document)) == (None, Limits(), None, {})


@pytest.mark.parametrize(
    ("nn", "load_bytes"),
    [
        (b"{}", 0),
        (b"{allow_load: false}", 0),
        (b"{max_load_bytes: 1Mi}", 0),
        (b"{allow_load: true}", 64 * 2**20),
        (b"{allow_load: true, max_load_bytes: 0}", 0),
    ],
)
def test_graphs_of_the_guests_own_are_loaded_only_where_it_is_allowed(nn, load_bytes):
    assert parse_model_yaml(b"nn: " + nn).limits.load_bytes == load_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nme: x", "line 1: unknown key 'nme'; the keys here are module, name"),
        ("name: x\nname: y", "line 2, name: the key is there twice"),
        ("name: [x", "line 1: expected YAML"),
        ("a: &a [x]\nb: *a", "anchors and aliases"),
        ("x: &x [*x]", "anchors and aliases|expected YAML"),
        (
            "name: !!python/object/apply:os.system [ls]",
            "line 1: expected YAML: could not determine a constructor",
        ),
        ("- name", "expected a mapping, got a list"),
        ("name: 3", "line 1, name: expected text, got 3"),
        ("name: a/b", "line 1, name: expected letters"),
        ("version: 1.10", "version: expected text; put the version in quotes"),
        ("version: -1", "version: expected an integer from 0"),
        ("device: tpu", "device: expected one of cpu, gpu; got 'tpu'"),
        ("limits:\n  memory: lots", "line 2, limits.memory: expected a size such as"),
        ("limits:\n  memory: 8Gi", "line 2, limits.memory: expected a size from 0 to 4294967296"),
        ("limits:\n  load_bytes: 5", "line 1, limits: unknown key 'load_bytes'"),
        ("limits: {timeout: 0}", "limits.timeout: expected seconds above 0"),
        ("limits: {timeout: .nan}", "limits.timeout: expected seconds above 0"),
        ("limits: {timeout: true}", "limits.timeout: expected"),
        (
            "limits: {timeout: soon}",
            "limits.timeout: expected a duration such as 0.5, 500us, 2ms or 30s; got 'soon'",
        ),
        ("limits: {timeout: 0ms}", "limits.timeout: expected seconds above 0"),
        ("limits: {handles: -1}", "limits.handles: expected an integer from 0"),
        ("instances: {reuse: 1}", "instances.reuse: expected true or false, got 1"),
        (
            "inputs:\n  - name: x\n    datatype: FP31\n    shape: [1]",
            r"line 3, inputs\[0\].datatype: expected one of",
        ),
        ("graphs:\n  - path: x", r"line 2, graphs\[0\]: the key 'name' is missing"),
        ("graphs: [{name: a}, {name: a}]", "the graph 'a' is listed twice"),
        ("parameters: {a: [1]}", "parameters.a: expected text, a number"),
        ("parameters: {1: a}", "parameters: expected text as key"),
        (
            "graphs: [{name: g, options: {until: 2001-09-09}}]",
            r"graphs\[0\].options.until: expected text, a number.*got a date",
        ),
        ("graphs: [{name: g, options: {a: [{b: .inf}]}}]", r"options.a\[0\].b: expected a finite number"),
        ("graphs: [{name: g, options: {a: {1: 2}}}]", r"graphs\[0\].options.a: expected text as key, got 1"),
        ("nn: yes please", "nn: expected a mapping"),
        ("when: 2001-99-99", "expected YAML"),
        ("? [a]\n: b", "expected YAML|unknown key"),
        ("name: 'a\x00b'", "expected YAML"),
        ("limits: {table_elements: 100001}", "from 0 to 100000, got 100001"),
        ('parameters: {a: "\\ud800"}', "line 1: expected Unicode text, got half of a surrogate pair"),
        ('batching: {a: [{"\\udfff": 1}]}', "line 1: expected Unicode text"),
        ('"\\ud800": 1', "line 1: expected Unicode text"),
        ("limits:\n  handles: 0x" + "f" * 5000, "line 2: expected a number of 64 bits, got one of 5002 "),
        ("parameters: {a: 0x" + "f" * 5000 + "}", "line 1: expected a number of 64 bits"),
        ("? 0x" + "f" * 5000 + "\n: 1", "line 1: expected a number of 64 bits"),
        ("name: 1" + ":10" * 5000, "line 1: expected a number of 64 bits"),
        ("name: 1" + ":10" * 5000 + ".5", "line 1: expected a number of 64 bits"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_key(text, message):
    with pytest.raises(ModelLoadError, match=message):
        parse_model_yaml(text.encode())


def test_every_mistake_has_a_line():
    text = b"nme: x\nname: a/b\nlimits:\n  memory: lots\n  handles: -1\ndevice: tpu\nversion: 3\n"
    with pytest.raises(ModelLoadError) as caught:
        parse_model_yaml(text)
    assert [re.split("; |: expected", line)[0] for line in str(caught.value).split("\n")] == [
        "model.yaml, line 1: unknown key 'nme'",
        "model.yaml, line 2, name",
        "model.yaml, line 4, limits.memory",
        "model.yaml, line 5, limits.handles",
        "model.yaml, line 6, device",
    ]


@pytest.mark.parametrize("data", [b"\xff\xfe\xff", b"[" * 5000, b"a: " * 5000, b"\x80abc"])
def test_what_is_no_yaml_is_refused(data):
    with pytest.raises(ModelLoadError):
        parse_model_yaml(data)


def test_a_huge_file_is_refused(tmp_path):
    (tmp_path / "model.yaml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ModelLoadError, match="larger than 1048576 bytes"):
        read_model_yaml(tmp_path / "model.yaml")


LINES = EVERYTHING.splitlines(keepends=True)


@given(st.lists(st.sampled_from(LINES) | st.binary(max_size=20), max_size=12))
def test_any_text_is_read_or_refused(lines):
    count("model.yaml files parsed")
    with suppress(ModelLoadError):
        parse_model_yaml(b"".join(lines))
