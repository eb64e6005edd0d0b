"""What a guest can do to its host, tried: the process lives, the caller gets the right error, nobody else gets one.

Each test runs over both bindings. What would end the process if it went wrong runs in one of its own.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kserve_wasm.artifact.config import MAX_TABLE_ELEMENTS
from kserve_wasm.batching import Caller
from kserve_wasm.errors import (
    ArtifactError,
    DeadlineExceeded,
    GuestError,
    GuestLimitExceeded,
    GuestRejected,
    GuestTrap,
    WasmServingError,
)
from kserve_wasm.guest import GuestModel
from kserve_wasm.guest.state import InstanceState
from kserve_wasm.request import InferenceRequest
from kserve_wasm.wasi_nn import GraphRegistry
from tests.guest.support import ECHO, IMPORTS, open_model, request

EMPTY = InferenceRequest({})
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def infer(body: str, *, head: str = "", memory: str = "1") -> str:
    return f"""(module {IMPORTS} (memory (export "memory") {memory}) {head}
        (func (export "infer") (result i32) {body}))"""


def run_alone(script: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own, from the repository root."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )


def test_an_echo_guest_answers_its_input(tmp_path: Path, binding: str) -> None:
    model = open_model(tmp_path, ECHO, binding)
    response = model.infer(request(x=X))
    np.testing.assert_array_equal(response.outputs["y"].numpy(), X)
    model.close()


TRAPS = {
    "unreachable": ("unreachable", "panic"),
    "division": ("(i32.div_u (i32.const 1) (i32.const 0))", "divided by zero"),
    "load out of bounds": ("(i32.load (i32.const -4))", "out of bounds"),
    "store out of bounds": ("(i32.store (i32.const 65536) (i32.const 1)) (i32.const 0)", "out of bounds"),
    "conversion": ("(i32.trunc_f32_s (f32.const 1e30))", "an integer overflowed"),
    "recursion": ("(call $deep)", "stack overflowed"),
    "exception": ("(throw $thrown)", "thrown Wasm exception"),
    "null call": ("(call_indirect (result i32) (i32.const 0))", "null function"),
    "table bounds": ("(call_indirect (result i32) (i32.const 99))", "table out of bounds"),
}
HEAD = "(tag $thrown) (table 1 funcref) (func $deep (result i32) (i32.add (i32.const 1) (call $deep)))"


@pytest.mark.parametrize("case", TRAPS)
def test_a_trap_is_a_typed_error_and_the_next_request_is_answered(
    tmp_path: Path, binding: str, case: str
) -> None:
    body, words = TRAPS[case]
    model = open_model(tmp_path, infer(body, head=HEAD), binding)
    for _ in range(3):
        with pytest.raises(GuestTrap, match=words):
            model.infer(EMPTY)
    model.close()


def test_an_empty_text_goes_to_any_address_at_first_touch(tmp_path: Path, binding: str) -> None:
    """An instance's first access may be of no bytes at all."""
    head = '(import "kserve_wasm" "request_id" (func $id (param i32 i32 i32) (result i32)))'
    wat = f"""(module {head} (memory (export "memory") 1)
        (func (export "infer") (result i32) (call $id (i32.const 0) (i32.const 0) (i32.const 16))))"""
    model = open_model(tmp_path, wat, binding)
    model.infer(EMPTY)
    model.close()


def test_long_names_of_a_guest_do_not_fill_its_errors(tmp_path: Path, binding: str) -> None:
    name = "f" * 90_000
    model = open_model(
        tmp_path, infer(f"(call ${name}) (i32.const 0)", head=f"(func ${name} unreachable)"), binding
    )
    with pytest.raises(GuestTrap, match=r"^the guest trapped in f{100}…: it reached") as caught:
        model.infer(EMPTY)
    assert len(str(caught.value)) < 300
    model.close()
    imported = f'(import "{name}\\0a" "g" (func))'
    with pytest.raises(ArtifactError, match=r"f{100}…; see") as refused:
        open_model(
            tmp_path,
            f'(module {imported} (memory (export "memory") 1) (func (export "infer") (result i32) unreachable))',
            binding,
        )
    assert len(str(refused.value)) < 300


