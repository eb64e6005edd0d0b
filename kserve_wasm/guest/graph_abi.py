"""Graphs over tensor handles: what of ``kserve_wasm.h`` joins WASI-NN's graphs and contexts to host tensors."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping

from kserve_wasm.batching import GraphScheduler
from kserve_wasm.errors import InvalidRequest
from kserve_wasm.guest.state import InstanceState
from kserve_wasm.tensors import Tensor
from kserve_wasm.wasi_nn.borrowed import AnyTensor
from kserve_wasm.wasi_nn.host_function import INVALID_ARGUMENT, NOT_FOUND, SUCCESS, TOO_LARGE, HostFunction

MODULE = "kserve_wasm"


def _graph_input_index(state: InstanceState, graph: int, name: int, length: int, index_out: int) -> int:
    opened = state.graphs.get(graph)
    if opened is None:
        return state.no_graph(graph)
    return _index(state, "input", [spec.name for spec in opened.inputs], name, length, index_out)


def _graph_output_index(state: InstanceState, graph: int, name: int, length: int, index_out: int) -> int:
    opened = state.graphs.get(graph)
    if opened is None:
        return state.no_graph(graph)
    return _index(state, "output", [spec.name for spec in opened.outputs], name, length, index_out)


def _set_input_tensor(state: InstanceState, context: int, index: int, tensor: int) -> int:
    opened = state.contexts.get(context)
    if opened is None:
        return state.no_context(context)
    found = state.tensors.get(tensor)
    if found is None:
        return state.no_tensor(tensor)
    specs = opened.graph.inputs
    if index >= len(specs):
        return state.no_input(opened, index)
    state.set_input(opened, specs[index].name, found)
    return SUCCESS


def _get_output_tensor(state: InstanceState, context: int, index: int, tensor_out: int) -> int:
    opened = state.contexts.get(context)
    if opened is None:
        return state.no_context(context)
    tensor = state.output(opened, index)
    if isinstance(tensor, int):
        return tensor
    errno = state.hand_out(tensor, tensor_out)
    if errno == SUCCESS:
        state.share(tensor)
    return errno


def _run_graph(state: InstanceState, name: int, length: int) -> int:
    scheduler = state.named_graph(name, length)
    if isinstance(scheduler, int):
        return scheduler
    given = state.request.inputs
    inputs = {}
    for spec in scheduler.graph.inputs:
        tensor = given.get(spec.name)
        if tensor is None:
            sent = ", ".join(f"'{name}'" for name in given) or "none"
            raise InvalidRequest(
                f"input '{spec.name}' is missing: expected {spec.dtype} {spec.v2_shape}, and got {sent}"
            )
        inputs[spec.name] = tensor
    if state.caller.defers and state.put_off is None:
        state.put_off = (scheduler, inputs)
        return SUCCESS
    return catch_up(state) or _run_now(state, scheduler, inputs)


def catch_up(state: InstanceState) -> int:
    """Runs the graph that was put off, for the guest goes on."""
    put_off, state.put_off = state.put_off, None
    return SUCCESS if put_off is None else _run_now(state, *put_off)


def _run_now(state: InstanceState, scheduler: GraphScheduler, inputs: Mapping[str, Tensor]) -> int:
    wanted = state.request.outputs
    began = time.perf_counter_ns()
    outputs = state.run(scheduler, inputs)
    state.caller.passed_on_ns += time.perf_counter_ns() - began
    if outputs is None:
        return TOO_LARGE
    for output, tensor in outputs.items():
        if wanted is None or output in wanted:
            replaced = state.outputs.get(output)
            state.outputs[output] = tensor
        else:
            replaced = tensor
        if replaced is not None:
            state.release(replaced)
    return SUCCESS


def _index(state: InstanceState, kind: str, names: list[str], name: int, length: int, index_out: int) -> int:
    asked = state.name(name, length)
    if asked is None:
        return INVALID_ARGUMENT
    if asked not in names:
        known = ", ".join(f"'{n}'" for n in names)
        return state.fail(NOT_FOUND, f"the graph has no {kind} '{asked}', but: {known}")
    state.memory.write_u32(index_out, names.index(asked))
    return SUCCESS


def _dispatch(
    state: InstanceState, graph: int, inputs: int, n_inputs: int, outputs: int, n_outputs: int
) -> int:
    opened = state.graphs.get(graph)
    if opened is None:
        return state.no_graph(graph)
    if (n_inputs, n_outputs) != (len(opened.inputs), len(opened.outputs)):
        return state.fail(
            INVALID_ARGUMENT,
            f"the graph has {len(opened.inputs)} inputs and {len(opened.outputs)} outputs; "
            f"dispatch got {n_inputs} and {n_outputs}",
        )
    handles = struct.unpack(f"<{n_inputs}I", state.memory.view(inputs, 4 * n_inputs))
    given: dict[str, AnyTensor] = {}
    for spec, handle in zip(opened.inputs, handles, strict=True):
        tensor = state.tensors.get(handle)
        if tensor is None:
            return state.no_tensor(handle)
        given[spec.name] = tensor
    state.memory.view(outputs, 4 * n_outputs)  # it is too late to find that out when the graph has run
    if not state.has_handles(n_outputs):
        return TOO_LARGE
    computed = state.run_open(opened, given)
    if isinstance(computed, int):
        return computed
    for i, spec in enumerate(opened.outputs):
        state.hand_out(computed[spec.name], outputs + 4 * i)
    return SUCCESS


FUNCTIONS = (
    HostFunction(MODULE, "graph_input_index", "iiii", _graph_input_index),
    HostFunction(MODULE, "graph_output_index", "iiii", _graph_output_index),
    HostFunction(MODULE, "set_input_tensor", "iii", _set_input_tensor),
    HostFunction(MODULE, "get_output_tensor", "iii", _get_output_tensor),
    HostFunction(MODULE, "dispatch", "iiiii", _dispatch),
    HostFunction(MODULE, "run_graph", "ii", _run_graph),
)
