"""``batching:``: every option in every server's words, and every way to get one wrong."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields

import pytest
import yaml
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from kserve_wasm.artifact import GraphEntry, Manifest, load_model_dir
from kserve_wasm.artifact.batching import NOTHING, resolve_batching
from kserve_wasm.artifact.config import Batching, Padding
from kserve_wasm.artifact.manifest import parse_manifest
from kserve_wasm.artifact.model_yaml import parse_model_yaml
from kserve_wasm.errors import ArtifactError, ModelLoadError
from tests.artifact.modules import artifact, write
from tests.support.counts import count

OURS = """\
batching:
  max_batch_size: 64
  preferred_batch_size: [16, 32]
  max_queue_delay: 2ms
  max_queue_size: 100
  queue_timeout: 0.5
  max_concurrent_batches: 3
  priority_levels: 5
  default_priority_level: 4
  padding:
    length: {sizes: [32, 160000], values: {ids: 1, mask: -0.5}}
  adaptive: false
"""
ALL = Batching(
    max_batch_size=64,
    preferred_batch_size=(16, 32),
    max_queue_delay=0.002,
    max_queue_size=100,
    queue_timeout=0.5,
    max_concurrent_batches=3,
    priority_levels=5,
    default_priority_level=4,
    padding={"length": Padding((32, 160_000), {"ids": 1.0, "mask": -0.5})},
    adaptive=False,
    declared=True,
)


def batching(text: str, *graphs: str, hints: dict[str, object] | None = None) -> dict[str, Batching]:
    """What is in effect for a ``model.yaml`` over a manifest's hints."""
    said = Manifest("tensor", batching=hints).batching_options() if hints else NOTHING
    return resolve_batching(said, parse_model_yaml(text.encode()).batching, graphs)


def general(text: str, **hints: object) -> Batching:
    return batching(f"batching: {text}", hints=hints)[""]


def test_every_option_is_read():
    assert batching(OURS) == {"": ALL}
    assert set(yaml.safe_load(OURS)["batching"]) | {"declared"} == {field.name for field in fields(Batching)}


@pytest.mark.parametrize("text", ["", "batching: {}", "batching: {enabled: true}", "batching: {graphs: {}}"])
def test_nothing_said_leaves_the_defaults(text):
    assert batching(text, "g") == {"": Batching(), "g": Batching()}


def test_tritons_configuration_means_the_same():
    triton = text_format.Parse(
        """
        max_batch_size: 64
        dynamic_batching {
          preferred_batch_size: [ 16, 32 ]
          max_queue_delay_microseconds: 2000
          preserve_ordering: false
          priority_levels: 5
          default_priority_level: 4
          default_queue_policy {
            timeout_action: REJECT
            default_timeout_microseconds: 500000
            allow_timeout_override: true
            max_queue_size: 100
          }
        }
        """,
        model_config_pb2.ModelConfig(),
    )
    said = json_format.MessageToDict(triton, preserving_proto_field_name=True)
    for policy in (said["dynamic_batching"], said["dynamic_batching"]["default_queue_policy"]):
        for key in policy:
            if key.endswith(("_microseconds", "_level", "_levels")):
                policy[key] = int(policy[key])  # JSON has no 64-bit numbers, and Protobuf writes text
    ours = yaml.safe_load(OURS)["batching"]
    said |= {key: ours[key] for key in ("max_concurrent_batches", "padding", "adaptive")}
    assert batching(yaml.safe_dump({"batching": said})) == {"": ALL}
    # The groups' options may as well stand without dynamic_batching around them.
    flat = {**said, **said.pop("dynamic_batching")}
    flat.pop("dynamic_batching")
    assert batching(yaml.safe_dump({"batching": flat})) == {"": ALL}


@pytest.mark.parametrize(
    "text",
    [
        "{max_queue_delay: 2ms}",
        "{max_queue_delay: 2000us}",
        "{max_queue_delay: 2000 µs}",
        "{max_queue_delay: 0.002s}",
        "{max_queue_delay: 0.002}",
        "{max_queue_delay_microseconds: 2000}",
        "{dynamic_batching: {max_queue_delay_microseconds: 2000}}",
        "{batch_wait_timeout_s: 0.002}",
        "{max_batch_time: 0.002}",
    ],
)
def test_a_delay_has_many_names(text):
    assert general(text) == Batching(max_queue_delay=0.002, adaptive=False)


