"""TorchScript: types from the trace or the options, stops in every loop, no state, and no way out of the archive."""

from __future__ import annotations

import io
import re
import time
import warnings
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kserve_wasm.backends import Graph, GraphSource, open_graph
from kserve_wasm.errors import BackendError, DeadlineExceeded, ModelLoadError
from kserve_wasm.tensors import Tensor
from tests.support import require

require(find_spec("torch"), "torch is not installed: pip install torch")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from tests.backends import torch_models as models  # noqa: E402
from tests.backends.torch_models import spec  # noqa: E402

X = spec("x", "FP32", -1, 4)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def opened(data: bytes, **options: object) -> Graph:
    return open_graph(GraphSource("g", "pytorch", data=data, options=options), "cpu")


def run(graph: Graph, deadline: float = float("inf"), **inputs: Any) -> dict[str, np.ndarray]:
    tensors = {name: Tensor.from_numpy(np.asarray(value)) for name, value in inputs.items()}
    return {name: t.numpy() for name, t in graph.run(tensors, deadline).items()}


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.MaxPool2d(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


@pytest.mark.parametrize("optimize", [True, False])
def test_a_trace_says_its_types_and_answers_as_the_module(optimize: bool) -> None:
    module = Convolutions().eval()
    graph = opened(models.traced(module, torch.zeros(1, 3, 9, 9)), optimize=optimize)
    assert [(s.name, s.dtype.name, s.shape) for s in graph.inputs] == [("x", "FP32", (None,) * 4)]
    assert [(s.name, s.dtype.name, s.shape) for s in graph.outputs] == [("output", "FP32", (None, None))]
    x = torch.randn(3, 3, 12, 10)
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(run(graph, x=x.numpy())["output"], expected, rtol=1e-4, atol=1e-5)


def test_outputs_are_learnt_from_zeros_or_said() -> None:
    class Several(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
            return x > 0, x.sum(0), x.size(0)

    data = models.scripted(Several())
    graph = opened(data, inputs=[X])
    assert [(s.name, s.dtype.name, len(s.shape)) for s in graph.outputs] == [
        ("output_0", "BOOL", 2),
        ("output_1", "FP32", 1),
        ("output_2", "INT64", 0),
    ]
    assert run(graph, x=ones(3, 4))["output_2"] == 3
    named = [spec("positive", "BOOL", "n", 4), spec("total", "FP32", 4), spec("rows", "INT64")]
    answer = run(opened(data, inputs=[X], outputs=named), x=ones(3, 4))
    assert list(answer) == ["positive", "total", "rows"]
    assert answer["total"].tolist() == [3] * 4


def test_numbers_are_scalars_and_defaults_may_be_left_out() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, n: int, by: float = 2.0, flip: bool = False) -> torch.Tensor:
            return x[:n] * (-by if flip else by)

    data = models.scripted(Scaled())
    graph = opened(data, inputs=[X, spec("n", "INT64")])
    assert run(graph, x=ones(3, 4), n=1)["output"].tolist() == [[2.0] * 4]
    graph = opened(data, inputs=[spec("flip", "BOOL"), X, spec("n", "INT64"), spec("by", "FP64")])
    assert [s.name for s in graph.inputs] == ["flip", "x", "n", "by"]
    assert run(graph, flip=True, x=ones(3, 4), n=1, by=0.5)["output"].tolist() == [[-0.5] * 4]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, r"does not say the types of 'x', 'y': .* option 'inputs', such as \[\{name: x, datatype: FP32"),
        ({"inputs": [X]}, "must name the arguments 'x', 'y' of the module's forward, got 'x'"),
        ({"inputs": [X, spec("z", "FP32")]}, "must name the arguments 'x', 'y' .* got 'x', 'z'"),
        (
            {"inputs": [X, spec("y", "FP32", 5)]},
            "could not be learnt from a run on zeros .*'outputs', such as",
        ),
        ({"inputs": [X, spec("y", "BYTES", 5)]}, "must be a list such as .* and no BYTES"),
        ({"inputs": [X, X]}, "must be a list such as .* names that differ"),
        ({"inputs": [{"name": "x"}]}, "must be a list such as"),
        ({"inputs": [spec("x", "FP32", -2)]}, "must be a list such as"),
        ({"inputs": [spec("x", "FP32", True)]}, "must be a list such as"),
        ({"inputs": []}, "must be a list such as"),
        ({"threads": 1}, "unknown option threads of a PyTorch graph; known: .*intra_op_threads"),
        ({"intra_op_threads": True}, "must be a number from 0 to 1024"),
        ({"fallback": "yes"}, "must be true or false"),
    ],
)
def test_options_that_do_not_fit_say_what_would(options: dict[str, Any], complaint: str) -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    with pytest.raises(ModelLoadError, match=complaint):
        opened(models.scripted(Sum()), **options)


