"""The clock of deadlines: it ticks while guests are inside, whoever holds the interpreter lock, and parks after."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import wasmtime
from wasmtime import _ffi as ffi

from kserve_wasm.guest import ticker
from kserve_wasm.guest.ticker import NativeTicker, ThreadTicker, ticks

LOOP = """(module (func (export "spin") (loop (br 0))))"""


def spin(engine: wasmtime.Engine, epochs: int) -> None:
    """Runs a guest until the epoch is so many ticks later; it must end by that."""
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(epochs)
    run = wasmtime.Instance(store, wasmtime.Module(engine, LOOP), []).exports(store)["spin"]
    with pytest.raises(wasmtime.Trap) as trap:
        run(store)
    assert trap.value.trap_code is wasmtime.TrapCode.INTERRUPT


@pytest.fixture
def engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.epoch_interruption = True
    return wasmtime.Engine(config)


@pytest.fixture(params=[NativeTicker, ThreadTicker])
def clock(request: pytest.FixtureRequest, engine: wasmtime.Engine) -> ticker.Ticker:
    if request.param is NativeTicker and sys.platform != "linux":
        pytest.skip("POSIX timers are Linux's")
    return request.param(engine)


def test_a_guest_inside_is_stopped(clock: ticker.Ticker, engine: wasmtime.Engine) -> None:
    for _ in range(3):
        clock.enter()
        spin(engine, ticks(0.02))
        clock.exit()


def test_ticks_last_as_long_as_any_guest_is_inside(clock: ticker.Ticker, engine: wasmtime.Engine) -> None:
    clock.enter()
    for _ in range(20):
        clock.enter()
        clock.exit()
    spin(engine, ticks(ticker.PARK_AFTER * 1.5))  # across the time after which it would park
    clock.exit()


def test_ticks_end_when_no_guest_comes_and_begin_again(engine: wasmtime.Engine) -> None:
    """An idle server must not wake a hundred times a second."""
    clock = NativeTicker(engine)
    clock.enter()
    clock.exit()
    deadline = time.monotonic() + 20 * ticker.PARK_AFTER
    while clock._armed.is_set():
        assert time.monotonic() < deadline, "never parked"
        time.sleep(0.01)
    clock.enter()
    spin(engine, ticks(0.02))
    clock.exit()


def test_the_native_clock_does_not_need_the_interpreter_lock(engine: wasmtime.Engine) -> None:
    """A guest called without giving the lock up still meets its deadline: no Python thread can tick then."""
    clock = NativeTicker(engine)
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(ticks(0.05))
    function = wasmtime.Instance(store, wasmtime.Module(engine, LOOP), []).exports(store)["spin"]
    call = ctypes.PyDLL(ffi.dll._name).wasmtime_func_call
    call.restype = ctypes.c_void_p
    trap = ctypes.c_void_p()
    others = 0
    stop = threading.Event()

    def other() -> None:
        nonlocal others
        while not stop.is_set():
            others += 1
            time.sleep(0.001)

    thread = threading.Thread(target=other)
    thread.start()
    clock.enter()
    before = others
    error = call(
        ctypes.cast(store._context(), ctypes.c_void_p),
        ctypes.byref(function._func),
        *(None, ctypes.c_size_t(0), None, ctypes.c_size_t(0)),
        ctypes.byref(trap),
    )
    held = others - before
    clock.exit()
    stop.set()
    thread.join()
    assert error is None
    assert trap.value is not None
    assert held <= 1, "the other thread ran: the lock was given up, and this test shows nothing"


@pytest.mark.parametrize(("seconds", "least"), [(-1.0, 1), (0.0, 1), (0.01, 2), (0.1, 11), (1e300, 10**9)])
def test_ticks_give_at_least_the_time_asked_for(seconds: float, least: int) -> None:
    assert least <= ticks(seconds) < 2**63


FORK = """
import os, sys, threading
import pytest, wasmtime
from kserve_wasm.guest import ticker
from tests.guest.test_ticker import spin

config = wasmtime.Config()
config.epoch_interruption = True
config.parallel_compilation = False  # a pool of compiler threads does not survive a fork
engine = wasmtime.Engine(config)
sys.platform = sys.argv[1]
clock = ticker.start_ticker(engine)
assert type(clock).__name__ == sys.argv[2]
clock.enter()
spin(engine, ticker.ticks(0.02))
# The worst moment: another thread is inside, and yet another holds the lock.
threading.Thread(target=clock._lock.acquire).start()
child = os.fork()
if child == 0:
    try:
        spin(engine, ticker.ticks(0.02))  # the fork happened inside a guest
        clock.exit()
        clock.enter()
        spin(engine, ticker.ticks(0.02))
        clock.exit()
    except BaseException:
        os._exit(1)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="both clocks are there on Linux alone")
@pytest.mark.parametrize(("platform", "kind"), [("linux", "NativeTicker"), ("other", "ThreadTicker")])
def test_a_forked_process_keeps_deadlines(platform: str, kind: str) -> None:
    """Neither threads nor POSIX timers are inherited: without new ones a child's guests would run for ever."""
    done = subprocess.run(
        ["timeout", "--signal=KILL", "60", sys.executable, "-c", FORK, platform, kind],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="POSIX timers are Linux's")
def test_without_a_timer_no_guest_may_run() -> None:
    """A process may have used up its timers (RLIMIT_SIGPENDING) when it forks."""
    script = """
import resource, wasmtime
from kserve_wasm.guest.ticker import NativeTicker
clock = NativeTicker(wasmtime.Engine())
resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))
for what in (clock.start, clock.enter):
    try:
        what()
    except OSError as error:
        print(what.__name__, error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "start timer_create",
        "enter no timer: deadlines of guests could not be kept",
    ], done.stderr
