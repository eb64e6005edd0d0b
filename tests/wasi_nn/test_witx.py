"""WASI-NN calls as guests make them, over ONNX Runtime; expected values from NumPy."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from kserve_wasm.artifact.config import Limits
from kserve_wasm.batching import Caller, DirectScheduler
from kserve_wasm.errors import BackendError, DeadlineExceeded, GuestError
from kserve_wasm.wasi_nn.host_function import (
    INVALID_ARGUMENT,
    INVALID_ENCODING,
    MISSING_MEMORY,
    NOT_FOUND,
    RUNTIME_ERROR,
    TOO_LARGE,
    UNSUPPORTED_OPERATION,
)
from kserve_wasm.wasi_nn.state import MAX_REASON, MAX_TEXT_ELEMENTS
from tests.backends import models
from tests.wasi_nn.support import FORMER, NOWHERE, TODAY, WIT_ORDER, Guest, sample, scheduler, tensors

MakeGuest = Callable[..., Guest]
A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = A[::-1] * 10
F32 = TODAY["FP32"]


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    return make_guest({"sum": models.add_and_subtract(), "mlp": models.mlp()})


def computed(guest: Guest) -> int:
    """A context of ``sum`` that has computed A + B and A - B."""
    context = guest.context("sum")
    assert guest.set_input(context, 0, A, F32) == 0
    assert guest.set_input(context, 1, B, F32) == 0
    assert guest.call("compute", context) == 0
    return context


# --- The whole way


def test_inputs_and_outputs_go_by_index_in_the_graphs_order(guest: Guest) -> None:
    context = computed(guest)
    np.testing.assert_array_equal(guest.output(context, 0, "<f4"), (A + B).ravel())
    np.testing.assert_array_equal(guest.output(context, 1, "<f4"), (A - B).ravel())


def test_contexts_of_one_graph_are_apart(guest: Guest) -> None:
    first, second = computed(guest), guest.context("sum")
    for index in (0, 1):
        guest.set_input(second, index, A, F32)
    guest.call("compute", second)
    np.testing.assert_array_equal(guest.output(second, 0, "<f4"), (2 * A).ravel())
    np.testing.assert_array_equal(guest.output(first, 0, "<f4"), (A + B).ravel())


def test_the_guest_may_reuse_its_buffer_after_set_input(guest: Guest) -> None:
    context = guest.context("sum")
    for index, array in enumerate((A, B)):
        record = guest.record(A.shape, F32, array.tobytes())
        assert guest.call("set_input", context, index, record) == 0
        data = guest.memory.read_u32(record + 12)
        guest.memory.view(data, array.nbytes)[:] = bytes(array.nbytes)
    assert guest.call("compute", context) == 0
    np.testing.assert_array_equal(guest.output(context, 0, "<f4"), (A + B).ravel())


def test_a_context_computes_again_with_new_values_and_shapes(guest: Guest) -> None:
    context = computed(guest)
    taken = guest.state.tensor_bytes
    assert guest.set_input(context, 0, B, F32) == 0
    assert guest.call("compute", context) == 0
    np.testing.assert_array_equal(guest.output(context, 0, "<f4"), (2 * B).ravel())
    assert guest.state.tensor_bytes == taken
    one = np.ones((1, 3), np.float32)
    for index in (0, 1):
        assert guest.set_input(context, index, one, F32) == 0
    assert guest.call("compute", context) == 0
    np.testing.assert_array_equal(guest.output(context, 0, "<f4"), 2 * np.ones(3))
    assert guest.state.tensor_bytes == taken // 2


def test_a_refused_input_leaves_the_one_set_before(guest: Guest) -> None:
    context = computed(guest)
    assert guest.call("set_input", context, 0, guest.record((2, 3), F32, bytes(23))) == INVALID_ARGUMENT
    assert guest.call("compute", context) == 0
    np.testing.assert_array_equal(guest.output(context, 0, "<f4"), (A + B).ravel())


DIALECTS = [(n, tag) for numbers in (TODAY, FORMER, WIT_ORDER) for n, tag in numbers.items()]
CARRIED = [("INT8", 3), ("BOOL", 2), ("UINT16", 0), ("INT16", 0), ("UINT32", 4), ("UINT64", 5)]


@pytest.mark.parametrize(("dtype", "tag"), sorted({*DIALECTS, *CARRIED}))
def test_every_type_goes_in_and_out_unchanged(make_guest: MakeGuest, dtype: str, tag: int) -> None:
    guest = make_guest({"same": models.identity(dtype, [None, None])})
    context = guest.context("same")
    array = sample(dtype)
    assert guest.set_input(context, 0, array, tag) == 0, guest.state.reason
    assert guest.call("compute", context) == 0, guest.state.reason
    assert guest.output(context, 0, np.uint8).tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1, 1)])
def test_scalars_and_empty_tensors_pass(make_guest: MakeGuest, shape: tuple[int, ...]) -> None:
    guest = make_guest({"same": models.identity("FP32", [None] * len(shape))})
    context = guest.context("same")
    array = np.full(shape, 7, np.float32)
    assert guest.set_input(context, 0, array, F32) == 0
    assert guest.call("compute", context) == 0
    assert guest.output(context, 0, np.uint8).tobytes() == array.tobytes()


def test_bool_bytes_other_than_0_and_1_are_refused_also_in_a_buffer_filled_anew(
    make_guest: MakeGuest,
) -> None:
    guest = make_guest({"same": models.identity("BOOL", [None])})
    context = guest.context("same")
    assert guest.set_input(context, 0, np.array([0, 1], np.uint8), 3) == 0
    assert guest.set_input(context, 0, np.array([0, 2], np.uint8), 3) == INVALID_ARGUMENT
    assert guest.state.cause is None


@pytest.mark.parametrize("dims", [[1], [5]])
def test_text_is_one_element_without_framing(make_guest: MakeGuest, dims: list[int]) -> None:
    guest = make_guest({"join": models.strings()})
    context = guest.context("join")
    for index, text in enumerate((b"hello", b"world")):
        assert guest.call("set_input", context, index, guest.record(dims, 3, text)) == 0
    assert guest.call("compute", context) == 0
    assert guest.output(context, 0, np.uint8).tobytes() == b"helloworld"


def test_several_texts_are_each_behind_their_length(make_guest: MakeGuest) -> None:
    guest = make_guest({"join": models.strings()})
    context = guest.context("join")

    def framed(*texts: bytes) -> bytes:
        return b"".join(struct.pack("<I", len(t)) + t for t in texts)

    for index, texts in enumerate(((b"a", b"bc"), (b"x", b""))):
        assert guest.call("set_input", context, index, guest.record([2], 3, framed(*texts))) == 0
    assert guest.call("compute", context) == 0
    assert guest.output(context, 0, np.uint8).tobytes() == framed(b"ax", b"bc")
    for data in (b"\xff\xff\xff\xff", b"\x01\0\0\0a", framed(b"a", b"b") + b"!"):
        assert guest.call("set_input", context, 0, guest.record([2], 3, data)) == INVALID_ARGUMENT
    assert guest.call("set_input", context, 0, guest.record([2], F32, framed(b"a", b"b"))) == INVALID_ARGUMENT


def test_u8_inputs_of_dims_1_take_the_length_of_the_data(make_guest: MakeGuest) -> None:
    guest = make_guest({"same": models.identity("UINT8", [None])})
    context = guest.context("same")
    assert guest.call("set_input", context, 0, guest.record([1], 3, b"a prompt")) == 0
    assert guest.call("compute", context) == 0
    assert guest.output(context, 0, np.uint8).tobytes() == b"a prompt"


# --- What goes wrong


def test_an_unknown_name_is_not_found_and_the_reason_names_the_known(guest: Guest) -> None:
    for name in ("../sum", "/etc/passwd", "", "su", "sum\0"):
        assert guest.kw_nn_load(name) == NOT_FOUND
    assert guest.kw_nn_load("nope") == NOT_FOUND
    assert "'nope'" in guest.state.reason
    assert "'sum', 'mlp'" in guest.state.reason


def test_names_must_be_short_utf8(guest: Guest) -> None:
    assert guest.call("load_by_name", guest.put(b"\xff\xfe"), 2, guest.out) == INVALID_ARGUMENT
    assert guest.call("load_by_name", 0, 5000, guest.out) == INVALID_ARGUMENT


def test_handles_of_another_kind_and_stale_ones_are_refused(guest: Guest) -> None:
    graph = guest.graph("sum")
    context = computed(guest)
    record = guest.record(A.shape, F32, A.tobytes())
    for wrong in (0, graph, context + 1, 0xFFFFFFFF):
        assert guest.call("compute", wrong) == INVALID_ARGUMENT
        assert guest.call("set_input", wrong, 0, record) == INVALID_ARGUMENT
        assert guest.call("get_output", wrong, 0, guest.out, 4, guest.out) == INVALID_ARGUMENT
        assert guest.call("finalize_execution_context", wrong) == INVALID_ARGUMENT
        assert guest.call("compute_single", wrong) == INVALID_ARGUMENT
    for wrong in (0, context, 0xFFFFFFFF):
        assert guest.call("init_execution_context", wrong, guest.out) == INVALID_ARGUMENT
        assert guest.call("unload", wrong) == INVALID_ARGUMENT
    assert guest.call("finalize_execution_context", context) == 0
    assert guest.call("compute", context) == INVALID_ARGUMENT
    assert guest.call("finalize_execution_context", context) == INVALID_ARGUMENT
    assert guest.context("sum") > context


def test_unload_ends_the_graphs_contexts_and_frees_their_tensors(guest: Guest) -> None:
    graph = guest.graph("sum")
    context = guest.handle(guest.call("init_execution_context", graph, guest.out))
    for index in (0, 1):
        guest.set_input(context, index, A, F32)
    guest.call("compute", context)
    assert guest.state.tensor_bytes == 4 * A.nbytes
    assert guest.call("unload", graph) == 0
    assert guest.state.tensor_bytes == 0
    assert guest.call("compute", context) == INVALID_ARGUMENT
    computed(guest)  # the graph itself is the model's, and still there


def test_compute_without_an_input_names_it(guest: Guest) -> None:
    context = guest.context("sum")
    guest.set_input(context, 1, A, F32)
    assert guest.call("compute", context) == INVALID_ARGUMENT
    assert "'a'" in guest.state.reason
    assert "'b'" not in guest.state.reason


def test_get_output_needs_a_successful_compute(guest: Guest) -> None:
    context = guest.context("sum")
    assert guest.call("get_output", context, 0, guest.out, 8, guest.out) == RUNTIME_ERROR
    context = computed(guest)
    guest.set_input(context, 0, np.ones((1, 1, 3), np.float32), F32)
    assert guest.call("compute", context) == INVALID_ARGUMENT
    assert guest.call("get_output", context, 0, guest.out, 8, guest.out) == RUNTIME_ERROR


def test_indices_past_the_last_are_refused_with_the_names(guest: Guest) -> None:
    context = computed(guest)
    assert guest.call("set_input", context, 2, guest.record([1], F32, bytes(4))) == INVALID_ARGUMENT
    assert "0: 'a', 1: 'b'" in guest.state.reason
    assert guest.call("get_output", context, 2, guest.out, 8, guest.out) == INVALID_ARGUMENT
    assert guest.call("get_output", context, 0xFFFFFFFF, guest.out, 8, guest.out) == INVALID_ARGUMENT


def test_a_type_that_is_not_the_inputs_is_refused_with_both(guest: Guest) -> None:
    context = guest.context("sum")
    assert guest.set_input(context, 1, A.astype(np.float64), TODAY["FP64"]) == INVALID_ARGUMENT
    assert guest.state.reason == (
        "input 'b' takes FP32 with shape [-1, 3]; the guest gave FP64, 6 elements in 48 bytes, shape [2, 3]"
    )


@pytest.mark.parametrize("capacity", [0, 1, 23])
def test_a_buffer_too_small_learns_the_size_and_is_not_touched(guest: Guest, capacity: int) -> None:
    context = computed(guest)
    buffer = guest.put(b"\xee" * 32)
    assert guest.call("get_output", context, 0, buffer, capacity, guest.out) == TOO_LARGE
    assert guest.result() == 24
    assert bytes(guest.memory.view(buffer, 32)) == b"\xee" * 32


def test_ranges_outside_the_memory_are_missing_memory(guest: Guest) -> None:
    context = computed(guest)
    name = guest.put(b"sum")
    end = len(guest.memory.data)
    good = guest.record(A.shape, F32, A.tobytes())
    dims, n_dims, tag, data, length = struct.unpack("<IIB3xII", guest.memory.view(good, 20))
    records = [
        guest.put(struct.pack("<IIB3xII", *r))
        for r in ((NOWHERE, n_dims, tag, data, length), (dims, n_dims, tag, end - length + 1, length))
    ]
    calls = [
        ("load_by_name", NOWHERE, 3, guest.out),
        ("load_by_name", name, 3, end - 3),
        ("load_by_name_with_config", name, 3, NOWHERE, 2, guest.out),
        ("init_execution_context", guest.graph("sum"), NOWHERE),
        ("set_input", context, 0, NOWHERE),
        *(("set_input", context, 0, record) for record in records),
        ("get_output", context, 0, NOWHERE, 24, guest.out),
        ("get_output", context, 0, guest.out, 0, NOWHERE),
        ("get_output", context, 0, guest.room(24), 24, NOWHERE),
    ]
    before = len(guest.state.graphs), len(guest.state.contexts)
    for call in calls:
        assert guest.call(*call) == MISSING_MEMORY, call
    assert (len(guest.state.graphs), len(guest.state.contexts)) == before


# --- Caps


def test_graphs_and_contexts_are_capped_together(make_guest: MakeGuest) -> None:
    guest = make_guest({"sum": models.add_and_subtract()}, limits=Limits(handles=5))
    graph = guest.graph("sum")
    contexts = [guest.handle(guest.call("init_execution_context", graph, guest.out)) for _ in range(4)]
    assert guest.call("init_execution_context", graph, guest.out) == TOO_LARGE
    assert guest.kw_nn_load("sum") == TOO_LARGE
    assert "limits.handles" in guest.state.reason
    assert guest.call("finalize_execution_context", contexts[0]) == 0
    assert guest.handle(guest.kw_nn_load("sum")) > contexts[-1]


def test_copies_and_outputs_count_against_tensor_bytes(make_guest: MakeGuest) -> None:
    guest = make_guest({"sum": models.add_and_subtract()}, limits=Limits(tensor_bytes=4 * A.nbytes - 1))
    context = guest.context("sum")
    for index in (0, 1):
        assert guest.set_input(context, index, A, F32) == 0
    assert guest.call("compute", context) == TOO_LARGE  # two outputs more
    assert "limits.tensor_bytes" in guest.state.reason
    assert guest.state.tensor_bytes == 2 * A.nbytes
    assert guest.call("get_output", context, 0, guest.out, 8, guest.out) == RUNTIME_ERROR
    other = guest.context("sum")
    assert guest.set_input(other, 0, A, F32) == 0
    assert guest.set_input(other, 1, A, F32) == TOO_LARGE


def test_text_counts_as_the_objects_it_becomes(make_guest: MakeGuest) -> None:
    guest = make_guest({"join": models.strings()}, limits=Limits(tensor_bytes=20_000))
    context = guest.context("join")
    thousand_empty = bytes(4 * 1000)
    assert guest.call("set_input", context, 0, guest.record([1000], 3, thousand_empty)) == TOO_LARGE
    assert guest.call("set_input", context, 0, guest.record([100], 3, bytes(400))) == 0


# --- Errors of graphs


def test_a_graphs_refusal_of_what_the_guest_made_is_the_guests_error(guest: Guest) -> None:
    context = guest.context("sum")
    for index in (0, 1):
        guest.set_input(context, index, np.ones((2, 4), np.float32), F32)
    assert guest.call("compute", context) == INVALID_ARGUMENT
    with pytest.raises(GuestError, match=r"^input 'a' must have shape \[-1, 3\]"):
        guest.state.finish(INVALID_ARGUMENT)


def test_a_guest_that_goes_on_after_a_failure_does_not_end_with_it(guest: Guest) -> None:
    """It may free and log before it gives up; after any other call, how it ends is its own affair."""
    context = guest.context("sum")
    for index in (0, 1):
        guest.set_input(context, index, np.ones((2, 4), np.float32), F32)
    assert guest.call("compute", context) == INVALID_ARGUMENT
    assert guest.kw("log", 3, "gave up") == 0
    assert guest.call("finalize_execution_context", context) == 0
    with pytest.raises(GuestError, match=r"^input 'a'"):
        guest.state.finish(77)
    guest.context("sum")
    assert guest.state.told() is None
    with pytest.raises(GuestError, match=r"^the guest's infer returned 77 "):
        guest.state.finish(77)


def test_a_failed_graph_keeps_no_frames_alive(guest: Guest, make_guest: MakeGuest) -> None:
    """Frames would hold the request's tensors, and memory of a guest that is gone."""
    guest = make_guest({"reshape": models.reshape()})
    context = guest.context("reshape")
    guest.set_input(context, 0, np.ones(4, np.float32), F32)
    guest.set_input(context, 1, np.array([3, 3]), TODAY["INT64"])
    assert guest.call("compute", context) == RUNTIME_ERROR
    cause = guest.state.cause
    assert isinstance(cause, BackendError)
    assert (cause.__traceback__, cause.__cause__, cause.__context__) == (None, None, None)
    guest.state.close()
    assert guest.state.cause is None


