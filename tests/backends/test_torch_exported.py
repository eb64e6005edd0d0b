"""Programs of ``torch.export``: answers as PyTorch's own, names, sizes, no state, and nothing followed or evaluated."""

from __future__ import annotations

import collections
import io
import json
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kserve_wasm.backends import Graph, GraphSource, open_graph
from kserve_wasm.errors import BackendError, InvalidRequest, ModelLoadError
from kserve_wasm.tensors import DTYPES, Tensor, TensorSpec
from tests.support import require

require(find_spec("torch"), "torch is not installed: pip install torch")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from kserve_wasm.backends.torch import sizes  # noqa: E402
from tests.backends import torch_models as models  # noqa: E402

AUTO = torch.export.Dim.AUTO
Pair = collections.namedtuple("Pair", ["first", "second"])


def opened(data: bytes, **options: object) -> Graph:
    return open_graph(GraphSource("g", "pytorch", data=data, options=options), "cpu")


def ask(graph: Graph, *values: torch.Tensor) -> list[np.ndarray]:
    inputs = {spec.name: Tensor.from_numpy(v.numpy()) for spec, v in zip(graph.inputs, values, strict=True)}
    answer = graph.run(inputs)
    return [answer[spec.name].numpy() for spec in graph.outputs]


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 7, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        y, (h, _) = self.lstm(x)
        return y, h


def switch(x: torch.Tensor) -> torch.Tensor:
    return torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v * 2, (x,))


def without_gradients(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scale = x.amax(-1, keepdim=True)
    return x / scale


def with_autocast(x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return x @ x.mT


def pieces(x: torch.Tensor) -> Any:
    first, *_, last = x.chunk(3, dim=-1)
    values, places = last.topk(1, dim=-1)
    return [first.reshape(x.shape[0] * first.shape[1]), values, places.to(torch.int32)]


torch.manual_seed(0)
MODULES = {
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.MaxPool2d(2), nn.ConvTranspose2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ),
        (2, 3, 17, 19),
    ),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
    "lstm": (Lstm(), (2, 6, 5)),
    "condition": (Function(switch), (3, 4)),
    "no gradients": (Function(without_gradients), (3, 4)),
    "autocast": (Function(with_autocast), (3, 4)),
    "pieces": (Function(pieces), (4, 9)),
    "resize": (
        Function(lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", antialias=True)),
        (2, 3, 5, 4),
    ),
    "einsum": (Function(lambda x: torch.einsum("bij,bkj->bik", x, x).softmax(-1)), (2, 3, 4)),
    "infinite": (Function(lambda x: torch.where(x > 0, x, -float("inf")).logsumexp(-1)), (3, 4)),
    "complex inside": (Function(lambda x: torch.fft.irfft(torch.fft.rfft(x) * 1j, n=6)), (3, 6)),
    "new tensors": (Function(lambda x: x + torch.arange(x.shape[1]) + torch.ones_like(x)), (3, 4)),
    "sizes": (Function(lambda x: x.reshape(-1)[: x.shape[0] * 2 - 1] * (x.shape[0] // 2)), (4, 3)),
}  # fmt: skip


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_answers_are_those_of_pytorch(name: str, decomposed: bool) -> None:
    module, shape = MODULES[name]
    module.eval()
    x = torch.randn(shape)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: AUTO},))
    graph = opened(models.saved(program.run_decompositions() if decomposed else program))
    for batch in (x, torch.randn(shape[0] + 3, *shape[1:])):
        with torch.no_grad():
            expected = module(batch)
        flat = torch.utils._pytree.tree_leaves(expected)
        answers = ask(graph, batch)
        assert len(answers) == len(flat)
        for answer, want in zip(answers, flat, strict=True):
            np.testing.assert_allclose(
                answer.astype(np.float32), want.float().numpy(), rtol=1e-4, atol=1e-5, strict=True
            )


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x + 1, ["output"]),
        (lambda x: (x + 1, x + 2), ["output_0", "output_1"]),
        (lambda x: {"b": x + 1, "a": x + 2}, ["b", "a"]),
        (lambda x: {"a": [x + 1, x + 2], "b": x + 3}, ["a_0", "a_1", "b"]),
        (lambda x: (x + 1, None), ["output_0"]),
        (lambda x: (x + 1, x.shape[0]), ["output_0", "output_1"]),
    ],
)
def test_outputs_are_called_as_the_program_returned_them(
    function: Callable[..., Any], names: list[str]
) -> None:
    graph = opened(models.exported(Function(function), torch.zeros(2, 3)))
    assert [spec.name for spec in graph.outputs] == names
    answers = ask(graph, torch.full((4, 3), 5.0))
    assert answers[0].shape == (4, 3)
    if names[-1] == "output_1" and answers[-1].ndim == 0:
        assert graph.outputs[-1].dtype.name == "INT64"
        assert answers[-1] == 4