def test_an_answer_of_another_type_than_said_is_an_error() -> None:
    graph = opened(
        models.scripted(nn.ReLU()), inputs=[spec("input", "FP32", -1)], outputs=[spec("y", "INT64")]
    )
    with pytest.raises(BackendError, match=r"output 'y' is torch.float32 instead of INT64"):
        run(graph, input=ones(3))
    graph = opened(models.scripted(models.Identity()), inputs=[X], outputs=[spec("z", "FP32", -1, 4)])
    with pytest.raises(BackendError, match="it gave no 'z', only y"):
        run(graph, x=ones(3, 4))


def test_a_module_frozen_before_it_was_saved_is_opened() -> None:
    frozen = torch.jit.freeze(torch.jit.script(models.Mlp().eval()))
    graph = opened(models.archived(frozen), inputs=[X])
    assert run(graph, x=ones(3, 4))["y"].shape == (3, 3)


def test_quantised_weights_are_opened() -> None:
    if "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of PyTorch has no quantised kernels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.ao.quantization.quantize_dynamic(models.Mlp().eval(), {nn.Linear}, dtype=torch.qint8)
    graph = opened(models.scripted(module), inputs=[X])
    np.testing.assert_allclose(
        run(graph, x=ones(3, 4))["y"], module(torch.ones(3, 4))["y"].numpy(), rtol=1e-4, atol=1e-4
    )


# --- Deadlines


class Loops(nn.Module):
    """Turns that compute with tensors, with numbers alone, or in a function of its own; nested, or side by side."""

    def forward(self, n: torch.Tensor, kind: int) -> torch.Tensor:
        limit, i, y = int(n), 0, torch.zeros(1)
        if kind == 0:
            while i < limit:
                i += 1
        elif kind == 1:
            y = spin(limit)
        elif kind == 2:
            future = torch.jit.fork(spin, limit)
            y = torch.jit.wait(future)
        elif kind == 3:
            while i < limit:
                for j in range(3):
                    i += j
        else:
            y = torch.tensor([float(k) for k in range(limit)])
        return y


def spin(limit: int) -> torch.Tensor:
    y = torch.zeros(1)
    while float(y) < limit:
        y += 1
    return y


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("kind", range(5))
def test_every_loop_is_stopped(kind: int, optimize: bool) -> None:
    graph = opened(
        models.scripted(Loops()),
        inputs=[spec("n", "INT64"), spec("kind", "INT64")],
        outputs=[spec("y", "FP32", -1)],
        optimize=optimize,
    )
    assert run(graph, time.monotonic() + 60, n=3, kind=kind)["y"].dtype == np.float32
    with pytest.raises(DeadlineExceeded):
        run(graph, time.monotonic() + 0.1, n=1 << 60, kind=kind)