def test_a_guest_that_panics_over_a_failure_it_was_told_of_fails_with_that(
    tmp_path: Path, binding: str
) -> None:
    """Guests in Rust unwrap errnos: the client should read why, and not that something was unreachable."""
    body = """(drop (call $fail (i32.const 0) (i32.const 64) (i32.const 9))) unreachable"""
    head = '(data (i32.const 64) "too small")'
    model = open_model(tmp_path, infer(body, head=head), binding)
    with pytest.raises(GuestRejected, match=r"^too small$"):
        model.infer(EMPTY)
    model.close()


LOOPS = {
    "infer": infer("(loop (br 0)) (i32.const 0)"),
    "load": infer("(i32.const 0)", head='(func (export "load") (result i32) (loop (br 0)) (i32.const 0))'),
    "_initialize": infer("(i32.const 0)", head='(func (export "_initialize") (loop (br 0)))'),
    "start": infer("(i32.const 0)", head="(func $s (loop (br 0))) (start $s)"),
    "host calls": infer("(loop (drop (call $input (i32.const 9) (i32.const 0))) (br 0)) (i32.const 0)"),
}


@pytest.mark.parametrize("where", LOOPS)
def test_an_endless_loop_ends_at_the_deadline(tmp_path: Path, binding: str, where: str) -> None:
    model = open_model(tmp_path, LOOPS[where], binding, timeout=0.1)
    with pytest.raises(DeadlineExceeded):
        model.infer(EMPTY)
    with pytest.raises(DeadlineExceeded):
        model.infer(EMPTY, Caller(time.monotonic() + 0.02))
    model.close()


def must_pass_its_deadline(model: GuestModel) -> None:
    with pytest.raises(DeadlineExceeded):
        model.infer(EMPTY)


def test_a_loop_does_not_stop_the_interpreter(tmp_path: Path, binding: str) -> None:
    """Other threads go on while a guest spins, in its start function too."""
    counted = 0
    for wat in (LOOPS["infer"], LOOPS["start"]):
        model = open_model(tmp_path, wat, binding, timeout=0.3)
        spinning = threading.Thread(target=must_pass_its_deadline, args=(model,))
        spinning.start()
        before = counted
        while spinning.is_alive():
            counted += 1
            time.sleep(0.001)
        assert counted - before > 10
        model.close()


def test_a_deadline_holds_although_another_thread_never_gives_up_the_interpreter_lock(tmp_path: Path) -> None:
    """The epoch is advanced natively: a host function that computes for long does not put the deadline off."""
    model = open_model(tmp_path, LOOPS["host calls"], timeout=0.05)
    busy = True

    def hog() -> None:
        while busy:
            sum(range(200_000))

    thread = threading.Thread(target=hog)
    thread.start()
    try:
        with pytest.raises(DeadlineExceeded):
            model.infer(EMPTY)
    finally:
        busy = False
        thread.join()
        model.close()


def test_a_memory_bomb_is_refused_pages_and_the_host_keeps_its_memory(tmp_path: Path, binding: str) -> None:
    """Growing past the cap gives -1, as the specification has it; the guest goes on with what it has."""
    body = """(local $pages i32)
        (block (loop (br_if 1 (i32.eq (memory.grow (i32.const 16)) (i32.const -1))) (br 0)))
        (i32.store (i32.const 0) (memory.size)) (i32.store8 (i32.const 8) (i32.const 121))
        (i64.store (i32.const 16) (i64.const 1))
        (drop (call $create (i32.const 6) (i32.const 16) (i32.const 1) (i32.const 0) (i32.const 4) (i32.const 32)))
        (call $output (i32.const 8) (i32.const 1) (i32.load (i32.const 32)))"""
    model = open_model(tmp_path, infer(body), binding, memory=8 << 20)
    pages = model.infer(EMPTY).outputs["y"].numpy()
    assert (8 << 20) - 16 * 65536 < pages[0] * 65536 <= 8 << 20
    model.close()


def test_a_module_that_needs_more_memory_than_its_limit_is_a_typed_error(
    tmp_path: Path, binding: str
) -> None:
    model = open_model(tmp_path, infer("(i32.const 0)", memory="200"), binding, memory=1 << 20)
    with pytest.raises(GuestLimitExceeded, match="limit"):
        model.infer(EMPTY)
    model.close()