def test_a_guests_own_texts_are_capped_and_none_is_made_after_the_deadline(guest: Guest) -> None:
    """Each element becomes an object, in a host call that no deadline ends."""
    many = MAX_TEXT_ELEMENTS + 1
    guest = Guest({"join": models.strings()}, memory=4 * many + (1 << 16))
    context = guest.context("join")
    assert guest.call("set_input", context, 0, guest.record([many], 3, bytes(4 * many))) == TOO_LARGE
    assert f"{MAX_TEXT_ELEMENTS} elements, got {many}" in guest.state.reason
    guest.state.caller.deadline = time.monotonic()
    assert guest.call("set_input", context, 0, guest.record([2], 3, bytes(8))) == RUNTIME_ERROR
    with pytest.raises(DeadlineExceeded):
        guest.state.finish(0)
    guest.close()


def test_no_graph_is_opened_after_the_deadline(make_guest: MakeGuest) -> None:
    opened = []

    def opener(_encoding: str, data: tuple[bytes, ...]) -> DirectScheduler:
        opened.append(data)
        return scheduler(models.identity("FP32"))

    guest = make_guest(limits=Limits(load_bytes=1 << 20), opener=opener)
    data = b"\x08\x08graph"
    buffers = guest.put(struct.pack("<II", guest.put(data), len(data)))
    assert guest.call("load", buffers, 1, 1, 0, guest.out) == 0
    guest.state.caller.deadline = time.monotonic()
    assert guest.call("load", buffers, 1, 1, 0, guest.out) == RUNTIME_ERROR
    assert isinstance(guest.state.cause, DeadlineExceeded)
    assert opened == [(data,)]