def test_fields_of_a_named_tuple_are_names() -> None:
    torch.utils._pytree._register_namedtuple(Pair, serialized_type_name="tests.Pair")
    graph = opened(models.exported(Function(lambda x: Pair(x + 1, x + 2)), torch.zeros(2)))
    assert [spec.name for spec in graph.outputs] == ["first", "second"]


def test_inputs_are_called_as_the_arguments() -> None:
    class Module(nn.Module):
        def forward(self, image: Any, boxes: Any, *, scale: Any) -> Any:
            return image * scale + boxes["left"]

    program = torch.export.export(
        Module(), (torch.zeros(2), {"left": torch.ones(2)}), {"scale": torch.tensor(3.0)}
    )
    graph = opened(models.saved(program))
    assert [spec.name for spec in graph.inputs] == ["image", "boxes_left", "scale"]
    assert ask(graph, torch.ones(2), torch.full((2,), 5.0), torch.tensor(3.0))[0].tolist() == [8, 8]


def test_a_number_is_a_scalar_input() -> None:
    class Module(nn.Module):
        def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
            return x[:n] * n

    program = torch.export.export(Module(), (torch.arange(9), 4), dynamic_shapes=({}, AUTO))
    graph = opened(models.saved(program))
    assert [(s.name, s.dtype.name, s.shape) for s in graph.inputs] == [
        ("x", "INT64", (9,)),
        ("n", "INT64", ()),
    ]
    assert ask(graph, torch.arange(9), torch.tensor(3))[0].tolist() == [0, 3, 6]


# --- Sizes


