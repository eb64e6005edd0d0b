"""The tensor ABI as guests call it, over ONNX Runtime; expected values from NumPy and kserve_wasm.h."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kserve_wasm.artifact.config import Limits
from kserve_wasm.batching import Caller
from kserve_wasm.errors import DeadlineExceeded, GuestError, GuestLimitExceeded, GuestRejected, InvalidRequest
from kserve_wasm.request import InferenceRequest
from kserve_wasm.tensors import DTYPES, Tensor
from kserve_wasm.wasi_nn.host_function import (
    INVALID_ARGUMENT,
    MISSING_MEMORY,
    NOT_FOUND,
    TOO_LARGE,
)
from kserve_wasm.wasi_nn.state import MAX_TEXT_ELEMENTS
from tests.backends import models
from tests.wasi_nn.support import NOWHERE, TODAY, Guest, sample, tensors

MakeGuest = Callable[..., Guest]
A = np.arange(6, dtype=np.float32).reshape(2, 3)
TEXT = np.array([b"one", b"\xff\xfe", b""], dtype=object)
NUMERIC = [name for name, dtype in DTYPES.items() if dtype.itemsize]


@pytest.fixture
def make_guest() -> Iterator[MakeGuest]:
    made: list[Guest] = []

    def make(*arguments: Any, request: InferenceRequest | None = None, **keywords: Any) -> Guest:
        guest = Guest(*arguments, **keywords)
        made.append(guest)
        guest.state.begin(request or InferenceRequest(tensors(a=A, text=TEXT)), Caller())
        return guest

    yield make
    for guest in made:
        guest.close()


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    return make_guest({"sum": models.add_and_subtract()})


def text(guest: Guest, name: str, *arguments: int | str) -> str:
    """What a call writes as text, asked for its length first as C programs do."""
    assert guest.kw(name, *arguments, 0, 0, guest.out) in (0, TOO_LARGE)
    size = guest.result()
    buffer = guest.room(size + 8)
    assert guest.kw(name, *arguments, buffer, size, guest.out) == 0
    assert guest.result() == size
    return bytes(guest.memory.view(buffer, size)).decode()


def dims(guest: Guest, shape: Sequence[int]) -> int:
    return guest.put(struct.pack(f"<{len(shape)}q", *shape))


def make(guest: Guest, array: npt.NDArray[Any], name: str = "tensor_create") -> int:
    data = Tensor.from_numpy(array).buffer()
    number = Tensor.from_numpy(array).dtype.onnx
    at = guest.put(bytes(data))
    return guest.handle(
        guest.kw(name, number, dims(guest, array.shape), array.ndim, at, len(data), guest.out)
    )


def read(guest: Guest, tensor: int, length: int, offset: int = 0) -> bytes:
    buffer = guest.room(length)
    assert guest.kw("tensor_read", tensor, offset, buffer, length) == 0
    return bytes(guest.memory.view(buffer, length))


def info(guest: Guest, tensor: int) -> tuple[int, ...]:
    at = guest.room(24)
    assert guest.kw("tensor_info", tensor, at) == 0
    return struct.unpack("<IIQQ", guest.memory.view(at, 24))


def answer(guest: Guest, **outputs: int) -> dict[str, Tensor]:
    for name, tensor in outputs.items():
        assert guest.kw("output_set", name, tensor) == 0
    return guest.state.finish(0).outputs


# --- The request


def test_inputs_are_found_by_index_and_name_in_the_requests_order(guest: Guest) -> None:
    assert guest.handle(guest.kw("input_count", guest.out)) == 2
    assert [text(guest, "input_name", i) for i in range(2)] == ["a", "text"]
    by_index = guest.handle(guest.kw("input_by_index", 0, guest.out))
    by_name = guest.handle(guest.kw("input_by_name", "a", guest.out))
    assert read(guest, by_index, A.nbytes) == read(guest, by_name, A.nbytes) == A.tobytes()
    assert info(guest, by_name) == (DTYPES["FP32"].onnx, 2, 6, 24)


def test_inputs_that_are_not_there_are_not_found_and_the_reason_names_those_that_are(guest: Guest) -> None:
    assert guest.kw("input_by_index", 2, guest.out) == NOT_FOUND
    assert guest.kw("input_name", 2, guest.out, 4, guest.out) == NOT_FOUND
    assert guest.kw("input_by_name", "b", guest.out) == NOT_FOUND
    assert guest.state.reason == "the request has no input 'b'; its inputs: 'a', 'text'"


def test_text_inputs_are_read_length_prefixed(guest: Guest) -> None:
    tensor = guest.handle(guest.kw("input_by_name", "text", guest.out))
    expected = b"\x03\0\0\0one\x02\0\0\0\xff\xfe\0\0\0\0"
    assert info(guest, tensor) == (DTYPES["BYTES"].onnx, 1, 3, len(expected))
    assert read(guest, tensor, len(expected)) == expected


def test_parameters_are_text_and_the_requests_win_over_the_models(make_guest: MakeGuest) -> None:
    parameters = {"flag": True, "off": False, "n": -7, "x": 0.5, "s": "ä", "shared": "request"}
    guest = make_guest(
        request=InferenceRequest({}, None, parameters, id="id-7"), parameters={"shared": "model", "own": "m"}
    )
    expected = {
        "flag": "true",
        "off": "false",
        "n": "-7",
        "x": "0.5",
        "s": "ä",
        "shared": "request",
        "own": "m",
    }
    assert {name: text(guest, "parameter", name) for name in expected} == expected
    assert guest.kw("parameter", "none", guest.out, 8, guest.out) == NOT_FOUND
    assert text(guest, "request_id") == "id-7"


def test_text_that_utf8_cannot_say_does_not_fail_the_guest(make_guest: MakeGuest) -> None:
    guest = make_guest(request=InferenceRequest({}, id="\ud800!"))
    assert text(guest, "request_id") == "?!"


# --- Tensors


@pytest.mark.parametrize("dtype", NUMERIC)
@pytest.mark.parametrize("way", ["tensor_create", "tensor_borrow"])
def test_every_type_is_made_described_read_and_answered(guest: Guest, dtype: str, way: str) -> None:
    array = sample(dtype, (2, 1, 3))
    tensor = make(guest, array, way)
    assert info(guest, tensor) == (DTYPES[dtype].onnx, 3, 6, array.nbytes)
    shape = guest.room(24)
    assert guest.kw("tensor_shape", tensor, shape, 3) == 0
    assert struct.unpack("<qqq", guest.memory.view(shape, 24)) == (2, 1, 3)
    item = array.itemsize
    assert read(guest, tensor, 2 * item, item) == array.tobytes()[item : 3 * item]
    output = answer(guest, y=tensor)["y"]
    assert output.dtype is DTYPES[dtype]
    assert output.shape == (2, 1, 3)
    assert bytes(output.buffer()) == array.tobytes()


def test_texts_are_made_and_answered(guest: Guest) -> None:
    assert answer(guest, y=make(guest, TEXT))["y"].numpy().tolist() == TEXT.tolist()


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0, 2)])
def test_scalars_and_empty_tensors_are_made(guest: Guest, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.int64)
    tensor = make(guest, array)
    assert info(guest, tensor) == (DTYPES["INT64"].onnx, len(shape), array.size, array.nbytes)
    assert answer(guest, y=tensor)["y"].shape == shape


def test_a_created_tensor_is_a_copy_and_a_borrowed_one_is_the_memory_until_infer_returns(
    guest: Guest,
) -> None:
    at = guest.put(b"\x01\x02")
    shape = dims(guest, (2,))
    created = guest.handle(guest.kw("tensor_create", 2, shape, 1, at, 2, guest.out))
    borrowed = guest.handle(guest.kw("tensor_borrow", 2, shape, 1, at, 2, guest.out))
    guest.memory.data[at] = 9
    outputs = answer(guest, created=created, borrowed=borrowed)
    guest.memory.data[at] = 77
    assert outputs["created"].numpy().tolist() == [1, 2]
    assert outputs["borrowed"].numpy().tolist() == [9, 2]


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "words"),
    [
        (0, (1,), 4, "0 is no element type"),
        (14, (1,), 8, "14 is no element type"),
        (1, (2, 3), 23, "needs 24 bytes, got 23"),
        (1, (-1,), 4, "dimensions"),
        (1, (-1, -1), 4, "dimensions"),
        (1, (0, 2**62, 2**62), 0, "dimensions"),
        (1, (1,) * 65, 4, "65"),
        (2, (2**59,), 4, "needs"),
        (8, (2**40,), 64, "needs at least"),
        (8, (1,), 2, "needs at least"),
        (8, (1,), 9, "says it has"),
        (9, (2,), 2, "0 and 1"),
    ],
)
def test_wrong_types_shapes_and_lengths_are_the_guests_fault(
    guest: Guest, dtype: int, shape: tuple[int, ...], size: int, words: str
) -> None:
    at = guest.put(b"\x07" * size)
    arguments = dtype, dims(guest, shape), len(shape), at, size, guest.out
    assert guest.kw("tensor_create", *arguments) == INVALID_ARGUMENT
    assert words in guest.state.reason
    assert guest.state.cause is None


def test_borrowing_needs_alignment_and_a_fixed_size(guest: Guest) -> None:
    at, shape = guest.room(64), dims(guest, (2,))
    assert guest.kw("tensor_borrow", DTYPES["FP32"].onnx, shape, 1, at + 2, 8, guest.out) == INVALID_ARGUMENT
    assert "multiple of 4" in guest.state.reason
    assert guest.kw("tensor_borrow", DTYPES["BYTES"].onnx, shape, 1, at, 8, guest.out) == INVALID_ARGUMENT
    assert guest.kw("tensor_borrow", DTYPES["UINT8"].onnx, shape, 1, at + 1, 2, guest.out) == 0


def test_borrowed_bools_are_checked_when_they_are_used(guest: Guest) -> None:
    at, shape = guest.put(b"\x01\x05"), dims(guest, (2,))
    tensor = guest.handle(guest.kw("tensor_borrow", 9, shape, 1, at, 2, guest.out))
    with pytest.raises(GuestError, match="0 and 1"):
        answer(guest, y=tensor)


def test_reading_past_the_end_is_too_large(guest: Guest) -> None:
    tensor = make(guest, A)
    for offset, length in ((0, 25), (24, 1), (2**64 - 1, 1), (2**32, 0)):
        assert guest.kw("tensor_read", tensor, offset, guest.out, length) == TOO_LARGE
    assert guest.kw("tensor_read", tensor, 24, guest.out, 0) == 0
    assert guest.kw("tensor_shape", tensor, guest.out, 1) == TOO_LARGE


def test_a_dropped_handle_is_gone_and_never_given_again(guest: Guest) -> None:
    tensor = make(guest, A)
    assert guest.kw("tensor_drop", tensor) == 0
    for call in (
        ("tensor_drop", tensor),
        ("tensor_info", tensor, guest.out),
        ("tensor_shape", tensor, guest.out, 8),
        ("tensor_read", tensor, 0, guest.out, 0),
        ("output_set", "y", tensor),
        ("set_input_tensor", guest.context("sum"), 0, tensor),
    ):
        assert guest.kw(*call) == INVALID_ARGUMENT
    assert make(guest, A) > tensor


def test_ranges_outside_the_memory_are_missing_memory_and_make_nothing(guest: Guest) -> None:
    tensor, at = make(guest, A), guest.room(64)
    alive = len(guest.state.tensors)
    taken = guest.state.tensor_bytes
    for call in (
        ("input_count", NOWHERE),
        ("input_name", 0, NOWHERE, 8, guest.out),
        ("input_by_index", 0, NOWHERE),
        ("input_by_name", NOWHERE, 1, guest.out),
        ("input_by_name", "a", NOWHERE),
        ("parameter", NOWHERE, 4, at, 8, guest.out),
        ("request_id", at, 0, NOWHERE),
        ("tensor_create", 1, NOWHERE, 1, at, 4, guest.out),
        ("tensor_create", 2, dims(guest, (8,)), 1, NOWHERE, 8, guest.out),
        ("tensor_create", 2, dims(guest, (8,)), 1, at, 8, NOWHERE),
        ("tensor_borrow", 2, dims(guest, (32,)), 1, NOWHERE, 32, guest.out),
        ("tensor_info", tensor, NOWHERE),
        ("tensor_shape", tensor, NOWHERE, 2),
        ("tensor_read", tensor, 0, NOWHERE, 24),
        ("output_set", NOWHERE, 1, tensor),
        ("output_requested", "y", NOWHERE),
        ("output_parameter", NOWHERE, 1, at, 1),
        ("output_parameter", at, 1, NOWHERE, 32),
        ("fail", 0, NOWHERE, 32),
        ("log", 0, NOWHERE, 32),
    ):
        assert guest.kw(*call) == MISSING_MEMORY, call
    assert (len(guest.state.tensors), guest.state.tensor_bytes) == (alive, taken)


def test_nothing_is_written_through_one_pointer_when_another_is_wrong(make_guest: MakeGuest) -> None:
    guest = make_guest(request=InferenceRequest({}, id="request"))
    guest.memory.write_u32(guest.out, 0x5A5A5A5A)
    assert guest.kw("request_id", NOWHERE, 100, guest.out) == MISSING_MEMORY
    assert guest.result() == 0x5A5A5A5A


# --- The response


def test_the_last_output_of_a_name_counts_and_outlives_its_handle(guest: Guest) -> None:
    first, second = make(guest, A), make(guest, A * 2)
    guest.kw("output_set", "y", first)
    guest.kw("output_set", "y", second)
    guest.kw("tensor_drop", second)
    outputs = guest.state.finish(0).outputs
    np.testing.assert_array_equal(outputs["y"].numpy(), A * 2)


def test_only_requested_outputs_are_kept_and_one_never_set_is_the_guests_failure(
    make_guest: MakeGuest,
) -> None:
    guest = make_guest(request=InferenceRequest(tensors(a=A), ["y", "z"]))
    for name, wanted in (("y", 1), ("z", 1), ("other", 0)):
        assert guest.handle(guest.kw("output_requested", name, guest.out)) == wanted
    tensor = make(guest, A)
    with pytest.raises(GuestError, match="requested output 'z'"):
        answer(guest, y=tensor, other=tensor)
    assert list(answer(guest, z=tensor)) == ["y", "z"]


def test_a_texts_elements_are_capped(make_guest: MakeGuest) -> None:
    """Each becomes an object, in a host call that no deadline ends."""
    many = MAX_TEXT_ELEMENTS + 1
    guest = make_guest(memory=4 * many + (1 << 16))
    data = guest.room(4 * many)
    create = (DTYPES["BYTES"].onnx, guest.put(struct.pack("<q", many)), 1, data, 4 * many, guest.out)
    assert guest.kw("tensor_create", *create) == TOO_LARGE
    assert guest.state.reason.endswith(f"{MAX_TEXT_ELEMENTS} elements, got {many}")


def test_an_answer_after_the_deadline_is_none(guest: Guest) -> None:
    guest.state.caller.deadline = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        guest.state.finish(0)


def test_all_outputs_are_wanted_when_none_is_named(guest: Guest) -> None:
    assert guest.handle(guest.kw("output_requested", "anything", guest.out)) == 1
    tensor = make(guest, A)
    assert list(answer(guest, b=tensor, a=tensor)) == ["b", "a"]


def test_an_input_handed_back_is_the_requests_own_tensor(guest: Guest) -> None:
    tensor = guest.handle(guest.kw("input_by_name", "a", guest.out))
    assert answer(guest, y=tensor)["y"] is guest.state.request.inputs["a"]
    assert guest.state.tensor_bytes == 0


def test_response_parameters_are_kept(guest: Guest) -> None:
    assert guest.kw("output_parameter", "k", "old") == 0
    assert guest.kw("output_parameter", "k", "ü") == 0
    assert guest.kw("output_parameter", "k", guest.put(b"\xff"), 1) == INVALID_ARGUMENT
    assert guest.state.finish(0).parameters == {"k": "ü"}


@pytest.mark.parametrize(("whose", "kind"), [(0, GuestRejected), (1, GuestError)])
def test_a_failure_in_the_guests_words_is_what_the_client_reads(
    guest: Guest, whose: int, kind: type[Exception]
) -> None:
    guest.kw_nn_load("nope")
    assert guest.kw("fail", whose, "first") == 0
    assert guest.kw("fail", whose, "too dark a picture") == 0
    with pytest.raises(kind, match=r"^too dark a picture$"):
        guest.state.finish(5)
    assert guest.kw("fail", 2, "x") == INVALID_ARGUMENT


def test_a_failures_message_is_cut_and_never_empty(guest: Guest) -> None:
    assert guest.kw("fail", 0, guest.put(b"\xff" + b"x" * 9000), 9001) == 0
    assert str(guest.state.told()) == "\ufffd" + "x" * 4095
    assert guest.kw("fail", 0, 0, 0) == 0
    assert str(guest.state.told())


def test_log_lines_have_their_severity_and_no_control_characters(guest: Guest) -> None:
    assert guest.kw("log", 2, "grün\nINFO forged\x1b[0m") == 0
    assert guest.log == [(2, "grün\\nINFO forged\\x1b[0m")]
    assert guest.kw("log", 4, "x") == INVALID_ARGUMENT


def test_the_log_is_capped_for_each_request(make_guest: MakeGuest) -> None:
    guest = make_guest(limits=Limits(log_bytes=10))
    assert guest.kw("log", 0, "12345") == 0
    assert guest.kw("log", 0, "6789") == TOO_LARGE
    guest.state.print("dropped, because too long")
    guest.state.begin(InferenceRequest({}), Caller())
    assert guest.kw("log", 0, "again") == 0
    guest.state.print("ab\n")
    assert [line for _, line in guest.log] == ["12345", "again", "ab"]


# --- Graphs


def test_a_tensor_goes_from_request_to_graph_to_response_without_touching_the_guests_memory(
    guest: Guest,
) -> None:
    context = guest.context("sum")
    a = guest.handle(guest.kw("input_by_name", "a", guest.out))
    graph = guest.graph("sum")
    guest.memory.data[1024:] = bytes(len(guest.memory.data) - 1024)
    index = guest.handle(guest.kw("graph_input_index", graph, "b", guest.out))
    assert index == 1
    assert guest.kw("set_input_tensor", context, 0, a) == 0
    assert guest.kw("set_input_tensor", context, index, a) == 0
    assert guest.call("compute", context) == 0
    index = guest.handle(guest.kw("graph_output_index", graph, "sum", guest.out))
    y = guest.handle(guest.kw("get_output_tensor", context, index, guest.out))
    output = answer(guest, y=y)["y"]
    np.testing.assert_array_equal(output.numpy(), 2 * A)
    assert not any(guest.memory.data[1024:])
    assert guest.state.contexts[context].outputs["sum"] is output  # type: ignore[index]


def test_a_borrowed_input_is_taken_as_it_is_at_compute(guest: Guest) -> None:
    context = guest.context("sum")
    at, shape = guest.put(A.tobytes()), dims(guest, A.shape)
    tensor = guest.handle(guest.kw("tensor_borrow", 1, shape, 2, at, A.nbytes, guest.out))
    for index in (0, 1):
        assert guest.kw("set_input_tensor", context, index, tensor) == 0
    assert guest.kw("tensor_drop", tensor) == 0
    for factor in (1, 3):
        guest.memory.view(at, A.nbytes)[:] = (A * factor).tobytes()
        assert guest.call("compute", context) == 0
        np.testing.assert_array_equal(guest.output(context, 0, "<f4"), (2 * factor * A).ravel())


def test_a_copy_set_by_wasi_nn_and_a_handle_may_follow_each_other(guest: Guest) -> None:
    context = guest.context("sum")
    assert guest.set_input(context, 1, A, TODAY["FP32"]) == 0
    for values in (A, A + 1):
        assert guest.set_input(context, 0, A * 0, TODAY["FP32"]) == 0
        kept = make(guest, values)
        assert guest.kw("set_input_tensor", context, 0, kept) == 0
        assert guest.call("compute", context) == 0
        np.testing.assert_array_equal(guest.output(context, 0, "<f4"), (values + A).ravel())
        assert guest.set_input(context, 0, A * 0, TODAY["FP32"]) == 0
        assert read(guest, kept, A.nbytes) == values.tobytes()
        assert guest.call("compute", context) == 0
        np.testing.assert_array_equal(guest.output(context, 0, "<f4"), A.ravel())


def test_unknown_names_of_graph_tensors_are_not_found(guest: Guest) -> None:
    graph = guest.graph("sum")
    assert guest.kw("graph_input_index", graph, "sum", guest.out) == NOT_FOUND
    assert guest.state.reason == "the graph has no input 'sum', but: 'a', 'b'"
    assert guest.kw("graph_output_index", graph, "a", guest.out) == NOT_FOUND
    assert guest.kw("graph_input_index", graph + 1, "a", guest.out) == INVALID_ARGUMENT


def test_a_client_tensor_that_the_graph_refuses_is_the_clients_error(make_guest: MakeGuest) -> None:
    request = InferenceRequest(tensors(a=np.ones((2, 4), np.float32)))
    guest = make_guest({"sum": models.add_and_subtract()}, request=request)
    context, a = guest.context("sum"), guest.handle(guest.kw("input_by_name", "a", guest.out))
    for index in (0, 1):
        assert guest.kw("set_input_tensor", context, index, a) == 0
    assert guest.call("compute", context) == INVALID_ARGUMENT
    with pytest.raises(InvalidRequest, match=r"'a' must have shape \[-1, 3\]"):
        guest.state.finish(1)


class PassThrough:
    """A graph that answers its input itself, or a part of it: what no ONNX graph does, but a backend may."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def compute(self, inputs: dict[str, Tensor], _deadline: float) -> dict[str, Tensor]:
        part = inputs["a"].numpy()[:1]
        return {"sum": inputs["a"], "difference": Tensor.from_numpy(part)}

    def close(self) -> None:
        self.graph.close()


