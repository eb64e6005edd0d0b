"""Hostile guests: every host function with any arguments over any memory."""

from __future__ import annotations

import contextlib
import struct
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_wasm.artifact.config import Limits
from kserve_wasm.batching import Caller
from kserve_wasm.errors import WasmServingError
from kserve_wasm.guest.host_functions import BASIC
from kserve_wasm.guest.state import InstanceState, invoke
from kserve_wasm.request import InferenceRequest, InferenceResponse
from kserve_wasm.tensors import Tensor
from kserve_wasm.wasi_nn.host_function import ERRNO_NAMES, HostFunction
from kserve_wasm.wasi_nn.registry import GraphRegistry
from tests.backends import models
from tests.support.counts import count
from tests.wasi_nn.support import Memory, scheduler

SIZE = 4096
LIMITS = Limits(handles=12, tensor_bytes=2000, load_bytes=3000, log_bytes=300)

# Records as a correct guest has them, so that calls also get far: name, tensor (witx), tensor (WAMR), dims, i64 dims,
# buffers for load.
NAME, TENSOR, WAMR, DIMS, DIMS64, BUFFERS = range(3800, 3992, 32)
RECORDS = {
    NAME: b"sum",
    TENSOR: struct.pack("<IIB3xII", DIMS, 2, 1, 64, 24),
    WAMR: struct.pack("<IB3xI", WAMR + 16, 1, 64) + bytes(4) + struct.pack("<II", DIMS, 2),
    DIMS: struct.pack("<III", 2, 3, 1),
    DIMS64: struct.pack("<qq", 2, 3),
    BUFFERS: struct.pack("<IIII", 64, 24, 88, 8),
}

# Small numbers are handles, indices and types; the rest addresses, aligned or not, and what lies at the edges.
U32 = st.one_of(
    st.integers(0, 4),
    st.integers(0, 16),
    st.sampled_from(list(RECORDS)),
    st.integers(0, SIZE // 8).map(lambda n: n * 8),
    st.one_of(
        st.integers(SIZE - 24, SIZE + 8),
        st.sampled_from([0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF]),
        st.integers(0, 2**32 - 1),
    ),
)
U64 = st.one_of(U32, st.sampled_from([2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))
CALLS = st.lists(
    st.sampled_from(BASIC).flatmap(
        lambda f: st.tuples(st.just(f), st.tuples(*(U64 if letter == "I" else U32 for letter in f.params)))
    ),
    min_size=10,
    max_size=40,
)
# Memory as guests lay it out: words that are small numbers, addresses or names, and noise.
WORDS = st.lists(
    st.one_of(
        st.integers(0, 8).map(lambda n: n.to_bytes(4, "little")),
        st.integers(0, SIZE).map(lambda n: n.to_bytes(4, "little")),
        st.sampled_from(
            [b"sum\0", b"join", b"a\0\0\0", b"x\0\0\0", b"\xff\xff\xff\xff", b"GGUF", b"\x08\x01\0\0"]
        ),
        st.binary(min_size=4, max_size=4),
    ),
    max_size=128,
).map(b"".join)


@pytest.fixture(scope="module")
def registry() -> Iterator[GraphRegistry]:
    schedulers = {"sum": scheduler(models.add_and_subtract()), "join": scheduler(models.strings())}
    opened = []

    def opener(_encoding: str, _data: tuple[bytes, ...]) -> object:
        opened.append(scheduler(models.identity("FP32")))
        return opened[-1]

    yield GraphRegistry(schedulers, opener)  # type: ignore[arg-type]
    for one in (*schedulers.values(), *opened):
        one.close()


def request() -> InferenceRequest:
    arrays = {"a": np.ones((2, 3), np.float32), "x": np.array([b"text", b""], object)}
    tensors = {name: Tensor.from_numpy(array) for name, array in arrays.items()}
    return InferenceRequest(tensors, ["a"], {"x": True}, id="id")


def within_limits(state: InstanceState) -> bool:
    alive = len(state.tensors) + len(state.graphs) + len(state.contexts)
    return alive <= LIMITS.handles and 0 <= state.tensor_bytes <= LIMITS.tensor_bytes


def hostile_guest(
    registry: GraphRegistry, calls: list[tuple[HostFunction, tuple[int, ...]]], words: bytes, at: int
) -> Counter[str]:
    """Makes the calls in two requests of one instance; what they answered."""
    answers: Counter[str] = Counter()
    logged: list[str] = []
    state = InstanceState(registry, LIMITS, {}, lambda _severity, text: logged.append(text))
    memory = state.memory = Memory(SIZE)
    memory.data[at * 8 : at * 8 + len(words)] = words
    for address, record in RECORDS.items():
        memory.data[address : address + len(record)] = record
    # What most calls need before they get anywhere: a graph, a context, a tensor.
    by_name = {f.name: f for f in BASIC if f.module != "wasi_nn"}
    state.begin(request(), Caller())
    for name, arguments in (
        ("load_by_name", (NAME, 3, 0)),
        ("init_execution_context", (1, 0)),
        ("input_by_index", (0, 0)),
        ("set_input_tensor", (2, 0, 3)),
        ("set_input_tensor", (2, 1, 3)),
    ):
        assert invoke(by_name[name], state, arguments) == 0
    for round_ in range(2):
        for function, arguments in calls:
            errno = invoke(function, state, arguments)
            answers[ERRNO_NAMES[errno]] += 1
            assert len(memory.data) == SIZE
            assert within_limits(state)
            assert errno == 0 or state.reason
            # Nothing a guest does is a fault of the host's.
            assert "internal error" not in str(state.cause)
        assert sum(len(line) + 1 for line in logged) <= LIMITS.log_bytes * (round_ + 1)
        with contextlib.suppress(WasmServingError):
            assert isinstance(state.finish(round_), InferenceResponse)
        state.begin(request(), Caller())
        assert within_limits(state)
    state.close()
    assert state.tensor_bytes == 0
    return answers


def test_any_calls_end_in_an_errno_and_within_the_limits(registry: GraphRegistry) -> None:
    tried: Counter[str] = Counter()

    @settings(max_examples=500)
    @given(calls=CALLS, words=WORDS, at=st.integers(0, 64))
    def explore(calls: list[tuple[HostFunction, tuple[int, ...]]], words: bytes, at: int) -> None:
        tried.update(hostile_guest(registry, calls, words, at))

    explore()
    for errno, number in tried.items():
        count(f"calls of any host function that ended in {errno}", number)
    assert {"success", "invalid_argument", "missing_memory", "too_large", "not_found"} <= set(tried)