def test_a_reason_is_cut_however_long_the_names_in_it_are(make_guest: MakeGuest) -> None:
    model = models.add_and_subtract()
    model.graph.input[0].name = model.graph.node[0].input[0] = model.graph.node[1].input[0] = "n" * 100_000
    guest = make_guest({"g": model})
    context = guest.context("g")
    assert guest.call("compute", context) == INVALID_ARGUMENT
    assert len(guest.state.reason) == MAX_REASON
    for index in (0, 1):
        guest.set_input(context, index, np.ones((2, 4), np.float32), F32)
    assert guest.call("compute", context) == INVALID_ARGUMENT
    with pytest.raises(GuestError) as caught:
        guest.state.finish(1)
    assert len(str(caught.value)) == MAX_REASON


def test_a_framework_failure_is_a_runtime_error_with_its_cause(make_guest: MakeGuest) -> None:
    guest = make_guest({"reshape": models.reshape()})
    context = guest.context("reshape")
    guest.set_input(context, 0, np.ones(4, np.float32), F32)
    guest.set_input(context, 1, np.array([3, 3]), TODAY["INT64"])
    assert guest.call("compute", context) == RUNTIME_ERROR
    cause = guest.state.cause
    assert isinstance(cause, BackendError)
    assert guest.call("get_output", context, 0, guest.out, 8, guest.out) == RUNTIME_ERROR
    assert guest.state.cause is cause
    guest.set_input(context, 1, np.array([2, 2]), TODAY["INT64"])
    assert guest.call("compute", context) == 0
    assert guest.state.cause is None


