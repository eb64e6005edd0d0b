"""The clock of deadlines: it ticks while guests are inside, whoever holds the interpreter lock, and parks after."""

from __future__ import annotations

import ctypes
import sys
import threading
import time

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