def test_layers_one_after_the_other_are_stopped_between() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(256))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(600):
                x = x @ self.weight
            return x

    graph = opened(models.traced(Deep(), torch.zeros(1, 256)), intra_op_threads=1)
    x = ones(512, 256)
    np.testing.assert_array_equal(run(graph, x=x)["output"], x)
    with pytest.raises(DeadlineExceeded, match="during the run"):
        run(graph, time.monotonic() + 0.02, x=x)


# --- State


def test_what_the_request_sent_is_not_written_to() -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = x[0]
            first += 1
            return x * 2

    graph = opened(models.scripted(InPlace()), inputs=[X])
    x = ones(3, 4)
    assert run(graph, x=x)["output"].tolist() == [[4.0] * 4, [2.0] * 4, [2.0] * 4]
    np.testing.assert_array_equal(x, ones(3, 4))


class Counting(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.in_place:
            self.seen += 1
        else:
            self.seen = self.seen + 1
        return x + self.seen


@pytest.mark.parametrize("in_place", [True, False])
def test_a_module_that_changes_itself_is_refused(in_place: bool) -> None:
    with pytest.raises(BackendError, match="changes its own 'seen'"):
        opened(models.scripted(Counting(in_place)), inputs=[X])


def test_a_module_traced_while_it_learns_is_refused() -> None:
    module = nn.BatchNorm1d(4).train()
    traced = torch.jit.trace(module, torch.randn(2, 4))
    with pytest.raises(BackendError, match="learns from what it normalises"):
        opened(models.archived(traced))


# --- Hostile archives


def edited(data: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(result, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return result.getvalue()


def with_code(line: str, data: bytes = b"") -> bytes:
    """An archive whose ``forward`` does ``line`` first."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith(".py") or b"def forward" not in content:
            return content
        head, colon, body = content.partition(b") -> Tensor:\n")
        assert colon
        return head + colon + f"    {line}\n".encode() + body

    return edited(data or models.scripted(nn.ReLU()), change)


def relu() -> bytes:
    class Relu(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x)

    return models.scripted(Relu())


@pytest.mark.parametrize(
    "line",
    [
        'torch.save(x, "{file}")',
        'ops.aten.save(x, "{file}")',
        'x.save("{file}")',
        '(x. # comment\n      save("{file}"))',
        '_0 = torch.from_file("{file}", True, 4)',
        '_0 = "{file}".from_file(True, 4)',
        'print("#"); torch.save(x, "{file}")',
        '_0 = getattr(torch, "from_" "file")("{file}", True, 4)',
        '_0 = getattr(torch, "from_\\x66ile")("{file}", True, 4)',
        '_0 = getattr(torch, # comment\n      "from_" "file")("{file}", True, 4)',
        'getattr(getattr(self, "training"), "sa" "ve")("{file}")',
        'getattr(x, "sa" "ve")("{file}")',
        '_0 = ops.profiler._record_function_enter("x")',
        '_0 = (ops. # comment\n      c10d.barrier(x))',
        '_0 = __torch__.torch.classes.dist_c10d.Store()',
        '_0 = (__torch__.torch. # comment\n      classes.dist_c10d.Store())',
    ],
)  # fmt: skip
def test_code_that_reaches_beyond_tensors_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"secret..")
    with pytest.raises(BackendError, match=r"the archive says '.*', which can reach beyond tensors"):
        opened(with_code(line.format(file=file), relu()), inputs=[spec("x", "FP32", -1)])
    assert file.read_bytes() == b"secret.."
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_harmless_code_in_the_same_place_runs() -> None:
    graph = opened(with_code("x = torch.add(x, 1)", relu()), inputs=[spec("x", "FP32", -1)])
    assert run(graph, x=ones(2))["output"].tolist() == [2, 2]


def test_modules_whose_names_are_no_identifiers_are_found() -> None:
    inner = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Tanh()), nn.ModuleDict({"a-b": nn.ReLU()})["a-b"])

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"a b": inner})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for module in self.inner.values():
                x = module(x)
            return x

    data = models.scripted(Outer())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert any(b"getattr" in archive.read(name) for name in archive.namelist())
    graph = opened(data, inputs=[spec("x", "FP32", -1)])
    np.testing.assert_allclose(run(graph, x=ones(2))["output"], np.tanh([1, 1]), rtol=1e-6)


def test_modules_of_packages_called_ops_or_classes_are_none_of_those() -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    Inner.__module__ = "torchvision.ops.classes.misc"
    data = models.scripted(Outer())
    assert b"torchvision.ops.classes.misc" in b"".join(
        zipfile.ZipFile(io.BytesIO(data)).read(n) for n in zipfile.ZipFile(io.BytesIO(data)).namelist()
    )
    assert run(opened(data, inputs=[X]), x=ones(1, 4))["output"].tolist() == [[2.0] * 4]


def test_a_class_of_pytorchs_own_is_not_made_by_the_pickle() -> None:
    def change(name: str, content: bytes) -> bytes:
        changed = re.sub(
            rb"c__torch__[\w.]*\nRelu\n", b"c__torch__.torch\nclasses.dist_c10d.Store\n", content
        )
        assert changed != content or not name.endswith("/data.pkl")
        return changed

    data = edited(relu(), change)
    with pytest.raises(BackendError, match=r"the archive says 'classes\.dist_c10d\.Store"):
        opened(data, inputs=[X])


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        (b"K@tQ", b"K\xfftQ"),  # 255 elements of 64
        (b"K@tQ", b"J\xff\xff\xff\x7ftQ"),
        (b"K@tQ", b"tQ"),
    ],
)
def test_storages_are_no_longer_than_their_records(said: bytes, instead: bytes) -> None:
    """PyTorch would read whatever lies behind them."""
    archive = models.traced(models.Mlp(), torch.zeros(2, 4))

    def change(name: str, content: bytes) -> bytes:
        assert said in content or not name.endswith("/data.pkl")
        return content.replace(said, instead, 1) if name.endswith("/data.pkl") else content

    with pytest.raises(BackendError, match=r"shorter than its weights|is damaged"):
        opened(edited(archive, change))


def test_a_module_with_state_of_its_own_making_is_opened() -> None:
    class Waking(nn.Module):
        @torch.jit.export
        def __getstate__(self) -> tuple[int, bool]:
            return 1, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[int, bool]) -> None:
            self.training = state[1]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    data = models.scripted(Waking())
    for optimize in (True, False):
        graph = opened(data, inputs=[X], optimize=optimize)
        assert run(graph, x=ones(1, 4))["output"].tolist() == [[2.0] * 4]


def test_a_record_that_is_there_twice_is_refused() -> None:
    """Readers differ in which of them they take."""
    data = io.BytesIO(relu())
    with zipfile.ZipFile(data, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"other")
    with pytest.raises(BackendError, match="a record twice"):
        opened(data.getvalue(), inputs=[X])


def test_an_archive_that_grows_is_refused() -> None:
    data = io.BytesIO(relu())
    with zipfile.ZipFile(data, "a", zipfile.ZIP_DEFLATED) as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/code/x.py", bytes(70 << 20))
    with pytest.raises(BackendError, match="far larger than the archive"):
        opened(data.getvalue(), inputs=[X])


def test_an_error_in_the_module_keeps_its_words_and_loses_the_paths() -> None:
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.size(0) > 2:
                raise ValueError("at most 2 rows, please")
            return torch.matmul(x, x)

    graph = opened(models.scripted(Picky()), inputs=[X], outputs=[spec("y", "FP32", -1)])
    with pytest.raises(BackendError, match=r"graph 'g' failed: \S*ValueError: at most 2 rows, please \(it"):
        run(graph, x=ones(3, 4))
    with pytest.raises(BackendError, match="mat1 and mat2 shapes cannot be multiplied") as caught:
        run(graph, x=ones(2, 4))
    assert "Traceback" not in str(caught.value)
    assert "/" not in str(caught.value)