def test_a_table_bomb_is_refused_elements(tmp_path: Path, binding: str) -> None:
    body = """(if (result i32) (i32.eq (table.grow $t (ref.null func) (i32.const 1000000)) (i32.const -1))
        (then (i32.const 0)) (else (i32.const 7)))"""
    model = open_model(tmp_path, infer(body, head="(table $t 1 funcref)"), binding)
    model.infer(EMPTY)  # it saw -1
    model.close()


def test_a_table_may_have_as_many_elements_as_model_yaml_can_say(tmp_path: Path, binding: str) -> None:
    head = f"(table {MAX_TABLE_ELEMENTS} funcref)"
    model = open_model(
        tmp_path, infer("(i32.const 0)", head=head), binding, table_elements=MAX_TABLE_ELEMENTS
    )
    model.infer(EMPTY)
    model.close()


MANY = {
    "memories": "(memory 1)",
    "tables": "(table 1 funcref) (table 1 funcref)",
    "garbage-collected types": "(type (struct (field i32)))",
}


@pytest.mark.parametrize("head", MANY.values(), ids=MANY)
def test_what_would_have_limits_of_its_own_is_refused(tmp_path: Path, binding: str, head: str) -> None:
    """The engine counts a limit for each memory and table by itself: twenty memories would have twenty times it."""
    with pytest.raises(ArtifactError, match="not a module that the engine accepts"):
        open_model(tmp_path, infer("(i32.const 0)", head=head), binding)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
@pytest.mark.parametrize("head", MANY.values(), ids=MANY)
def test_it_is_refused_without_a_pool_too(tmp_path: Path, binding: str, head: str) -> None:
    wat = infer("(i32.const 0)", head=head)
    done = run_alone(f"""
        import resource
        from pathlib import Path
        resource.setrlimit(resource.RLIMIT_AS, (6 << 40, 6 << 40))
        from kserve_wasm.errors import WasmServingError
        from kserve_wasm.guest.engine import engine
        from tests.guest.support import open_model
        assert not engine().pooled
        try:
            open_model(Path({str(tmp_path)!r}), {wat!r}, {binding!r}).probe()
        except WasmServingError as error:
            print(type(error).__name__)
    """)
    assert done.stdout.strip() in ("ArtifactError", "GuestLimitExceeded"), done.stderr


def test_the_memory_of_a_large_guest_is_given_back_without_the_interpreter_lock(tmp_path: Path) -> None:
    """It takes the system 0.1 s a GiB, in which every other request would wait."""
    body = "(memory.fill (i32.const 0) (i32.const 1) (i32.const 134217728)) (i32.const 0)"
    model = open_model(tmp_path, infer(body, memory="2048"))
    assert model._binding is not None
    others = 0
    stop = threading.Event()

    def other() -> None:
        nonlocal others
        while not stop.is_set():
            others += 1
            time.sleep(0.0005)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=other)
    thread.start()
    sys.setswitchinterval(100)  # the lock changes hands where it is given up, and nowhere else
    try:
        for _ in range(50):
            state = InstanceState(GraphRegistry({}), model.config.limits, {}, lambda *_: None)
            instance = model._binding.instantiate(state, 1 << 40)
            instance.call("infer")
            before = others
            instance.close()
            ran = others - before
            if ran:
                break
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()
        model.close()
    assert ran, "no other thread ran while an instance was freed"


WILD = [0, 1, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF]


@pytest.mark.parametrize("address", WILD)
@pytest.mark.parametrize("length", [0, 1, 0xFFFF, 0xFFFFFFFF])
def test_wild_pointers_give_an_errno_and_touch_nothing(
    tmp_path: Path, binding: str, address: int, length: int
) -> None:
    """Every range is checked as unsigned: what leaves the memory is errno 3, or works where it is inside."""
    body = f"(call $log (i32.const 0) (i32.const {address}) (i32.const {length}))"
    model = open_model(tmp_path, infer(body), binding, log_bytes=1 << 20)
    if address + length <= 65536:
        model.infer(EMPTY)
    else:
        with pytest.raises(GuestError, match="missing_memory"):
            model.infer(EMPTY)
    model.close()


