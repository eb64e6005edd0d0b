"""From the operators that an archive lists to a Python function that calls them.

Only operators of PyTorch's own libraries of arithmetic are called, with arguments that are tensors and plain values.
Each graph becomes one of ``torch.fx``, and so code without a loop over nodes; no name that the archive gives stands in
that code.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx

from kserve_wasm.backends.torch.exchange import memory
from kserve_wasm.backends.torch.stop import check, writable
from kserve_wasm.errors import BackendError

LIBRARIES = frozenset({"aten", "prims"})
"""The libraries of operators that programs may call."""
_REFUSED = frozenset({"from_file", "save"})
"""Operators of them that reach beyond tensors, to files of the host."""

# fmt: off
_ON_SIZES = (
    "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "le", "lshift", "lt", "mod", "mul", "ne", "neg", "not_",
    "or_", "pos", "pow", "rshift", "sub", "truediv",
)
# fmt: on
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in _ON_SIZES},
    **{
        f"torch.sym_{name}": getattr(torch, f"sym_{name}")
        for name in ("float", "int", "ite", "max", "min", "not")
    },
    "torch._sym_sqrt": math.sqrt,
    "torch.sym_sqrt": math.sqrt,
    "math.trunc": math.trunc,
    "math.floor": math.floor,
    "math.ceil": math.ceil,
}
"""What programs compute on sizes."""

SCALAR_TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
    31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz,
    34: torch.uint32,
    35: torch.uint64,
}
"""``schema.ScalarType``."""
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_POSITIONAL = 1  # schema.ArgumentKind


def union(value: Mapping[str, Any]) -> tuple[str, Any]:
    """The one entry of a tagged union: its tag and its value."""
    ((kind, content),) = value.items()
    return kind, content


class Lowering:
    """One graph on its way to a function. Its parameters are what :meth:`fixed` and then :meth:`placeholder` name.

    Args:
        device: where tensors are made, whatever the program says: that is the device it was exported on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = fx.Graph()
        self._root = torch.nn.Module()
        self._values: dict[str, Any] = {}
        self._roots: dict[fx.Node, frozenset[fx.Node]] = {}  # value → parameters that it may be a view of
        self._parameters: list[fx.Node] = []
        self._written: set[fx.Node] = set()
        self._writes = False

    def fixed(self, name: str) -> None:
        """A parameter for a weight."""
        self.placeholder(name)

    def placeholder(self, name: str) -> None:
        """A parameter for an input."""
        node = self._graph.placeholder(f"p{len(self._parameters)}")
        self._parameters.append(node)
        self._roots[node] = frozenset({node})
        self._values[name] = node

    def finish(self, graph: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]]) -> Callable[..., Any]:
        """The function of ``graph``, which gives a tuple of ``outputs``."""
        self._nodes(graph["nodes"], self._values)
        module = self._function(tuple(self._argument(*union(o), self._values) for o in outputs))
        forward: Callable[..., Any] = module.forward  # calling the module itself would look for hooks
        return forward

    def protected(self, fixed: Iterable[Any]) -> frozenset[int]:
        """The memory of the weights ``fixed``, where there are operators that could write to it."""
        if not self._writes:
            return frozenset()
        return frozenset({-1, *(memory(w) for w in fixed if isinstance(w, torch.Tensor) and w.numel())})

    def _function(self, output: Any) -> Any:
        """The finished module. What is written to in place is a copy, so that no run sees what another one left."""
        self._graph.output(output)
        for node in self._parameters:
            if node in self._written:
                with self._graph.inserting_after(self._parameters[-1]):
                    copy = self._graph.call_function(torch.ops.aten.clone.default, (node,))
                node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
        return fx.GraphModule(self._root, self._graph)

    def _nodes(self, nodes: Sequence[Mapping[str, Any]], values: dict[str, Any]) -> None:
        for node in nodes:
            target = node["target"]
            if target.startswith("torch.ops.higher_order."):
                self._higher_order(target.rpartition(".")[2], node, values)
            elif target in _FUNCTIONS:
                arguments = [self._argument(*union(i["arg"]), values) for i in node["inputs"]]
                result = self._graph.call_function(_FUNCTIONS[target], tuple(arguments))
                self._bind(node["outputs"][0], result, values)
            else:
                self._operator(_operator(target), node, values)

    def _operator(
        self, target: torch._ops.OpOverload, node: Mapping[str, Any], values: dict[str, Any]
    ) -> None:
        given = {i["name"]: (i["kind"], self._argument(*union(i["arg"]), values)) for i in node["inputs"]}
        schema = target._schema
        positional: list[Any] = []
        named: dict[str, Any] = {}
        written = _written(schema, given)
        self._graph.call_function(check)
        aliases: set[fx.Node] = set()
        for argument in schema.arguments:
            if argument.name not in given:
                continue
            kind, value = given.pop(argument.name)
            if argument.name in written:
                self._writes = True
                self._written |= self._views(value)
                value = self._graph.call_function(writable, (value,))
            elif argument.alias_info is not None:
                aliases |= self._views(value)
            if kind == _POSITIONAL or (kind is None and not argument.kwarg_only and not named):
                positional.append(value)
            else:
                named[argument.name] = value
        if given:
            raise BackendError(f"{target} has no argument {', '.join(given)} in this PyTorch")
        result = self._graph.call_function(target, tuple(positional), named)
        self._roots[result] = frozenset(aliases)
        outputs = node["outputs"]
        if len(schema.returns) == 1 and outputs:
            self._bind(outputs[0], result, values)
        else:
            self._bind_each(outputs, result, values)

    def _views(self, value: Any) -> frozenset[fx.Node]:
        """The parameters that ``value`` may share memory with, as far as operators say it of what they give."""
        parts = value if isinstance(value, list | tuple) else (value,)
        none: frozenset[fx.Node] = frozenset()
        return none.union(*(self._roots.get(part, none) for part in parts if isinstance(part, fx.Node)))

    def _bind(self, output: Mapping[str, Any], result: fx.Node, values: dict[str, Any]) -> None:
        kind, value = union(output)
        if kind == "as_tensor":
            values[value["name"]] = result
        elif kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            if "as_name" in value:
                values[value["as_name"]] = result
        elif kind in ("as_tensors", "as_optional_tensors", "as_sym_ints"):
            parts = (
                value
                if kind != "as_tensors"
                else [{"as_tensor": v} if "name" in v else {"as_sym_int": v} for v in value]
            )
            self._bind_each([p if "as_name" not in p else {"as_sym_int": p} for p in parts], result, values)
        elif kind not in ("as_none", "as_int", "as_float", "as_bool"):
            raise BackendError(f"an operator gives {kind[3:]}, which is not supported")

    def _bind_each(
        self, outputs: Sequence[Mapping[str, Any]], result: fx.Node, values: dict[str, Any]
    ) -> None:
        for i, output in enumerate(outputs):
            if union(output)[0] != "as_none":
                part = self._graph.call_function(operator.getitem, (result, i))
                self._roots[part] = self._roots.get(result, frozenset())
                self._bind(output, part, values)

    def _argument(self, kind: str, value: Any, values: Mapping[str, Any]) -> Any:
        reader = _READERS.get(kind)
        if reader is not None:
            return reader(value)
        if kind == "as_tensor":
            return values[value["name"]]
        if kind == "as_tensors":
            return [values[v["name"]] for v in value]
        if kind == "as_nested_tensors":
            return [[values[v["name"]] for v in row] for row in value]
        if kind in ("as_optional_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
            return self._optional(value, values)
        if kind in ("as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
            return [self._optional(v, values) for v in value]
        if kind == "as_device":
            return self._device
        if kind == "as_graph":
            return self._subgraph(value["graph"])
        raise BackendError(f"an operator takes {kind.removeprefix('as_')}, which is not supported")

    def _optional(self, value: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
        kind, content = union(value)
        if kind == "as_name":
            return values[content]
        return self._argument(kind, content, values)

    def _subgraph(self, graph: Mapping[str, Any]) -> fx.Node:
        inner = Lowering(self._device)
        for argument in graph["inputs"]:
            _, value = union(argument)
            inner.placeholder(value.get("name", value.get("as_name")))
        inner._nodes(graph["nodes"], inner._values)
        outputs = tuple(inner._argument(*union(o), inner._values) for o in graph["outputs"])
        module = inner._function(outputs[0] if graph["is_single_tensor_return"] else outputs)
        self._writes |= inner._writes
        name = f"g{len(list(self._root.children()))}"
        self._root.add_module(name, module)
        return self._graph.get_attr(name)

    def _higher_order(self, name: str, node: Mapping[str, Any], values: dict[str, Any]) -> None:
        if name == "wrap_with_set_grad_enabled":  # nothing here records gradients
            arguments = [i["arg"] for i in node["inputs"]]
            inner = union(arguments[1])[1]["graph"]
            scope = {
                union(p)[1]["name"]: self._argument(*union(a), values)
                for p, a in zip(inner["inputs"], arguments[2:], strict=True)
            }
            self._nodes(inner["nodes"], scope)
            for output, given in zip(node["outputs"], inner["outputs"], strict=True):
                values[union(output)[1]["name"]] = self._argument(*union(given), scope)
            return
        function = _HIGHER_ORDER.get(name)
        if function is None:
            raise BackendError(
                f"the program uses {name}, which is not supported; known: {', '.join(_HIGHER_ORDER)}"
            )
        parts = [self._argument(*union(i["arg"]), values) for i in node["inputs"]]
        result = self._graph.call_function(function, tuple(parts))
        if node["is_hop_single_tensor_return"] is False or len(node["outputs"]) != 1:
            self._bind_each(node["outputs"], result, values)
        else:
            self._bind(node["outputs"][0], result, values)


_READERS: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_int": int,
    "as_float": float,
    "as_bool": bool,
    "as_string": str,
    "as_complex": lambda v: complex(v["real"], v["imag"]),
    "as_ints": lambda v: [int(i) for i in v],
    "as_floats": lambda v: [float(i) for i in v],
    "as_bools": lambda v: [bool(i) for i in v],
    "as_strings": lambda v: [str(i) for i in v],
    "as_int_lists": lambda v: [[int(i) for i in row] for row in v],
    "as_scalar_type": SCALAR_TYPES.__getitem__,
    "as_memory_format": _MEMORY_FORMATS.__getitem__,
    "as_layout": {7: torch.strided}.__getitem__,
}
"""Arguments that are plain values. Whatever the archive holds becomes one of these types."""


def _operator(target: str) -> torch._ops.OpOverload:
    parts = target.split(".")
    if (
        len(parts) == 5
        and parts[:2] == ["torch", "ops"]
        and parts[2] in LIBRARIES
        and parts[3] not in _REFUSED
    ):
        found = getattr(getattr(getattr(torch.ops, parts[2]), parts[3], None), parts[4], None)
        if isinstance(found, torch._ops.OpOverload):
            return found
    raise BackendError(
        f"the program calls {target[:200]}, which is no operator of {' or '.join(sorted(LIBRARIES))} in PyTorch "
        f"{torch.__version__.partition('+')[0]}"
    )


def _written(schema: Any, given: Mapping[str, Any]) -> set[str]:
    """The arguments that an operator writes to."""
    written = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    # Normalisation in training mode also updates these, which not all of its schemas say.
    if any(given.get(flag, (0, False))[1] is True for flag in ("training", "train", "use_input_stats")):
        written |= {"running_mean", "running_var"} & given.keys()
    return written


def _cond(predicate: Any, yes: Callable[..., Any], no: Callable[..., Any], operands: Sequence[Any]) -> Any:
    return yes(*operands) if predicate else no(*operands)


def _while_loop(
    condition: Callable[..., Any], body: Callable[..., Any], carried: Sequence[Any], others: Sequence[Any]
) -> Any:
    state = tuple(carried)
    while condition(*state, *others):
        check()
        state = body(*state, *others)
    return state


def _autocast(
    kind: str, dtype: Any, enabled: Any, cache: Any, body: Callable[..., Any], *operands: Any
) -> Any:
    with torch.autocast(kind, dtype, enabled, cache) if kind else nullcontext():
        return body(*operands)


_HIGHER_ORDER: dict[str, Callable[..., Any]] = {
    "cond": _cond,
    "while_loop": _while_loop,
    "wrap_with_autocast": _autocast,
}
"""Control flow."""
