"""What is ONNX Runtime's own: strings, open ranks, errors, memory, and the session's options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.backends.base import Graph
from kserve_wasm.backends.onnx import options as onnx_options
from kserve_wasm.errors import BackendError, DeviceUnavailable, InvalidRequest, ModelLoadError
from kserve_wasm.tensors import DTYPES, Tensor
from tests.backends import models


def opened(model: onnx.ModelProto, **options: Any) -> Graph:
    return open_graph(GraphSource("g", "onnx", data=model.SerializeToString(), options=options), "cpu")


def test_strings_are_text_in_both_directions() -> None:
    a, b = np.array(["a", "é", "", "x\0y"], dtype=object), np.array(["b", "é", "", "\0"], dtype=object)
    answer = opened(models.strings()).run({"a": Tensor.from_numpy(a), "b": Tensor.from_numpy(b)})
    assert answer["joined"].numpy().tolist() == [s.encode() for s in a + b]
    np.testing.assert_array_equal(answer["equal"].numpy(), a == b)


def test_bytes_that_are_not_utf8_are_refused_by_name_and_element() -> None:
    good, bad = np.array([b"a", b"b"], dtype=object), np.array([b"a", b"\xff\xfe"], dtype=object)
    with pytest.raises(InvalidRequest, match="input 'b': element 1 is not UTF-8"):
        opened(models.strings()).run({"a": Tensor.from_numpy(good), "b": Tensor.from_numpy(bad)})


def test_an_input_of_open_rank_takes_any_rank_but_only_its_dtype() -> None:
    graph = opened(models.identity("FP32", None))
    for shape in ((), (3,), (1, 2, 3)):
        x = np.random.default_rng(0).random(shape, dtype=np.float32)
        np.testing.assert_array_equal(graph.run({"x": Tensor.from_numpy(np.asarray(x))})["y"].numpy(), x)
    with pytest.raises(InvalidRequest, match="'x' must be FP32, got INT8"):
        graph.run({"x": Tensor.from_numpy(np.zeros(1, np.int8))})


def test_a_scalar_input_takes_scalars_only() -> None:
    graph = opened(models.identity("FP32", []))
    assert graph.run({"x": Tensor.from_numpy(np.array(2.5, np.float32))})["y"].numpy() == 2.5
    with pytest.raises(InvalidRequest, match=r"must have shape \[\] .*got \[1\]"):
        graph.run({"x": Tensor.from_numpy(np.zeros(1, np.float32))})


def test_symbols_and_sizes_reach_the_specification() -> None:
    (spec,) = opened(models.identity("INT8", ["batch", None, 7])).inputs
    assert spec.shape == ("batch", None, 7)


def test_an_index_out_of_bounds_is_the_requests_fault() -> None:
    inputs = {"x": Tensor.from_numpy(np.zeros(3, np.float32)), "i": Tensor.from_numpy(np.array([7]))}
    with pytest.raises(InvalidRequest, match=r"idx=7.*it takes x FP32.*got x FP32"):
        opened(models.gather()).run(inputs)


def test_sizes_that_differ_where_the_graph_names_them_alike_are_the_requests_fault() -> None:
    graph = opened(models.add_and_subtract())
    a, b = (Tensor.from_numpy(np.ones((n, 3), np.float32)) for n in (2, 4))
    with pytest.raises(InvalidRequest, match=r"^graph 'g': 'n' is 2 in 'a' and 4 in 'b'$"):
        graph.run({"a": a, "b": b})


def test_sizes_may_differ_where_the_graph_can_run_so() -> None:
    one = Tensor.from_numpy(np.ones((1, 3), np.float32))
    two = Tensor.from_numpy(np.ones((2, 3), np.float32))
    total = opened(models.add_and_subtract()).run({"a": one, "b": two})["sum"].numpy()
    np.testing.assert_array_equal(total, np.full((2, 3), 2, np.float32))


def test_an_output_that_is_no_tensor_is_refused_when_it_is_opened() -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    model = models.model([node], {"x": ("FP32", ["n"])}, {"y": ("FP32", ["n"])})
    sequence = helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, None)
    model.graph.output[0].CopyFrom(sequence)
    with pytest.raises(BackendError, match=r"graph 'g': output 'y' is a seq\(tensor\(float\)\)"):
        opened(model)


def test_an_operator_that_is_not_there_is_named() -> None:
    model = models.model(
        [helper.make_node("Nope", ["x"], ["y"])], {"x": ("FP32", ["n"])}, {"y": ("FP32", ["n"])}
    )
    with pytest.raises(BackendError, match=r"graph 'g' cannot be opened: .*Nope"):
        opened(model)


def test_a_missing_file_is_an_error_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        open_graph(GraphSource("g", "onnx", path=tmp_path / "model.onnx"), "cpu")
    assert str(tmp_path) not in str(caught.value)


def test_a_graph_opens_from_a_range_of_a_file(tmp_path: Path) -> None:
    graph = models.mlp().SerializeToString()
    file = tmp_path / "m.wasm"
    file.write_bytes(b"before" + graph + b"after")
    x = np.ones((2, 4), np.float32)
    source = GraphSource("g", "onnx", path=file, offset=6, length=len(graph))
    y = open_graph(source, "cpu").run({"x": Tensor.from_numpy(x)})["y"].numpy()
    np.testing.assert_allclose(y, models.mlp_oracle(x), rtol=1e-5)
    with pytest.raises(BackendError, match=f"file ends after {len(graph) + 5} of {1 << 20} bytes"):
        open_graph(GraphSource("g", "onnx", path=file, offset=6, length=1 << 20), "cpu")


INPUT_COPIES = """
import numpy as np
from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.tensors import DTYPES, Tensor
from tests.backends import models

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