def test_a_guest_without_wasi_in_its_store_cannot_abort_the_process(tmp_path: Path, binding: str) -> None:
    """WASI calls need a configuration in every store: without one the engine aborts. They always have it."""
    wat = f"""(module {IMPORTS}
        (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_sizes_get" (func $e (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "path_open"
          (func $p (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $sleep (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1) (data (i32.const 64) "hello")
        (data (i32.const 0) "\\40\\00\\00\\00\\05\\00\\00\\00")
        (func (export "infer") (result i32)
          (if (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)) (then (return (i32.const 101))))
          (if (call $e (i32.const 40) (i32.const 44)) (then (return (i32.const 102))))
          (if (i32.load (i32.const 40)) (then (return (i32.const 103))))  ;; no environment
          (if (i32.eqz (call $p (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 5) (i32.const 0)
             (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 48))) (then (return (i32.const 104))))  ;; no files
          (if (i32.ne (call $sleep (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 48)) (i32.const 58))
            (then (return (i32.const 105))))  ;; no sleep
          (i32.const 0)))"""
    model = open_model(tmp_path, wat, binding)
    model.infer(EMPTY)
    model.close()


@pytest.mark.parametrize("fill", [7, 10], ids=["control characters", "empty lines"])
def test_what_a_guest_prints_takes_no_more_of_the_host_than_it_may_log(
    tmp_path: Path, binding: str, fill: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A host call is not ended by the deadline, so what one does is bounded: seen in the calls that Python makes."""
    size, events = 1 << 20, 0

    def count(*_event: object) -> None:
        nonlocal events
        events += 1

    wat = f"""(module
        (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 32) (data (i32.const 64) "first\\n")
        (func (export "infer") (result i32)
          (memory.fill (i32.const 70) (i32.const {fill}) (i32.const {size}))
          (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const {size}))
          (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))))"""
    model = open_model(tmp_path, wat, binding, log_bytes=100)
    with caplog.at_level("INFO", "kserve_wasm.guest"):
        sys.setprofile(count)
        try:
            model.infer(EMPTY)
        finally:
            sys.setprofile(None)
    model.close()
    assert caplog.messages[0] == "guest m: first"
    assert sum(len(m.removeprefix("guest m: ")) + 1 for m in caplog.messages) <= 100
    assert 0 < events < size / 8


def test_what_a_guest_prints_is_logged_on_the_requests_own_thread() -> None:
    """Threads of the engine that called Python would abort the process when the interpreter ends under them."""
    done = run_alone(
        """
        import logging, os, pathlib, sys, tempfile
        from kserve_wasm.request import InferenceRequest
        from tests.guest.support import open_model
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
        wat = '''(module
            (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 32) (data (i32.const 64) "first")
            (data (i32.const 0) "\\\\40\\\\00\\\\00\\\\00\\\\00\\\\00\\\\10\\\\00")
            (func (export "infer") (result i32) (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))))'''
        model = open_model(pathlib.Path(tempfile.mkdtemp()), wat, log_bytes=1 << 24)
        threads = len(os.listdir("/proc/self/task"))
        model.infer(InferenceRequest({}))
        print(len(os.listdir("/proc/self/task")) - threads, flush=True)
        """
    )
    assert done.returncode == 0, done.stderr
    printed, threads = done.stdout.splitlines()
    assert printed.startswith("guest m: first")
    assert threads == "0"


def test_exit_is_an_error_of_that_request(tmp_path: Path, binding: str) -> None:
    wat = """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) (func (export "infer") (result i32) (call $exit (i32.const 3)) (i32.const 0)))"""
    model = open_model(tmp_path, wat, binding)
    with pytest.raises(GuestError, match="exited with code 3"):
        model.infer(EMPTY)
    model.close()


@pytest.mark.parametrize(
    "content", [b"", b"(module)", b"\0asm", b"\0asm\x0d\0\x01\0", b"\x7fELF" + bytes(60)]
)
def test_what_is_not_a_core_module_never_reaches_the_engine(content: bytes) -> None:
    """``wasmtime.Module`` takes any other bytes for the text format."""
    from kserve_wasm.guest.engine import engine
    from kserve_wasm.guest.module_cache import compile_module

    with pytest.raises(ArtifactError):
        compile_module(engine(), content, "model.wasm")


def test_eight_threads_whose_guests_all_fail_at_once_get_their_own_errors(
    tmp_path: Path, binding: str
) -> None:
    """The public API keeps one last exception for the whole process; a guest's failure must not travel in it."""
    body = """(local $t i32)
        (drop (call $input (i32.const 0) (i32.const 16)))
        (drop (call $read (i32.load (i32.const 16)) (i64.const 0) (i32.const 64) (i32.const 8)))
        (if (i32.and (i32.load8_u (i32.const 71)) (i32.const 1)) (then unreachable))
        (drop (call $fail (i32.const 0) (i32.const 64) (i32.const 8)))
        (i32.const 5)"""
    model = open_model(tmp_path, infer(body), binding)
    barrier = threading.Barrier(8)
    wrong: list[object] = []

    def client(number: int) -> None:
        barrier.wait()
        for turn in range(150):
            word = f"{number:03d}-{turn:04d}"[:8].encode()
            data = np.frombuffer(word, np.uint8)
            try:
                model.infer(request(x=data))
                wrong.append((word, "no error"))
            except GuestRejected as error:
                if str(error).encode() != word or word[7] & 1:
                    wrong.append((word, error))
            except GuestTrap as error:
                if not word[7] & 1:
                    wrong.append((word, error))
            except BaseException as error:
                wrong.append((word, error))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    model.close()