def test_an_output_that_is_an_input_does_not_change_with_the_guests_memory(guest: Guest) -> None:
    context = guest.context("sum")
    opened = guest.state.contexts[context].graph
    opened.scheduler = PassThrough(opened.scheduler.graph)  # type: ignore[assignment]
    at = guest.put(A.tobytes())
    tensor = guest.handle(guest.kw("tensor_borrow", 1, dims(guest, A.shape), 2, at, A.nbytes, guest.out))
    for index in (0, 1):
        guest.kw("set_input_tensor", context, index, tensor)
    assert guest.call("compute", context) == 0
    handles = [guest.handle(guest.kw("get_output_tensor", context, i, guest.out)) for i in (0, 1)]
    guest.memory.view(at, A.nbytes)[:] = bytes(A.nbytes)
    outputs = answer(guest, whole=handles[0], part=handles[1])
    np.testing.assert_array_equal(outputs["whole"].numpy(), A)
    np.testing.assert_array_equal(outputs["part"].numpy(), A[:1])


# --- Caps


def test_handles_are_capped(make_guest: MakeGuest) -> None:
    guest = make_guest(limits=Limits(handles=3))
    handles = [guest.handle(guest.kw("input_by_index", 0, guest.out)) for _ in range(3)]
    assert guest.kw("input_by_index", 0, guest.out) == TOO_LARGE
    assert guest.kw("tensor_create", 2, 0, 0, guest.put(b"x"), 1, guest.out) == TOO_LARGE
    assert guest.state.tensor_bytes == 0
    assert guest.kw("tensor_drop", handles[1]) == 0
    assert guest.handle(guest.kw("input_by_index", 0, guest.out)) == handles[-1] + 1