class Sizes(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.sum(0) + b.sum(0)


def sized() -> Graph:
    n = torch.export.Dim("n", min=3, max=9)
    examples = torch.zeros(4, 5), torch.zeros(8, 5)
    return opened(models.exported(Sizes(), *examples, dynamic=({0: n}, {0: 2 * n})))


def test_open_sizes_are_symbols_in_the_specification() -> None:
    a, b = sized().inputs
    assert isinstance(a.shape[0], str)
    assert (a.shape[1], b.shape) == (5, (None, 5))


@pytest.mark.parametrize(
    ("a", "b", "complaint"),
    [
        (2, 4, r"must be from 3 to 9, got 2"),
        (10, 20, r"must be from 3 to 9, got 10"),
        (4, 9, r"input 'b' must have 8 entries along dimension 0, got 9"),
    ],
)
def test_sizes_that_the_program_was_not_exported_for_are_refused(a: int, b: int, complaint: str) -> None:
    graph = sized()
    with pytest.raises(InvalidRequest, match=complaint):
        ask(graph, torch.zeros(a, 5), torch.zeros(b, 5))
    assert ask(graph, torch.ones(3, 5), torch.ones(6, 5))[0].tolist() == [9] * 5


def test_a_size_that_is_a_division_by_zero_is_refused() -> None:
    size = sizes.size("FloorDiv(Symbol('n'), Add(Symbol('n'), Integer(-3)))")
    assert size is not None
    inputs = [TensorSpec("x", DTYPES["FP32"], ("n",)), TensorSpec("y", DTYPES["FP32"], (None,))]
    check = sizes.Checks(inputs, [(1, 0, size)], {})
    check([Tensor.from_numpy(np.zeros(4, np.float32))] * 2)
    with pytest.raises(InvalidRequest, match="dimension 0 of input 'y' has no size where 'n' is 3"):
        check([Tensor.from_numpy(np.zeros(3, np.float32))] * 2)


def test_dimensions_of_one_name_must_have_one_size() -> None:
    """Else an operator would take 1 for any size, and answer nonsense."""
    n = torch.export.Dim("n")
    examples = torch.zeros(4, 3), torch.zeros(4, 3)
    graph = opened(models.exported(models.AddAndSubtract(), *examples, dynamic=({0: n}, {0: n})))
    with pytest.raises(InvalidRequest, match="is 5 and, in input 'b', 1"):
        ask(graph, torch.zeros(5, 3), torch.zeros(1, 3))


# --- In place


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> Any:
        self.seen += 1
        self.seen[1:].mul_(2)
        x[:, 0].add_(1)
        return x.clone(), self.seen.clone(), self.norm(x)


@pytest.mark.parametrize("decomposed", [False, True])
def test_no_run_sees_what_another_left(decomposed: bool, tmp_path: Path) -> None:
    program = torch.export.export(Stateful().train(), (torch.zeros(2, 4),), dynamic_shapes=({0: AUTO},))
    data = models.saved(program.run_decompositions() if decomposed else program)
    (tmp_path / "g.pt2").write_bytes(data)
    graph = open_graph(GraphSource("g", "pytorch", path=tmp_path / "g.pt2"), "cpu")
    memory = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    sent = memory.copy()
    for _ in range(2):
        changed, seen, normal = graph.run({"x": Tensor.from_numpy(sent)}).values()
        np.testing.assert_array_equal(sent, memory)
        np.testing.assert_array_equal(changed.numpy(), memory + np.float32([1, 0, 0, 0]))
        np.testing.assert_array_equal(seen.numpy(), [1, 2, 2, 2])
        np.testing.assert_allclose(normal.numpy().mean(0), 0, atol=1e-5)
    assert (tmp_path / "g.pt2").read_bytes() == data


def test_a_view_that_no_operator_tells_of_cannot_be_written_to() -> None:
    """In evaluation ``dropout`` gives its argument, and says that it gives a new tensor."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + nn.functional.dropout(self.seen, 0.5, training=False).add_(1)

    graph = opened(models.exported(Module(), torch.zeros(4), dynamic=({},)))
    with pytest.raises(BackendError, match="writes to a weight or an input in place"):
        ask(graph, torch.zeros(4))


# --- Where the bytes are


@pytest.mark.parametrize("before", [0, 1, 7, 64])
def test_a_program_is_a_range_of_a_file(tmp_path: Path, before: int) -> None:
    data = models.exported(models.Mlp(), torch.zeros(2, 4))
    (tmp_path / "model.wasm").write_bytes(b"x" * before + data + b"y" * 30)
    whole = opened(data)
    part = open_graph(
        GraphSource("g", "pytorch", path=tmp_path / "model.wasm", offset=before, length=len(data)), "cpu"
    )
    x = torch.randn(5, 4)
    np.testing.assert_array_equal(ask(part, x)[0], ask(whole, x)[0])
    short = GraphSource("g", "pytorch", path=tmp_path / "model.wasm", offset=before, length=len(data) + 31)
    with pytest.raises(BackendError, match="its file ends after"):
        open_graph(short, "cpu")


def test_weights_are_used_where_they_lie_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "g.pt2"
    file.write_bytes(models.exported(nn.Linear(1024, 1024, bias=False), torch.zeros(2, 1024)))
    graph = open_graph(GraphSource("g", "pytorch", path=file), "cpu")
    assert str(file) in Path("/proc/self/maps").read_text()
    assert ask(graph, torch.ones(2, 1024))[0].any()
    with file.open("r+b") as writer:  # the mapping is the file's: what is not yet copied from it changes
        content = file.read_bytes()
        at = content.index(first_bytes(content))
        writer.seek(at)
        writer.write(bytes(1024 * 1024 * 4))
    assert not ask(graph, torch.ones(2, 1024))[0].any()


def first_bytes(archive: bytes) -> bytes:
    """The beginning of the only weight in ``archive``."""
    with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
        (name,) = [n for n in zipped.namelist() if n.endswith("weights/weight_0")]
        return zipped.read(name)[:64]


# --- Hostile archives


def edited(
    data: bytes, model: Callable[[Any], None] | None = None, **records: bytes | Callable[[Any], None]
) -> bytes:
    """``data`` with its program, or records by the end of their names, changed."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(result, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            change: Any = model if name.endswith("model.json") else None
            change = next((c for end, c in records.items() if name.endswith(end)), change)
            if callable(change):
                document = json.loads(content)
                change(document)
                content = json.dumps(document).encode()
            elif change is not None:
                content = change
            target.writestr(name, content)
    return result.getvalue()


def calls(target: str, *arguments: dict[str, Any]) -> Callable[[Any], None]:
    """Lets the first operator be another one."""

    def edit(document: Any) -> None:
        node = document["graph_module"]["graph"]["nodes"][0]
        node["target"] = target
        if arguments:
            node["inputs"] = [{"name": n, "arg": a, "kind": 1} for d in arguments for n, a in d.items()]

    return edit


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.load",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.__class__.mro",
        "torch.ops.profiler._record_function_enter.default",
        "torch.ops._c10d_functional.broadcast.default",
        "torch.ops.aten.add",
        "torch.ops.aten.no_such.default",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "math.__loader__.load_module",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
        "os.system",
        "#custom:x",
        "",
    ],
)
def test_nothing_but_operators_is_called(target: str) -> None:
    data = edited(
        models.exported(models.Mlp(), torch.zeros(2, 4)), calls(target, {"": {"as_string": "true"}})
    )
    with pytest.raises(BackendError, match=r"graph 'g': the program (calls|uses) "):
        opened(data)