def test_a_host_function_that_breaks_is_an_error_and_not_a_success(
    tmp_path: Path, binding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that leaves a C callback is printed, and the guest sees 0."""
    from kserve_wasm.guest.state import InstanceState

    monkeypatch.setattr(InstanceState, "set_output", property(lambda _self: 1 / 0), raising=False)
    model = open_model(tmp_path, infer("(call $input (i32.const 0) (i32.const -1))"), binding)
    with pytest.raises(WasmServingError):
        model.infer(request(x=X))
    model.close()


def test_what_one_request_leaves_in_memory_the_next_does_not_find(tmp_path: Path, binding: str) -> None:
    """A slot of the pool is used again and again; a fresh instance must see only its own module's data."""
    body = """(if (i32.load (i32.const 1024)) (then (return (i32.const 99))))
        (if (i32.load (i32.const 1048576)) (then (return (i32.const 98))))
        (i32.store (i32.const 1024) (i32.const 1234)) (i32.store (i32.const 1048576) (i32.const 1234)) (i32.const 0)"""
    model = open_model(tmp_path, infer(body, memory="32"), binding)
    for _ in range(200):
        model.infer(EMPTY)
    model.close()


def test_a_kept_instance_is_used_again_only_where_the_model_says_so(tmp_path: Path, binding: str) -> None:
    body = """(i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
        (i32.store8 (i32.const 8) (i32.const 121)) (i64.store (i32.const 16) (i64.const 1))
        (drop (call $create (i32.const 6) (i32.const 16) (i32.const 1) (i32.const 0) (i32.const 4) (i32.const 32)))
        (call $output (i32.const 8) (i32.const 1) (i32.load (i32.const 32)))"""
    kept = open_model(tmp_path, infer(body), binding, reuse=True, workers=1)
    assert [kept.infer(EMPTY).outputs["y"].numpy()[0] for _ in range(3)] == [1, 2, 3]
    kept.close()
    fresh = open_model(tmp_path, infer(body), binding)
    assert [fresh.infer(EMPTY).outputs["y"].numpy()[0] for _ in range(3)] == [1, 1, 1]
    fresh.close()


def test_a_kept_instance_that_failed_is_not_used_again(tmp_path: Path, binding: str) -> None:
    body = """(i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
        (if (i32.eq (i32.load (i32.const 0)) (i32.const 2)) (then unreachable)) (i32.const 0)"""
    model = open_model(tmp_path, infer(body), binding, reuse=True, workers=1)
    model.infer(EMPTY)
    with pytest.raises(GuestTrap):
        model.infer(EMPTY)
    model.infer(EMPTY)  # a fresh one, that has counted to 1 alone
    model.close()


def test_faults_are_caught_when_faulthandler_was_enabled_first() -> None:
    """Enabled after the first engine it would take the engine's signals; serving enables it before, or never."""
    done = run_alone(
        """
        import faulthandler, pathlib, tempfile
        faulthandler.enable()
        from kserve_wasm.errors import GuestTrap
        from tests.guest.support import open_model
        from kserve_wasm.request import InferenceRequest
        wat = '(module (memory (export "memory") 1) (func (export "infer") (result i32) (i32.load (i32.const -8))))'
        model = open_model(pathlib.Path(tempfile.mkdtemp()), wat)
        try:
            model.infer(InferenceRequest({}))
        except GuestTrap as error:
            print("caught", error)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "caught the guest trapped" in done.stdout


def test_a_forked_child_can_compile() -> None:
    """With a parallel compiler the child would wait for threads that the fork left behind."""
    done = run_alone(
        """
        import os, pathlib, tempfile
        from tests.guest.support import ECHO, open_model
        d = pathlib.Path(tempfile.mkdtemp())
        open_model(d, ECHO).close()
        child = os.fork()
        if child == 0:
            open_model(d, ECHO.replace('"y"', '"z"')).close()
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "7"


def test_deep_recursion_on_the_pools_threads_is_a_trap() -> None:
    """A thread of 256 KB would end the process: the pool's have more, whatever the process's setting is."""
    done = run_alone(
        """
        import pathlib, tempfile, threading
        threading.stack_size(256 * 1024)
        from kserve_wasm.errors import GuestTrap
        from kserve_wasm.guest.pool import GuestPool
        from kserve_wasm.request import InferenceRequest
        from tests.guest.support import open_model
        infer = '(func $f (export "infer") (result i32) (i32.add (i32.const 1) (call $f)))'
        wat = '(module (memory (export "memory") 1) ' + infer + ')'
        model = open_model(pathlib.Path(tempfile.mkdtemp()), wat)
        ended = threading.Event()
        def work():
            try:
                model.infer(InferenceRequest({}))
            except GuestTrap as error:
                print(error)
            ended.set()
        GuestPool().run(work)
        ended.wait(30)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "stack overflowed" in done.stdout


def test_a_guests_own_graph_computes_nothing_while_it_is_opened() -> None:
    """No limit counts ONNX Runtime's memory and no deadline ends an opening: folding 256 MB must not happen."""
    done = run_alone(
        """
        import pathlib, resource, tempfile
        import numpy as np
        from onnx import TensorProto, helper, numpy_helper
        from kserve_wasm.request import InferenceRequest
        from tests.guest.support import open_model
        one = numpy_helper.from_array(np.ones(1, np.float32))
        nodes = [
            helper.make_node("ConstantOfShape", ["shape"], ["large"], value=one),
            helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
            helper.make_node("Add", ["sum", "x"], ["y"]),
        ]
        shape = numpy_helper.from_array(np.array([8192, 8192]), "shape")
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
        graph = helper.make_graph(nodes, "g", [x], [y], [shape])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
        data = model.SerializeToString()
        text = "".join("\\\\%02x" % byte for byte in data)
        wat = f'''(module
            (import "wasi_ephemeral_nn" "load" (func $load (param i32 i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1) (data (i32.const 64) "{text}")
            (func (export "infer") (result i32)
              (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const {len(data)}))
              (call $load (i32.const 0) (i32.const 1) (i32.const 1) (i32.const 0) (i32.const 16))))'''
        model = open_model(pathlib.Path(tempfile.mkdtemp()), wat, load_bytes=1 << 20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model.infer(InferenceRequest({}))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 << 10  # KiB


def test_a_small_address_space_does_without_the_pool() -> None:
    """A pool that is larger than the address space would abort the process."""
    done = run_alone(
        """
        import pathlib, resource, tempfile
        resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
        import numpy as np
        from kserve_wasm.guest.engine import engine
        from tests.guest.support import ECHO, open_model, request
        model = open_model(pathlib.Path(tempfile.mkdtemp()), ECHO)
        print(engine().pooled, model.infer(request(x=np.ones(2))).outputs["y"].numpy())
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(None, 1) == ["False", "[1. 1.]\n"]