def test_a_tensor_counts_once_and_until_nothing_holds_it(make_guest: MakeGuest) -> None:
    guest = make_guest({"sum": models.add_and_subtract()}, limits=Limits(tensor_bytes=3 * A.nbytes))
    context, tensor = guest.context("sum"), make(guest, A)
    for index in (0, 1):
        guest.kw("set_input_tensor", context, index, tensor)
    guest.kw("output_set", "y", tensor)
    assert guest.state.tensor_bytes == A.nbytes
    guest.kw("tensor_drop", tensor)
    assert guest.call("compute", context) == 0
    assert guest.state.tensor_bytes == 3 * A.nbytes
    y = guest.handle(guest.kw("get_output_tensor", context, 0, guest.out))
    assert guest.kw("tensor_create", 2, 0, 0, guest.put(b"x"), 1, guest.out) == TOO_LARGE
    assert guest.call("finalize_execution_context", context) == 0
    assert guest.state.tensor_bytes == 2 * A.nbytes  # the output y, and the tensor of handle y
    guest.kw("tensor_drop", y)
    assert guest.state.tensor_bytes == A.nbytes
    guest.state.begin(InferenceRequest({}), Caller())
    assert guest.state.tensor_bytes == 0


def test_one_range_lent_many_times_cannot_become_many_copies(make_guest: MakeGuest) -> None:
    guest = make_guest(limits=Limits(tensor_bytes=10_000))
    lent = guest.handle(guest.kw("tensor_borrow", 2, dims(guest, (4096,)), 1, 4096, 4096, guest.out))
    with pytest.raises(GuestLimitExceeded, match=r"limits\.tensor_bytes"):
        answer(guest, a=lent, b=lent, c=lent)