def test_expressions_are_not_evaluated(tmp_path: Path) -> None:
    """``torch.export.load`` gives them to SymPy, which gives them to ``eval``."""
    there = tmp_path / "evaluated"
    code = f"__import__('pathlib').Path({str(there)!r}).touch()"

    def edit(document: Any) -> None:
        for meta in document["graph_module"]["graph"]["tensor_values"].values():
            meta["sizes"] = [{"as_expr": {"expr_str": code, "hint": None}}] * len(meta["sizes"])
        document["guards_code"] = [code]

    graph = opened(edited(models.exported(models.Mlp(), torch.zeros(2, 4)), edit))
    assert graph.inputs[0].shape == (None, None)
    assert ask(graph, torch.zeros(3, 4))[0].shape == (3, 3)
    assert not there.exists()


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "unpickled",)

    pickled = io.BytesIO()
    torch.save(Evil(), pickled)

    def edit(config: Any) -> None:
        for entry in config["config"].values():
            entry["use_pickle"] = True

    data = models.exported(models.Mlp(), torch.zeros(2, 4))
    with pytest.raises(BackendError, match="is a pickled object"):
        opened(edited(data, **{"weights_config.json": edit, "weight_0": pickled.getvalue()}))
    harmless = opened(edited(data, **{"sample_inputs/model.pt": pickled.getvalue()}))
    assert ask(harmless, torch.zeros(2, 4))[0].shape == (2, 3)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    "meta",
    [
        {"sizes": [{"as_int": 1 << 40}, {"as_int": 4}]},
        {"sizes": [{"as_int": -1}, {"as_int": 4}]},
        {"strides": [{"as_int": 1 << 40}, {"as_int": 1}]},
        {"strides": [{"as_int": -1}, {"as_int": 1}]},
        {"storage_offset": {"as_int": 1 << 40}},
        {"storage_offset": {"as_int": -1}},
        {"sizes": [{"as_int": 4}]},
        {"dtype": 99},
        {"layout": 1},
    ],
)
def test_weights_beyond_their_record_are_refused(meta: dict[str, Any]) -> None:
    def edit(config: Any) -> None:
        entry = next(e for e in config["config"].values() if len(e["tensor_meta"]["sizes"]) == 2)
        entry["tensor_meta"].update(meta)

    with pytest.raises(BackendError, match="graph 'g'"):
        opened(edited(models.exported(models.Mlp(), torch.zeros(2, 4)), **{"weights_config.json": edit}))


def test_a_weight_without_bytes_is_refused() -> None:
    """Its values would be what the process's memory happened to hold."""
    data = models.exported(models.Mlp(), torch.zeros(2, 4))
    with pytest.raises(BackendError, match=r"graph 'g': '.*' has no bytes in the archive"):
        opened(edited(data, weight_0=b""))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d["schema_version"].update(major=9), "version 9 of its format, not 8; save it again"),
        (lambda d: d.pop("graph_module"), "cannot be read"),
        (lambda d: d["graph_module"]["graph"]["nodes"].reverse(), "cannot be read"),
    ],
)
def test_a_program_that_cannot_be_read_is_refused(change: Callable[[Any], None], complaint: str) -> None:
    with pytest.raises(BackendError, match=complaint):
        opened(edited(models.exported(models.Mlp(), torch.zeros(2, 4)), change))


def test_other_archives_are_told_apart() -> None:
    weights = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, weights)
    with pytest.raises(BackendError, match="holds weights or a pickled object, and no graph"):
        opened(weights.getvalue())
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(BackendError, match=r"neither a program of torch.export .* nor TorchScript"):
        opened(empty.getvalue())
    for data in (b"", b"PK", b"\x08\x01", b"x" * 1000):
        with pytest.raises(BackendError, match="no archive of PyTorch"):
            opened(data)


def test_options_that_the_program_says_itself_are_refused() -> None:
    data = models.exported(models.Mlp(), torch.zeros(2, 4))
    with pytest.raises(ModelLoadError, match="says its inputs and outputs itself"):
        opened(data, inputs=[models.spec("x", "FP32", -1, 4)])