n, shift = 24 << 20, {shift}
memory = np.zeros(4 * n + 1, np.uint8)
memory[:] = 1  # touched, so that only copies can add to the resident set
graph = open_graph(GraphSource("g", "onnx", data=models.gather().SerializeToString()), "cpu")
i = Tensor.from_numpy(np.array([0]))
graph.run({{"x": Tensor.from_buffer(DTYPES["FP32"], [1], bytes(4)), "i": i}})
open("/proc/self/clear_refs", "w").write("5")  # the peak becomes the present
before = status("VmHWM")
graph.run({{"x": Tensor.from_buffer(DTYPES["FP32"], [n], memory.data[shift:][:4 * n]), "i": i}})
print(status("VmHWM") - before)
"""


@pytest.mark.parametrize(("shift", "copied_kib"), [(0, 0), (1, 96 << 10)], ids=["aligned", "misaligned"])
def test_an_aligned_input_of_96_mb_is_not_copied(shift: int, copied_kib: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INPUT_COPIES.format(shift=shift)], capture_output=True, text=True, check=True
    )
    assert abs(int(done.stdout) - copied_kib) < 8 << 10


@pytest.mark.parametrize(
    "options",
    [
        {"intra_op_threads": 1},
        {"intra_op_threads": 2, "inter_op_threads": 2},
        {"providers": ["CPUExecutionProvider"]},
        {"prepacking": True},
        {"prepacking": False},
        *({"graph_optimization": level} for level in onnx_options.OPTIMIZATIONS),
        {"session": {"session.set_denormal_as_zero": True, "session.intra_op.allow_spinning": 1}},
    ],
)
def test_options_change_how_and_not_what_is_computed(options: dict[str, Any]) -> None:
    x = np.random.default_rng(1).standard_normal((5, 4), dtype=np.float32)
    y = opened(models.mlp(), **options).run({"x": Tensor.from_numpy(x)})["y"].numpy()
    np.testing.assert_allclose(y, models.mlp_oracle(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"threads": 2},
            "unknown option threads .*known: cuda_graphs, device_id, fallback, graph_optimization, inter_op_threads",
        ),
        ({"intra_op_threads": "2"}, "'intra_op_threads' .*a number of threads.*got '2'"),
        ({"intra_op_threads": True}, "'intra_op_threads'"),
        ({"inter_op_threads": -1}, "'inter_op_threads'"),
        ({"prepacking": "yes"}, "'prepacking' .*true or false, got 'yes'"),
        ({"fallback": 1}, "'fallback' .*true or false"),
        ({"providers": "CPUExecutionProvider"}, "'providers' .*a list"),
        ({"providers": []}, "'providers'"),
        (
            {"graph_optimization": "max"},
            "'graph_optimization' .*none, basic, extended, layout, all, got 'max'",
        ),
        ({"session": ["a"]}, "'session' .*a mapping"),
        ({"session": {"a": None}}, "'session'"),
        (
            {"session": {"session.disable_prepacking": "1"}},
            "cannot set 'session.disable_prepacking'; it takes: .*",
        ),
        ({"session": {"session.load_model_format": "ORT"}}, "cannot set 'session.load_model_format'"),
        (
            {"session": {"session.model_external_initializers_file_folder_path": "/"}},
            "cannot set 'session.model_",
        ),
        ({"device_id": -1}, "'device_id' .*the number of a GPU, from 0 on, got -1"),
        ({"device_id": True}, "'device_id'"),
        ({"tensorrt": 1}, "'tensorrt' .*true or false"),
        ({"cuda_graphs": "yes"}, "'cuda_graphs' .*true or false"),
        ({"provider_options": []}, "'provider_options' .*CUDAExecutionProvider, TensorrtExecutionProvider"),
        ({"provider_options": {"CPUExecutionProvider": {}}}, "'provider_options'"),
        (
            {"provider_options": {"CUDAExecutionProvider": 1}},
            "'provider_options.CUDAExecutionProvider' .*a mapping",
        ),
        (
            {"provider_options": {"CUDAExecutionProvider": {"user_compute_stream": "4096"}}},
            "cannot set 'user_compute_stream'; it takes: .*gpu_mem_limit",
        ),
        (
            {"provider_options": {"TensorrtExecutionProvider": {"trt_engine_cache_path": "/"}}},
            "cannot set 'trt_engine_cache_path'; it takes: .*trt_fp16_enable",
        ),
    ],
)
def test_a_wrong_option_says_what_is_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        opened(models.mlp(), **options)


@pytest.mark.parametrize(
    "entry",
    [
        "session.collect_node_memory_stats_to_file",
        "session.optimized_model_filepath",
        "session.node_partition_config_file",
        "session.moe_expert_counter_state_file",
        "ep.context_file_path",
    ],
)
def test_options_cannot_name_a_file_of_the_host(entry: str, tmp_path: Path) -> None:
    """They may come from a model's file, and ONNX Runtime would write there."""
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    with pytest.raises(
        ModelLoadError, match=f"cannot set '{entry}'; it takes: .*session.set_denormal_as_zero"
    ):
        opened(models.mlp(), session={entry: str(precious)})
    assert precious.read_text() == "as it was"


