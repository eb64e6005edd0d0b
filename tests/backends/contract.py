"""What every backend must do. A backend's test module subclasses :class:`GraphContract` and says how to make graphs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from kserve_wasm.backends import Device, Graph, GraphSource, open_graph
from kserve_wasm.errors import (
    BackendError,
    DeadlineExceeded,
    DeviceUnavailable,
    InvalidRequest,
    ModelNotReady,
)
from kserve_wasm.tensors import DTYPES, DType, Tensor
from tests.backends.models import mlp_oracle

SHAPES = [(), (0,), (0, 4), (1,), (5,), (2, 3), (3, 1, 2), (2, 2, 2, 2), (1000, 257)]


class Begun(dict[str, Tensor]):
    """Inputs that tell when a run has begun: when it looks at them."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        super().__init__(inputs)
        self.begun = threading.Event()

    def __getitem__(self, name: str) -> Tensor:
        self.begun.set()
        return super().__getitem__(name)


def some_tensor(dtype: DType, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random elements: for numbers every bit pattern, NaNs included; for BYTES, text with NUL and beyond ASCII."""
    rng = np.random.default_rng(seed)
    count = math.prod(shape)
    if dtype.name == "BYTES":
        choice = np.array(["", "a", "é\0z", "日本語", "x" * 300], dtype=object)
        return Tensor.from_numpy(rng.choice(choice, size=shape) if shape else choice[2:3].reshape(()))
    if dtype.name == "BOOL":
        return Tensor.from_numpy(rng.integers(0, 2, shape).astype(bool).reshape(shape))
    return Tensor.from_buffer(dtype, shape, rng.bytes(count * dtype.itemsize))


class GraphContract:
    """The contract. Its graphs are those of :mod:`tests.backends.models`, or equal ones in the backend's format."""

    dtypes: tuple[str, ...]
    """The V2 datatypes that the backend's graphs can have."""
    device: Device = "cpu"
    """Where the graphs run."""

    def open(self, source: GraphSource) -> Graph:
        """Opens a graph where the graphs run."""
        return open_graph(source, self.device)

    def identity(self, dtype: str, rank: int) -> GraphSource:
        """``y = x``, every dimension open."""
        raise NotImplementedError

    def add_and_subtract(self) -> GraphSource:
        """FP32 ``a``, ``b`` [n, 3] → ``sum``, ``difference``."""
        raise NotImplementedError

    def mlp(self) -> GraphSource:
        """FP32 ``x`` [batch, 4] → ``y`` [batch, 3], as :func:`tests.backends.models.mlp`."""
        raise NotImplementedError

    def count(self) -> GraphSource:
        """INT64 ``n`` [] → ``y`` [1] = n, in n steps."""
        raise NotImplementedError

    def failing(self) -> tuple[GraphSource, dict[str, Tensor]]:
        """A graph, and inputs that fit its specifications but not its arithmetic."""
        raise NotImplementedError

    def damaged(self) -> GraphSource:
        """Bytes that are no graph."""
        raise NotImplementedError

    def has_gpu(self) -> bool:
        """Whether the backend can use a GPU here."""
        raise NotImplementedError

    @pytest.fixture
    def adder(self) -> Iterator[Graph]:
        graph = self.open(self.add_and_subtract())
        yield graph
        graph.close()

    def test_every_dtype_and_shape_passes_unchanged(self) -> None:
        for name in self.dtypes:
            for rank in {len(shape) for shape in SHAPES}:
                graph = self.open(self.identity(name, rank))
                for shape in (s for s in SHAPES if len(s) == rank):
                    x = some_tensor(DTYPES[name], shape)
                    y = graph.run({"x": x})["y"]
                    assert (y.dtype, y.shape) == (x.dtype, shape)
                    assert y.buffer() == x.buffer(), f"{name} {shape}"
                graph.close()

    def test_12_mb_pass_unchanged(self) -> None:
        x = some_tensor(DTYPES["FP32"], (3, 1024, 1024))
        y = self.open(self.identity("FP32", 3)).run({"x": x})["y"]
        assert y.shape == x.shape
        assert y.buffer() == x.buffer()

    def test_data_may_begin_at_any_byte(self) -> None:
        for name in (n for n in self.dtypes if n != "BYTES"):
            x = some_tensor(DTYPES[name], (33, 5))
            moved = Tensor.from_buffer(x.dtype, x.shape, memoryview(b"." + bytes(x.buffer()))[1:])
            y = self.open(self.identity(name, 2)).run({"x": moved})["y"]
            assert y.buffer() == x.buffer(), name
        rows = np.random.default_rng(0).standard_normal((64, 4), dtype=np.float32)
        moved = Tensor.from_buffer(DTYPES["FP32"], rows.shape, memoryview(b"." + rows.tobytes())[1:])
        np.testing.assert_allclose(
            self.open(self.mlp()).run({"x": moved})["y"].numpy(),
            mlp_oracle(rows),
            rtol=1e-4,
            atol=1e-5,
        )

    def test_answers_do_not_share_memory_with_the_request(self) -> None:
        memory = bytearray(np.arange(6, dtype=np.float32).tobytes())
        x = Tensor.from_buffer(DTYPES["FP32"], [6], memory)
        y = self.open(self.identity("FP32", 1)).run({"x": x})["y"]
        memory[:] = bytes(len(memory))
        np.testing.assert_array_equal(y.numpy(), np.arange(6, dtype=np.float32))

    def test_answers_outlive_their_graph(self) -> None:
        graph = self.open(self.identity("FP32", 1))
        x = some_tensor(DTYPES["FP32"], (100_000,))
        y = graph.run({"x": x})["y"]
        graph.close()
        del graph
        assert y.buffer() == x.buffer()

    def test_several_inputs_and_outputs_go_by_name_in_any_order(self, adder: Graph) -> None:
        rng = np.random.default_rng(0)
        for n in (0, 1, 7):
            a, b = rng.standard_normal((2, n, 3)).astype(np.float32)
            answer = adder.run({"b": Tensor.from_numpy(b), "a": Tensor.from_numpy(a)})
            assert set(answer) == {"sum", "difference"}
            np.testing.assert_array_equal(answer["sum"].numpy(), a + b)
            np.testing.assert_array_equal(answer["difference"].numpy(), a - b)

    def test_metadata_are_the_graphs(self, adder: Graph) -> None:
        assert (adder.name, adder.device) == (self.add_and_subtract().name, self.device)
        assert [s.name for s in adder.inputs] == ["a", "b"]
        assert [s.name for s in adder.outputs] == ["sum", "difference"]
        for spec in (*adder.inputs, *adder.outputs):
            assert spec.dtype is DTYPES["FP32"]
            assert spec.v2_shape == [-1, 3]

    def test_missing_and_unknown_inputs_are_named(self, adder: Graph) -> None:
        x = some_tensor(DTYPES["FP32"], (1, 3))
        with pytest.raises(InvalidRequest, match="'b' is missing"):
            adder.run({"a": x})
        with pytest.raises(InvalidRequest, match=r"'c' is unknown.*'a', 'b'"):
            adder.run({"a": x, "b": x, "c": x})
        with pytest.raises(InvalidRequest, match=r"'a' is missing.*'b' is missing"):
            adder.run({})

    def test_a_wrong_dtype_says_expected_and_came(self, adder: Graph) -> None:
        good, bad = some_tensor(DTYPES["FP32"], (1, 3)), some_tensor(DTYPES["INT64"], (1, 3))
        with pytest.raises(InvalidRequest, match="'b' must be FP32, got INT64"):
            adder.run({"a": good, "b": bad})

    @pytest.mark.parametrize("shape", [(), (3,), (1, 4), (1, 3, 1), (0, 0)])
    def test_a_wrong_shape_says_expected_and_came(self, adder: Graph, shape: tuple[int, ...]) -> None:
        good, bad = some_tensor(DTYPES["FP32"], (1, 3)), some_tensor(DTYPES["FP32"], shape)
        with pytest.raises(InvalidRequest) as caught:
            adder.run({"a": good, "b": bad})
        assert "'b'" in str(caught.value)
        assert "[-1, 3]" in str(caught.value)
        assert str(list(shape)) in str(caught.value)

    def test_a_failure_inside_names_inputs_and_shapes_and_hides_the_host(self) -> None:
        source, inputs = self.failing()
        graph = self.open(source)
        with pytest.raises(BackendError) as caught:
            graph.run(inputs)
        message = str(caught.value)
        for spec in graph.inputs:
            assert f"{spec.name} {spec.dtype} {spec.v2_shape}" in message
            assert f"{spec.name} {spec.dtype} {list(inputs[spec.name].shape)}" in message
        assert ".cc" not in message
        assert ".py" not in message
        assert "onnxruntime_src" not in message

    def test_a_failure_leaves_the_graph_fit(self, adder: Graph) -> None:
        x = some_tensor(DTYPES["INT64"], (1, 3))
        with pytest.raises(InvalidRequest):
            adder.run({"a": x, "b": x})
        one = Tensor.from_numpy(np.ones((1, 3), np.float32))
        np.testing.assert_array_equal(adder.run({"a": one, "b": one})["sum"].numpy(), [[2, 2, 2]])

    def test_bytes_that_are_no_graph_are_refused(self) -> None:
        with pytest.raises(BackendError, match=f"graph '{self.damaged().name}'"):
            self.open(self.damaged())

    def test_a_deadline_stops_a_run(self) -> None:
        graph = self.open(self.count())
        forever = Tensor.from_numpy(np.array(1 << 60))
        for _ in range(2):
            with pytest.raises(DeadlineExceeded, match=f"graph '{graph.name}'"):
                graph.run({"n": forever}, time.monotonic() + 0.1)
        assert graph.run({"n": Tensor.from_numpy(np.array(9))}, time.monotonic() + 60)["y"].numpy() == [9]

    def test_a_deadline_in_the_past_runs_nothing(self) -> None:
        graph = self.open(self.count())
        with pytest.raises(DeadlineExceeded):
            graph.run({"n": Tensor.from_numpy(np.array(1))}, time.monotonic() - 1)

    def test_a_deadline_stops_only_its_own_run(self) -> None:
        graph = self.open(self.count())
        forever = {"n": Tensor.from_numpy(np.array(1 << 60))}

        def late() -> None:
            with pytest.raises(DeadlineExceeded):
                graph.run(forever, time.monotonic() + 0.1)

        with ThreadPoolExecutor(4) as pool:
            stopped = [pool.submit(late) for _ in range(2)]
            others = [Begun({"n": Tensor.from_numpy(np.array(100_000))}) for _ in range(2)]
            answers = [pool.submit(graph.run, other, time.monotonic() + 120) for other in others]
            for future in stopped:
                future.result()
            assert [int(answer.result()["y"].numpy()[0]) for answer in answers] == [100_000] * 2

    def test_many_threads_get_their_own_answers(self) -> None:
        graph = self.open(self.mlp())

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(50):
                x = rng.standard_normal((int(rng.integers(1, 9)), 4), dtype=np.float32)
                y = graph.run({"x": Tensor.from_numpy(x)}, time.monotonic() + 60)["y"].numpy()
                np.testing.assert_allclose(y, mlp_oracle(x), rtol=1e-4, atol=1e-5)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))

    def test_a_run_that_has_begun_ends_although_the_graph_is_closed(self) -> None:
        graph = self.open(self.count())
        inputs = Begun({"n": Tensor.from_numpy(np.array(50_000))})
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(graph.run, inputs)
            assert inputs.begun.wait(60)
            graph.close()
            assert answer.result()["y"].numpy() == [50_000]

    def test_a_closed_graph_refuses(self) -> None:
        graph = self.open(self.mlp())
        graph.close()
        graph.close()
        with pytest.raises(ModelNotReady, match="closed"):
            graph.run({"x": some_tensor(DTYPES["FP32"], (1, 4))})

    def test_a_gpu_is_used_or_refused_and_never_replaced_silently(self) -> None:
        if self.has_gpu():
            assert open_graph(self.mlp(), "gpu").device == "gpu"
        else:
            with pytest.raises(DeviceUnavailable, match="fallback"):
                open_graph(self.mlp(), "gpu")

    def test_fallback_runs_on_the_cpu_and_says_so(self) -> None:
        source = self.mlp()
        allowed = replace(source, options={**source.options, "fallback": True})
        graph = open_graph(allowed, "gpu")
        assert graph.device == ("gpu" if self.has_gpu() else "cpu")
        rows = np.eye(4, dtype=np.float32)
        y = graph.run({"x": Tensor.from_numpy(rows)})["y"].numpy()
        np.testing.assert_allclose(y, mlp_oracle(rows), rtol=1e-3, atol=1e-3)