# --- load


def load(guest: Guest, *builders: bytes, encoding: int = 1, target: int = 0) -> int:
    pairs = b"".join(struct.pack("<II", guest.put(b), len(b)) for b in builders)
    return guest.call("load", guest.put(pairs), len(builders), encoding, target, guest.out)


SUM = models.add_and_subtract().SerializeToString()


class Opener:
    """Opens what it is given with ONNX Runtime, and remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[bytes, ...]]] = []

    def __call__(self, encoding: str, builders: tuple[bytes, ...]) -> DirectScheduler:
        self.seen.append((encoding, builders))
        return scheduler(onnx.load_from_string(builders[0]))


def test_load_is_off_unless_the_configuration_allows_it(make_guest: MakeGuest) -> None:
    opener = Opener()
    for guest in (make_guest(opener=opener), make_guest(limits=Limits(load_bytes=1 << 20))):
        assert load(guest, SUM) == UNSUPPORTED_OPERATION
        assert "limits.load_bytes" in guest.state.reason
    assert opener.seen == []


def test_load_opens_the_guests_bytes_and_counts_them(make_guest: MakeGuest) -> None:
    opener = Opener()
    guest = make_guest(opener=opener, limits=Limits(load_bytes=len(SUM)))
    graph = guest.handle(load(guest, SUM, encoding=5, target=1))
    assert opener.seen == [("onnx", (SUM,))]
    context = guest.handle(guest.call("init_execution_context", graph, guest.out))
    for index, array in enumerate((A, B)):
        guest.set_input(context, index, array, F32)
    assert guest.call("compute", context) == 0
    np.testing.assert_array_equal(guest.output(context, 1, "<f4"), (A - B).ravel())
    assert load(guest, SUM) == TOO_LARGE
    assert guest.call("unload", graph) == 0
    assert load(guest, SUM) == 0


def test_graphs_of_the_guests_own_bytes_are_closed_with_the_instance(make_guest: MakeGuest) -> None:
    guest = make_guest(opener=Opener(), limits=Limits(load_bytes=1 << 20))
    opened = guest.state.graphs[guest.handle(load(guest, SUM))].scheduler
    guest.state.close()
    with pytest.raises(Exception, match="closed"):
        opened.compute({}, Caller())


def test_load_refuses_what_no_format_is_and_wrong_arguments(make_guest: MakeGuest) -> None:
    guest = make_guest(opener=Opener(), limits=Limits(load_bytes=1 << 20))
    assert load(guest, b"\xffnothing", encoding=6) == INVALID_ENCODING
    assert load(guest, b"") == INVALID_ENCODING
    assert load(guest) == INVALID_ARGUMENT
    assert load(guest, *[b"x"] * 9) == INVALID_ARGUMENT
    assert load(guest, SUM, target=4) == INVALID_ARGUMENT
    assert guest.call("load", NOWHERE, 1, 1, 0, guest.out) == MISSING_MEMORY
    huge = guest.put(struct.pack("<II", 0, 0xFFFFFFFF))
    assert guest.call("load", huge, 1, 1, 0, guest.out) == TOO_LARGE


# --- WasmEdge's additions


@pytest.mark.parametrize("config", [b"", b"{}", b" { } \n", b"{}\0"])
def test_a_config_without_options_is_accepted(guest: Guest, config: bytes) -> None:
    arguments = guest.put(b"mlp"), 3, guest.put(config), len(config), guest.out
    graph = guest.handle(guest.call("load_by_name_with_config", *arguments))
    context = guest.handle(guest.call("init_execution_context", graph, guest.out))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    guest.set_input(context, 0, x, F32)
    assert guest.call("compute", context) == 0
    np.testing.assert_allclose(guest.output(context, 0, "<f4"), models.mlp_oracle(x).ravel(), rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "errno"),
    [
        (b'{"ctx-size": 10}', UNSUPPORTED_OPERATION),
        (b"[]", INVALID_ARGUMENT),
        (b"{", INVALID_ARGUMENT),
        (b"\xff", INVALID_ARGUMENT),
        (b"[" * 60_000, INVALID_ARGUMENT),
        (b" " * 65_537, TOO_LARGE),
    ],
)
def test_other_configs_are_refused(make_guest: MakeGuest, config: bytes, errno: int) -> None:
    guest = make_guest({"mlp": models.mlp()}, memory=1 << 18)
    arguments = guest.put(b"mlp"), 3, guest.put(config), len(config), guest.out
    assert guest.call("load_by_name_with_config", *arguments) == errno
    assert guest.state.cause is None


def test_single_token_calls_link_and_are_refused(guest: Guest) -> None:
    context = guest.context("mlp")
    assert guest.call("compute_single", context) == UNSUPPORTED_OPERATION
    assert guest.call("fini_single", context) == UNSUPPORTED_OPERATION
    assert guest.call("get_output_single", context, 0, guest.out, 8, guest.out) == UNSUPPORTED_OPERATION


# --- The policy


def test_an_unforeseen_exception_is_logged_and_its_text_kept_from_the_client(
    guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    context = computed(guest)
    guest.schedulers["sum"].graph.run = None  # type: ignore[method-assign,assignment]
    assert guest.call("compute", context) == RUNTIME_ERROR
    assert "NoneType" in caplog.text
    with pytest.raises(Exception, match="internal error in host function 'compute'") as caught:
        guest.state.finish(RUNTIME_ERROR)
    assert "NoneType" not in str(caught.value)


def test_a_guests_failure_without_words_tells_the_last_reason(guest: Guest) -> None:
    guest.kw_nn_load("nope")
    with pytest.raises(GuestError, match=r"infer returned 8 \(not_found\).*no graph is named 'nope'"):
        guest.state.finish(NOT_FOUND)
    with pytest.raises(GuestError, match="load returned 77 without"):
        guest.state.finish(77, "load")


def test_closing_an_instance_leaves_the_models_graphs_open(guest: Guest) -> None:
    computed(guest)
    guest.state.close()
    assert guest.state.tensor_bytes == 0
    outputs = guest.schedulers["sum"].compute(tensors(a=A, b=B), Caller())
    np.testing.assert_array_equal(outputs["sum"].numpy(), A + B)