@pytest.mark.parametrize(
    "text", ["{max_queue_delay: 0}", "{batch_wait_timeout_s: 0.0}", "{max_queue_delay: 0ms}"]
)
def test_no_delay_is_zero(text):
    assert general(text, max_queue_delay=1).max_queue_delay == 0


@pytest.mark.parametrize(
    "text",
    ["{max_batch_size: 1}", "{max_batch_size: 0}", "{enabled: false}", "{enabled: false, max_batch_size: 8}"],
)
def test_batching_can_be_switched_off(text):
    assert general(text, preferred_batch_size=[4]) == Batching(max_batch_size=1)


def test_a_size_in_model_yaml_declares_that_rows_are_independent_and_in_the_manifest_it_does_not():
    assert general("{max_batch_size: 8}").declared
    assert not general("{preferred_batch_size: [8]}").declared
    assert not general("{}", max_batch_size=8).declared
    assert general("{}", max_batch_size=8).max_batch_size == 8
    found = batching(
        "batching: {max_batch_size: 8, graphs: {a: {max_batch_size: 1}, b: {enabled: false}}}", *"abc"
    )
    assert {name: b.declared for name, b in found.items()} == {"": True, "a": False, "b": False, "c": True}
    found = batching("batching: {graphs: {a: {max_batch_size: 8}}}", "a", "b")
    assert {name: b.declared for name, b in found.items()} == {"": False, "a": True, "b": False}


def test_a_graph_has_the_general_options_where_it_has_none_of_its_own():
    found = batching(
        "batching: {max_batch_size: 8, max_queue_size: 3, enabled: false, graphs: {a: {max_queue_size: 4}, "
        "b: {enabled: true, batch_wait_timeout_s: 1}}}",
        *"abc",
    )
    assert found == {
        "": Batching(max_batch_size=1, max_queue_size=3),
        "a": Batching(max_batch_size=1, max_queue_size=4),
        "b": Batching(max_batch_size=8, max_queue_size=3, max_queue_delay=1.0, adaptive=False, declared=True),
        "c": Batching(max_batch_size=1, max_queue_size=3),
    }


def test_model_yaml_wins_over_the_manifests_hints_option_by_option():
    hints = {
        "max_batch_size": 16,
        "max_queue_size": 5,
        "graphs": {"a": {"max_queue_size": 6, "queue_timeout": 1}},
    }
    found = batching("batching: {max_queue_size: 7, graphs: {b: {max_batch_size: 2}}}", "a", "b", hints=hints)
    assert found == {
        "": Batching(max_batch_size=16, max_queue_size=7),
        "a": Batching(max_batch_size=16, max_queue_size=7, queue_timeout=1.0),
        "b": Batching(max_batch_size=2, max_queue_size=7, declared=True),
    }


def test_what_no_longer_fits_is_left_out():
    hints = {"preferred_batch_size": [4, 8, 16], "priority_levels": 9, "default_priority_level": 8}
    found = general("{max_batch_size: 8, priority_levels: 3}", **hints)
    assert (found.preferred_batch_size, found.default_priority_level) == ((4, 8), 2)