def test_lent_outputs_of_earlier_requests_do_not_count(make_guest: MakeGuest) -> None:
    guest = make_guest(limits=Limits(tensor_bytes=10_000))
    for _ in range(5):
        lent = guest.handle(guest.kw("tensor_borrow", 2, dims(guest, (4096,)), 1, 4096, 4096, guest.out))
        assert list(answer(guest, a=lent, b=lent)) == ["a", "b"]
        guest.state.begin(InferenceRequest({}), Caller())


def test_names_and_parameters_of_a_response_are_capped(make_guest: MakeGuest) -> None:
    guest = make_guest(memory=1 << 21)
    big = guest.put(b"v" * (1 << 20))
    assert guest.kw("output_parameter", "k", big, 1 << 20) == TOO_LARGE
    guest.state.begin(InferenceRequest({}), Caller())
    tensor, name = make(guest, A), guest.room(8)
    for n in range(100_000):
        guest.memory.view(name, 7)[:] = b"%07d" % n
        if guest.call("output_set", name, 7, tensor, module="kserve_wasm"):
            break
    assert len(guest.state.outputs) == n < 20_000
    assert "names and parameters" in guest.state.reason


# --- From request to request in one instance


def test_what_load_opened_is_there_at_every_request_and_nothing_else() -> None:
    guest = Guest({"sum": models.add_and_subtract()})
    context = guest.context("sum")
    constant = make(guest, A)
    assert guest.kw("set_input_tensor", context, 1, constant) == 0
    guest.set_input(context, 0, A * 0, TODAY["FP32"])
    for round_ in (1, 2, 3):
        guest.state.begin(InferenceRequest(tensors(a=A * round_)), Caller())
        assert guest.call("get_output", context, 0, guest.out, 0, guest.out) == 5
        assert guest.call("compute", context) == 0
        np.testing.assert_array_equal(guest.output(context, 0, "<f4"), A.ravel())  # 0 + A, as load left it
        guest.set_input(context, 0, A * round_, TODAY["FP32"])
        a = guest.handle(guest.kw("input_by_index", 0, guest.out))
        assert guest.kw("set_input_tensor", context, 1, a) == 0
        assert guest.call("compute", context) == 0
        y = guest.handle(guest.kw("get_output_tensor", context, 0, guest.out))
        np.testing.assert_array_equal(answer(guest, y=y)["y"].numpy(), 2 * round_ * A)
        guest.context("sum")
        assert guest.state.tensor_bytes == 2 * A.nbytes + A.nbytes + 2 * A.nbytes
        stale = y
    guest.state.begin(InferenceRequest({}), Caller())
    assert guest.kw("tensor_drop", stale) == INVALID_ARGUMENT
    assert list(guest.state.contexts) == [context]
    assert guest.state.tensor_bytes == 2 * A.nbytes
    assert guest.state.outputs == {}
    guest.close()


def test_a_failure_of_one_request_is_not_told_at_the_next(make_guest: MakeGuest) -> None:
    guest = make_guest({"sum": models.add_and_subtract()})
    guest.kw("fail", 0, "no")
    guest.kw_nn_load("nope")
    guest.state.begin(InferenceRequest({}), Caller())
    assert guest.state.told() is None
    with pytest.raises(
        GuestError, match=r"^the guest's infer returned 3 \(missing_memory\) without a message$"
    ):
        guest.state.finish(3)