def test_a_provider_that_is_not_there_is_refused_unless_fallback_allows_it() -> None:
    absent = "CoreMLExecutionProvider"
    with pytest.raises(DeviceUnavailable, match=f"no {absent}, only .*CPUExecutionProvider"):
        opened(models.mlp(), providers=[absent])
    assert opened(models.mlp(), providers=[absent], fallback=True).device == "cpu"


def test_threads_default_to_what_affinity_and_quota_allow() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n" + (
        "from kserve_wasm.backends.cpus import available_cpus; print(available_cpus())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"1\n"


def test_failing_runs_write_nothing_to_the_log() -> None:
    code = """
import numpy as np
from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.errors import WasmServingError
from kserve_wasm.tensors import Tensor
from tests.backends import models
graph = open_graph(GraphSource("g", "onnx", data=models.gather().SerializeToString()), "cpu")
try:
    graph.run({"x": Tensor.from_numpy(np.zeros(3, np.float32)), "i": Tensor.from_numpy(np.array([7]))})
except WasmServingError:
    print("failed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("failed\n", "")


def test_every_dtype_of_v2_has_an_onnx_number_that_onnx_agrees_with() -> None:
    for dtype in DTYPES.values():
        if dtype.name != "BYTES":
            assert helper.tensor_dtype_to_np_dtype(dtype.onnx) == dtype.numpy
    assert DTYPES["BYTES"].onnx == onnx.TensorProto.STRING
