"""The clock of deadlines: it advances the engine's epoch while guests run.

Wasmtime compares the epoch with a store's deadline at function entries and loop back-edges. Who advances it must not
need Python's interpreter lock, or a guest that runs under it could put off its own deadline. So a POSIX timer calls
``wasmtime_engine_increment_epoch`` natively, on a thread that glibc makes for the call (``SIGEV_THREAD``). Such a
thread costs about 0.1 ms and setting the timer some µs, so it is armed by the first guest, and disarmed when none came
for a while.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import threading
import time
from typing import Protocol

import wasmtime
from wasmtime import _ffi as ffi

TICK = 0.010
"""Seconds between two ticks. Guest code is stopped at most two ticks after its deadline; but a bulk memory operation
(``memory.fill``, ``memory.copy``) and a host call are no loop of the guest's, and are finished first."""

PARK_AFTER = 1.0
"""Seconds without a guest after which the ticks end."""


class Ticker(Protocol):
    """Counts the guests inside; between ``enter`` and ``exit`` the epoch advances every :data:`TICK`."""

    def enter(self) -> None:
        """A guest is about to run."""

    def exit(self) -> None:
        """It has returned."""


def ticks(seconds: float) -> int:
    """Epoch ticks that give a guest at least ``seconds``: one more, because the running tick is partly over."""
    return max(1, math.ceil(min(max(seconds, 0.0), 1e9) / TICK) + 1)


def start_ticker(engine: wasmtime.Engine) -> Ticker:
    """The native ticker where the C library has POSIX timers (Linux with glibc or musl), else the Python one.

    It ticks on in processes that fork from this one.
    """
    ticker: NativeTicker | ThreadTicker | None = None
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ticker = NativeTicker(engine)
    if ticker is None:
        ticker = ThreadTicker(engine)
    os.register_at_fork(after_in_child=ticker.start)
    return ticker


class _SigEvent(ctypes.Structure):
    """``struct sigevent`` of 64-bit Linux (sigevent(7)), 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("_pad", ctypes.c_char * 32),
    )


class _TimerSpec(ctypes.Structure):
    """``struct itimerspec`` of 64-bit Linux: interval, then first expiry."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


_CLOCK_MONOTONIC = 1
_SIGEV_THREAD = 2


class NativeTicker:
    """Ticks from a POSIX timer, whoever holds the interpreter lock."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        # PyDLL: these calls take about a microsecond, less than giving the interpreter lock away and back.
        libc = ctypes.PyDLL(None, use_errno=True)
        self._create = libc.timer_create
        self._settime = libc.timer_settime
        self._settime.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._engine = engine  # the timer holds a bare pointer to it: the ticker lives as long as the process
        nanoseconds = int(TICK * 1e9)
        self._on = _TimerSpec(0, nanoseconds, 0, nanoseconds)
        self._off = _TimerSpec()
        self._inside = 0
        self._entered = 0
        self.start()

    def start(self) -> None:
        """Makes timer and thread: a forked process has neither, and its copy of the lock may be held for ever.

        Guests that other threads of the parent were in stay counted, for one may be this thread's.
        """
        self._timer = ctypes.c_void_p()
        self._armed = threading.Event()
        self._lock = threading.Lock()
        event = _SigEvent(
            value=ctypes.cast(self._engine.ptr(), ctypes.c_void_p).value,
            notify=_SIGEV_THREAD,
            function=ctypes.cast(ffi.dll.wasmtime_engine_increment_epoch, ctypes.c_void_p).value,
        )
        if self._create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)) != 0:
            raise OSError(ctypes.get_errno(), "timer_create")
        if self._inside:
            self._arm()
        threading.Thread(target=self._park, name="wasm-epoch", daemon=True).start()

    def _arm(self) -> None:
        if not self._timer or self._settime(self._timer, 0, ctypes.addressof(self._on), None) != 0:
            raise OSError(ctypes.get_errno(), "no timer: deadlines of guests could not be kept")
        self._armed.set()

    def enter(self) -> None:
        """Arms the timer, if it is not. Raises OSError where there is none: no guest may run then."""
        with self._lock:
            if not self._armed.is_set():
                self._arm()
            self._inside += 1
            self._entered += 1

    def exit(self) -> None:
        """Counts the guest out."""
        with self._lock:
            self._inside -= 1

    def _park(self) -> None:
        """Disarms the timer when no guest came for a while. It may be late: ticks without guests hurt nobody."""
        entered = 0
        while self._armed.wait():
            time.sleep(PARK_AFTER)
            with self._lock:
                if self._inside == 0 and self._entered == entered:
                    self._settime(self._timer, 0, ctypes.addressof(self._off), None)
                    self._armed.clear()
                entered = self._entered


class ThreadTicker:
    """Ticks from a Python thread: the reference, and the fall-back where there are no POSIX timers."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = engine
        self._inside = 0
        self.start()

    def start(self) -> None:
        """Makes the thread, which a forked process does not have, and the locks that it may have held."""
        self._lock = threading.Lock()
        self._running = threading.Event()
        if self._inside:
            self._running.set()
        threading.Thread(target=self._tick, name="wasm-epoch", daemon=True).start()

    def _tick(self) -> None:
        while self._running.wait():
            self._engine.increment_epoch()
            time.sleep(TICK)

    def enter(self) -> None:
        """Wakes the thread for the first guest."""
        with self._lock:
            self._inside += 1
            self._running.set()

    def exit(self) -> None:
        """Lets it sleep after the last."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._running.clear()