@pytest.mark.parametrize(("levels", "middle"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_requests_that_name_no_priority_have_the_middle_one(levels, middle):
    assert general(f"{{priority_levels: {levels}}}").default_priority_level == middle


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("32", "line 1, batching: expected a mapping, got 32"),
        ("\n  max_batch: 3", "line 1, batching: unknown key 'max_batch'; the keys here are enabled, max_batch_size"),
        ("\n  max_batch_size: -1", "line 2, batching.max_batch_size: expected an integer from 0 to 65536, got -1"),
        ("{max_batch_size: 65537}", "from 0 to 65536"),
        ("{max_batch_size: true}", "expected an integer, got True"),
        ("{max_queue_delay: -1}", "batching.max_queue_delay: expected seconds of 0 or more, got -1"),
        ("{max_queue_delay: 2 weeks}", "expected a duration such as 0.5, 500us, 2ms or 30s; got '2 weeks'"),
        ("{max_queue_delay: .inf}", "expected seconds of 0 or more, got inf"),
        ("{batch_wait_timeout_s: .nan}", "expected seconds of 0 or more, got nan"),
        ("{max_queue_delay_microseconds: 0.5}", "expected an integer, got 0.5"),
        ("{max_queue_delay_microseconds: 2ms}", "expected an integer, got '2ms'"),
        ("{max_queue_size: -1}", "max_queue_size: expected an integer from 0"),
        ("{max_concurrent_batches: -1}", "max_concurrent_batches: expected an integer from 0"),
        ("{preferred_batch_size: 8}", "preferred_batch_size: expected a list, got 8"),
        ("{preferred_batch_size: [8, 4]}", r"preferred_batch_size: expected ascending sizes, got \[8, 4\]"),
        ("{preferred_batch_size: [4, 4]}", r"expected ascending sizes, got \[4, 4\]"),
        ("{preferred_batch_size: [0]}", r"preferred_batch_size\[0\]: expected an integer from 1"),
        (
            "\n  max_batch_size: 8\n  preferred_batch_size: [4, 16]",
            "line 3, batching.preferred_batch_size: expected sizes up to max_batch_size, which is 8, got 16",
        ),
        ("{preferred_batch_size: [64]}", "up to max_batch_size, which is 32, got 64"),
        (
            "\n  dynamic_batching:\n    preferred_batch_size: [64]",
            "line 3, batching.dynamic_batching.preferred_batch_size: expected sizes up to",
        ),
        (
            "{priority_levels: 3, default_priority_level: 4}",
            "default_priority_level: expected a level up to priority_levels, which is 3, got 4",
        ),
        ("{default_priority_level: 1}", "up to priority_levels, which is 0, got 1"),
        (
            "\n  max_queue_delay: 1ms\n  batch_wait_timeout_s: 0.001",
            "line 3, batching.batch_wait_timeout_s: this is max_queue_delay, which is given already; keep one",
        ),
        (
            "{max_queue_size: 4, dynamic_batching: {default_queue_policy: {max_queue_size: 4}}}",
            "default_queue_policy.max_queue_size: this is max_queue_size, which is given already",
        ),
        ("{queue_timeout: 1, default_queue_policy: {default_timeout_microseconds: 1}}", "this is queue_timeout, which"),
        ("{preserve_ordering: true}", "preserve_ordering: this option of other servers is not heeded here"),
        ("{preserve_ordering: 0}", "this option of other servers is not heeded"),
        ("{default_queue_policy: {timeout_action: DELAY}}", "timeout_action: .* not heeded here: what waited too"),
        ("{default_queue_policy: {allow_timeout_override: false}}", "not heeded here: a request's own timeout counts"),
        ("{dynamic_batching: {priority_queue_policy: {1: {}}}}", "is not heeded here: one queue policy holds for all"),
        ("{dynamic_batching: {max_batch_size: 4}}", "batching.dynamic_batching: unknown key 'max_batch_size'"),
        ("{padding: {n: {}}}", "batching.padding.n: the key 'sizes' is missing"),
        ("{padding: {n: {sizes: []}}}", "padding.n.sizes: expected at least one size"),
        ("{padding: {n: {sizes: [4, 2]}}}", "padding.n.sizes: expected ascending sizes"),
        ("{padding: {n: {sizes: [4], values: {x: .inf}}}}", "padding.n.values.x: expected a finite number, got inf"),
        ("{padding: {n: {sizes: [4], values: {x: one}}}}", "padding.n.values.x: expected a number, got 'one'"),
        ("{padding: {3: {sizes: [4]}}}", "batching.padding: expected text as key, got 3"),
        ("{padding: {n: {size: [4]}}}", "batching.padding.n: unknown key 'size'"),
        ("\n  graphs:\n    other: {}", "line 3, batching.graphs.other: the model has no graph of this name, only: 'g'"),
        ("{graphs: {g: {graphs: {}}}}", "batching.graphs.g: unknown key 'graphs'"),
        ("{graphs: {1: {}}}", "batching.graphs: expected text as key, got 1"),
        ("{graphs: {g: {max_batch_size: 4, preferred_batch_size: [8]}}}", "graphs.g.preferred_batch_size: expected"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line_and_key(text, message):
    with pytest.raises(ModelLoadError, match=message) as caught:
        batching(f"batching: {text}", "g")
    assert str(caught.value).startswith("model.yaml, line ")


def test_every_mistake_has_a_line():
    text = "batching:\n  max_batch_size: -1\n  graphs:\n    g: {queue_timeout: soon, preferred_batch_size: 3}\nname: 3"
    with pytest.raises(ModelLoadError) as caught:
        batching(text, "g")
    assert [line.partition(": ")[0] for line in str(caught.value).split("\n")] == [
        "model.yaml, line 2, batching.max_batch_size",
        "model.yaml, line 4, batching.graphs.g.queue_timeout",
        "model.yaml, line 4, batching.graphs.g.preferred_batch_size",
        "model.yaml, line 5, name",
    ]


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        (
            f'{{"padding": {{"n": {{"sizes": [1], "values": {{"x": {10**400}}}}}}}}}',
            "padding.n.values.x: expected a finite number, got 1000",
        ),
        ('{"max_size": 8}', "manifest, batching: unknown key 'max_size'"),
        ('{"max_batch_size": "8"}', "manifest, batching.max_batch_size: expected an integer, got '8'"),
        (
            '{"graphs": {"g": {"padding": []}}}',
            "manifest, batching.graphs.g.padding: expected a mapping, got a list",
        ),
    ],
)
def test_wrong_hints_are_a_damaged_artefact(hints, message):
    with pytest.raises(ArtifactError, match=message):
        parse_manifest(f'{{"abi": "tensor", "batching": {hints}}}'.encode())


def test_hints_for_a_graph_that_is_not_there_are_a_damaged_artefact(tmp_path):
    hints = {"graphs": {"other": {"max_batch_size": 4}}}
    write(
        tmp_path / "model.wasm", artifact(Manifest("tensor", batching=hints), [(GraphEntry("g", "onnx"), [])])
    )
    with pytest.raises(
        ArtifactError, match=r"manifest, batching.graphs.other: the model has no graph.*only: 'g'"
    ):
        load_model_dir(tmp_path, "m")


def test_a_models_priorities_are_those_of_the_graph_with_the_most_levels(tmp_path):
    graphs = [(GraphEntry(name, "onnx"), []) for name in ("a", "b", "c")]
    write(tmp_path / "model.wasm", artifact(Manifest("tensor"), graphs))
    (config,) = load_model_dir(tmp_path, "m")
    assert config.priorities == (0, 0)
    (tmp_path / "model.yaml").write_text(
        "batching: {graphs: {a: {priority_levels: 3}, b: {priority_levels: 9, default_priority_level: 2}}}"
    )
    (config,) = load_model_dir(tmp_path, "m")
    assert config.priorities == (9, 2)
    assert config.batching_of("a").priority_levels == 3
    assert config.batching_of("no graph of the model") == Batching()


WORDS = st.sampled_from(
    [
        *yaml.safe_load(OURS)["batching"],
        *("enabled", "graphs", "dynamic_batching", "default_queue_policy", "max_queue_delay_microseconds"),
        *(
            "batch_wait_timeout_s",
            "max_batch_time",
            "preserve_ordering",
            "timeout_action",
            "sizes",
            "values",
            "g",
        ),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 100) | st.floats() | st.sampled_from(["2ms", "DELAY", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(0, 2), inner, max_size=5),
    max_leaves=12,
)


@given(st.dictionaries(WORDS, VALUES, max_size=5), st.dictionaries(WORDS, VALUES, max_size=3))
def test_any_options_are_refused_or_fit_together(said, hints):
    count("batching configurations resolved")
    text = yaml.safe_dump({"batching": said}, allow_unicode=True)
    with suppress(ModelLoadError):
        for found in batching(text, "g", hints=hints).values():
            assert 1 <= found.max_batch_size <= 65536
            assert all(1 <= size <= found.max_batch_size for size in found.preferred_batch_size)
            assert list(found.preferred_batch_size) == sorted(set(found.preferred_batch_size))
            assert (found.default_priority_level > 0) == (found.priority_levels > 0)
            assert found.default_priority_level <= found.priority_levels
            assert min(found.max_queue_delay, found.queue_timeout) >= 0
            assert min(found.max_queue_size, found.max_concurrent_batches) >= 0
            assert found.max_batch_size > 1 or not found.declared


@pytest.mark.parametrize(
    ("text", "adaptive"),
    [
        ("{}", True),
        ("{max_batch_size: 8}", True),
        ("{preferred_batch_size: [4, 8]}", False),
        ("{max_queue_delay: 2ms}", False),
        ("{max_queue_delay: 2ms, adaptive: true}", True),
        ("{adaptive: false}", False),
    ],
)
def test_who_names_sizes_or_a_delay_gets_them(text, adaptive):
    assert general(text).adaptive is adaptive
