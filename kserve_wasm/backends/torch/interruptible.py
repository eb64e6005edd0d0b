"""TorchScript that can be stopped.

PyTorch's interpreter runs a method to its end, without the lock of Python's, and has no way to stop it. So the graph
gets a further input, a flag in host memory, and looks at it in every turn of a loop, before operators that may take
long, and now and then between others: some 0.1 µs each time. The watchdog's thread sets the flag.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from kserve_wasm.backends.torch.program import Stopped
from kserve_wasm.backends.watchdog import WATCHDOG
from kserve_wasm.errors import BackendError

_LONG = ("conv", "_conv", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "lstm", "gru", "rnn")
"""Beginnings of names of operators that may take long. None of them is ever fused with its neighbours."""
_EVERY = 16  # of the other operators
_DEEPEST = 100  # forks inside forks
_NORMALISATIONS = ("aten::batch_norm", "aten::instance_norm", "aten::_batch_norm_impl_index")

_NEVER = torch.zeros((), dtype=torch.bool)


class Interruptible:
    """A module's ``forward``, as something that is called with arguments and a deadline.

    Args:
        module: the module in C++, ``ScriptModule._c``.
        arguments: for each argument of ``forward`` the place of its value among those of a call, or None and its
            default.
        stateless: refuse a module that changes itself: its requests would see each other.
        device: where it runs; tensors that it makes on the device it was traced on are made here.

    Raises:
        BackendError: it is not stateless, or calls what is not known before it runs.
    """

    def __init__(
        self,
        module: Any,
        arguments: Sequence[tuple[int | None, Any]],
        *,
        stateless: bool,
        device: torch.device,
    ) -> None:
        graph = module._get_method("forward").graph.copy()
        _inline(graph)
        if stateless:
            _refuse_state(graph)
        if device.type != "cpu":
            _move(graph, device)
        database = graph.alias_db()
        inputs = list(graph.inputs())[1:]
        self._arguments = [
            (place, default, isinstance(value.type(), torch._C.TensorType) and database.has_writers(value))
            for (place, default), value in zip(arguments, inputs, strict=True)
        ]
        _insert_checks(graph)
        self._module = module
        self._function = torch._C._create_function_from_graph("forward", graph)

    def __call__(self, values: Sequence[Any], deadline: float) -> Any:
        """What the module returns for ``values``, none of which it changes. Raises Stopped after ``deadline``."""
        # An operator that works in place would work in the memory of the request.
        given = [
            default if place is None else values[place].clone() if written else values[place]
            for place, default, written in self._arguments
        ]
        if deadline == math.inf:
            return self._function(self._module, *given, _NEVER)
        flag = np.zeros((), np.bool_)
        late = []

        def stop() -> None:
            late.append(True)
            flag[()] = True

        watch = WATCHDOG.watch(deadline, stop)
        try:
            return self._function(self._module, *given, torch.from_numpy(flag))
        except Exception as error:  # torch.jit.Error is no RuntimeError
            if late:
                raise Stopped from error
            raise
        finally:
            WATCHDOG.forget(watch)


def _inline(graph: Any) -> None:
    """Brings all that the graph does before the flag's eyes: what it calls, and what it does beside itself."""
    for _ in range(_DEEPEST):
        torch._C._jit_pass_inline(graph)
        if graph.findNode("prim::fork") is None:
            break
        torch._C._jit_pass_inline_fork_wait(graph)
    for kind in ("prim::CallMethod", "prim::CallFunction", "prim::fork"):
        if graph.findNode(kind) is not None:
            raise BackendError(
                f"the module has a {kind.removeprefix('prim::')} that is only known when it runs, and so could not be "
                "stopped; export it with torch.export"
            )


def _all_nodes(block: Any) -> Iterator[Any]:
    for node in list(block.nodes()):
        yield node
        for inner in node.blocks():
            yield from _all_nodes(inner)


def _refuse_state(graph: Any) -> None:
    for node in _all_nodes(graph):
        if node.kind() in _NORMALISATIONS:
            # (input, weight, bias, running_mean, running_var, training, …): writes that its schema does not tell
            mean, training = node.inputsAt(3), node.inputsAt(5)
            if mean.type().kind() != "NoneType" and training.toIValue() is not False:
                raise BackendError(
                    "the module learns from what it normalises; call its eval() before tracing it"
                )
    database = graph.alias_db()
    for node in _all_nodes(graph):
        kind = node.kind()
        if kind == "prim::SetAttr" or (
            kind == "prim::GetAttr"
            and isinstance(node.output().type(), torch._C.TensorType)
            and database.has_writers(node.output())
        ):
            raise BackendError(
                f"the module changes its own '{node.s('name')}', so requests would see each other; save one that keeps "
                "nothing"
            )


def _move(graph: Any, device: torch.device) -> None:
    """Traces hold the device that they were made on as a constant."""
    for node in _all_nodes(graph):
        if node.kind() == "prim::Constant" and node.output().type().kind() == "DeviceObjType":
            graph.setInsertPoint(node)
            node.replaceAllUsesWith(graph.insertConstant(device).node())
    graph.setInsertPoint(graph.return_node())


def _insert_checks(graph: Any) -> None:
    flag = graph.addInput("stop")
    flag.setType(torch._C.TensorType.get())
    since = 0
    for node in list(_all_nodes(graph)):
        kind = node.kind()
        since += kind != "prim::Constant"
        if kind == "prim::Loop":
            body = next(node.blocks())
            first = next(iter(body.nodes()), body.returnNode())
            _insert_check(graph, flag, first)
        elif since >= _EVERY or kind.removeprefix("aten::").startswith(_LONG):
            _insert_check(graph, flag, node)
            since = 0
    graph.setInsertPoint(graph.return_node())
    graph.lint()


def _insert_check(graph: Any, flag: Any, before: Any) -> None:
    """``if bool(flag): raise``. The raising branch also writes to the flag, so that no pass may read it just once."""
    graph.setInsertPoint(before)
    late = graph.create("aten::Bool", [flag], 1)
    late.output().setType(torch._C.BoolType.get())
    graph.insertNode(late)
    branch = graph.create("prim::If", [late.output()], 0)
    graph.insertNode(branch)
    raising = branch.addBlock()
    branch.addBlock()
    graph.setInsertPoint(raising)
    graph.insertNode(graph.create("aten::zero_", [flag], 1))
    message = graph.insertConstant("stopped")
    graph.insertNode(graph.create("prim::RaiseException", [message, graph.insertConstant(None)], 0))
