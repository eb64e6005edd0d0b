"""``--workers N``: the supervisor, which starts N server processes on the same ports and keeps them alike.

Each worker is this program executed anew, never forked: threads and gRPC's state do not survive a fork. The kernel
spreads connections over the listening sockets (SO_REUSEPORT), so a worker listens only once its models are loaded.
The supervisor has a :class:`~kserve_wasm.server.link.Link` to each and imports neither kserve nor an engine.

1. The first worker reads the flags and says where to listen; a wrong flag ends here, once. The others start.
2. The first worker loads the models; what it compiled, the others find in the cache. They load after it.
3. When all have loaded, all listen.
4. A load or unload happens in the worker whose client asked for it, then in the others, then the client is answered.
5. A worker that dies is started again with the models that the others have.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from kserve_wasm.errors import ModelNotReady, WasmServingError
from kserve_wasm.server.link import Link
from kserve_wasm.server.ports import naming_flag

logger = logging.getLogger(__name__)

WORKER = "KSERVE_WASM_WORKER"
"""The environment variable that makes a process a worker: which one, and the descriptor of its link, as ``0:5``."""

WORKERS = "KSERVE_WASM_WORKERS"
"""The environment variable that tells a worker how many share the CPUs (:mod:`kserve_wasm.backends.cpus`)."""

CHANGE_SECONDS = 600.0
"""How long one worker may take to load or unload a model that a client named."""

ASK_SECONDS = 2.0
"""How long a scrape waits for the other workers; one that is late is left out."""

_ATTEMPTS = 3
"""How often in a row a worker may be killed while it starts and none serves."""

_MAX_DELAY = 30.0


def supervise(workers: int, argv: Sequence[str]) -> int:
    """Serve with ``workers`` processes until a signal ends them.

    Args:
        workers: how many.
        argv: the flags of each.

    Returns:
        The exit status: 0 after an orderly stop, else that of the worker that could not start.
    """
    logging.basicConfig(
        format="%(asctime)s.%(msecs)03d %(process)s %(name)s "
        "%(levelname)s [%(filename)s:%(funcName)s():%(lineno)s] %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        level=logging.INFO,
    )
    with tempfile.TemporaryDirectory(prefix="kserve-wasm-metrics-") as metrics:
        return asyncio.run(_Supervisor(workers, argv, Path(metrics)).run())


class _Worker:
    """One process.

    Attributes:
        index: which of the workers it is, and its successors are.
        process: the process.
        link: calls to it.
        hello: where it would listen, once it has read the flags.
        follows: it has the others' models, and is told of every change.
        serves: it listens.
    """

    def __init__(self, index: int, process: asyncio.subprocess.Process, link: Link) -> None:
        self.index = index
        self.process = process
        self.link = link
        self.hello: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.follows = False
        self.serves = False

    def signal(self, sig: int) -> None:
        """Send a signal, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            # Before it has read its flags, Python's own handler of SIGINT would answer, with a traceback.
            self.process.send_signal(sig if self.hello.done() or sig != signal.SIGINT else signal.SIGTERM)


class _Supervisor:
    def __init__(self, count: int, argv: Sequence[str], metrics: Path) -> None:
        self._count = count
        self._argv = argv
        self._metrics = metrics
        self._workers: set[_Worker] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._status: int | None = None  # the exit status, once it is to end
        self._end = asyncio.Event()
        self._ports: dict[str, int | None] | None = None
        self._reserved: list[socket.socket] = []
        self._models: set[str] | None = None  # what every worker loads; None until the first has looked
        self._models_known = asyncio.Event()
        self._all_loaded = asyncio.Event()
        self._said_listening = False
        self._changing = asyncio.Lock()  # all workers take the changes in one order
        self._changes: dict[str, tuple[int, str]] = {}  # the last change of each model, and its number
        self._change_count = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._stop, sig)
        self._keep(0)
        await self._end.wait()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for worker in self._workers:  # none, unless its keeper failed
            worker.signal(signal.SIGKILL)
        for reserved in self._reserved:
            reserved.close()
        assert self._status is not None
        logger.info("all workers have ended")
        return self._status

    def _stop(self, sig: int) -> None:
        if self._status is None:
            self._finish(0, sig)
        else:
            logger.warning("stopping at once, on a second signal")
            self._status = 128 + sig
            for worker in self._workers:
                worker.signal(signal.SIGKILL)

    def _finish(self, status: int, sig: int = signal.SIGTERM) -> None:
        """End with ``status``, after the workers have ended in their own, orderly way."""
        if self._status is None:
            self._status = status
            self._end.set()
            for worker in self._workers:
                worker.signal(sig)

    def _keep(self, index: int) -> None:
        self._keepers.append(self._task(self._run_worker(index)))

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # A worker cannot be started, say, because memory or descriptors are used up: the container starts anew.
            logger.error("the supervisor failed", exc_info=error)
            self._finish(1)

    async def _run_worker(self, index: int) -> None:
        """Run one worker, and then its successor, until the end."""
        failures = 0
        while not self._end.is_set():
            worker, attending = await self._start(index)
            if self._end.is_set():
                worker.signal(signal.SIGTERM)
            status = await worker.process.wait()
            self._workers.discard(worker)
            attending.cancel()
            self._forget_gauges(index)
            # As a shell tells it: a signal is 128 and its number.
            code = status if status >= 0 else 128 - status
            if self._end.is_set():
                # SIGTERM ends a worker without a status while Python starts.
                if self._status == 0 and status not in (0, -signal.SIGTERM):
                    logger.error("worker %d ended with status %d while stopping", worker.process.pid, code)
                    self._status = code
                return
            failures = 0 if worker.serves else failures + 1
            # What ended it by its own decision (wrong flags, a model that does not load) would do so again.
            hopeless = failures >= _ATTEMPTS or (failures > 0 and status >= 0)
            if hopeless and not any(other.serves for other in self._workers):
                if status != 0:
                    logger.error("worker %d could not start: exit status %d", worker.process.pid, code)
                self._finish(code)
                return
            delay = min(_MAX_DELAY, 0.1 * 2**failures)
            logger.error(
                "worker %d ended with status %d; another starts in %g s", worker.process.pid, code, delay
            )
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._end.wait(), delay)

    async def _start(self, index: int) -> tuple[_Worker, asyncio.Task[None]]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "kserve_wasm",
                *self._argv,
                env=os.environ
                | {
                    WORKER: f"{index}:{theirs.fileno()}",
                    WORKERS: str(self._count),
                    "PROMETHEUS_MULTIPROC_DIR": str(self._metrics),
                },
                pass_fds=[theirs.fileno()],
                # Ctrl+C in a terminal goes to the whole process group: only the supervisor may hear it.
                start_new_session=True,
            )

        async def handle(name: str, arguments: dict[str, Any]) -> Any:
            return await self._handle(worker, name, arguments)

        worker = _Worker(index, process, Link(handle))
        self._workers.add(worker)
        ours.setblocking(False)
        await worker.link.open(ours)
        return worker, self._task(self._attend(worker))

    async def _attend(self, worker: _Worker) -> None:
        """Answer a worker's calls until it is gone, and bring it up meanwhile."""
        bringing = self._task(self._bring_up(worker))
        try:
            await worker.link.run()
        finally:
            bringing.cancel()

    async def _bring_up(self, worker: _Worker) -> None:
        """Lead a worker from its start to where it listens."""
        try:
            wanted = await worker.hello
            if self._ports is None:
                self._ports = self._reserve(wanted)
                for index in range(1, self._count):
                    self._keep(index)
            if worker.index > 0:
                await self._models_known.wait()
            seen = self._change_count
            models = None if self._models is None else sorted(self._models)
            loaded = await worker.link.call("start", models=models)
            if self._models is None:
                self._models = set(loaded)
                self._models_known.set()
            async with self._changing:
                for name, (number, change) in self._changes.items():
                    if number > seen:
                        await self._follow(worker, change, name)
                worker.follows = True
            if sum(other.follows for other in self._workers) == self._count:
                self._all_loaded.set()
            await self._all_loaded.wait()
            await worker.link.call("listen", **self._ports)
            worker.serves = True
        except (ConnectionError, WasmServingError):
            return  # its log says why; it ends, and its keeper goes on
        except OSError as error:
            logger.error("cannot listen: %s", error)
            self._finish(1)
            return
        if not self._said_listening and sum(other.serves for other in self._workers) == self._count:
            self._said_listening = True
            assert self._ports is not None
            logger.info(
                "listening: HTTP port %d, gRPC port %s; %d workers",
                self._ports["http_port"],
                "none" if self._ports["grpc_port"] is None else self._ports["grpc_port"],
                self._count,
            )

    def _reserve(self, wanted: dict[str, Any]) -> dict[str, int | None]:
        """Take the ports for the workers; raises OSError when one cannot be had."""
        ports: dict[str, int | None] = {}
        for kind in ("http_port", "grpc_port"):
            ports[kind] = wanted[kind]
            if wanted[kind] is not None:
                with naming_flag(kind, wanted["host"], wanted[kind]):
                    self._reserved.append(reserve(wanted["host"], wanted[kind]))
                ports[kind] = self._reserved[-1].getsockname()[1]
        return ports

    async def _handle(self, worker: _Worker, name: str, arguments: dict[str, Any]) -> Any:
        if name == "hello":
            worker.hello.set_result(arguments)
        elif name == "change":
            await self._change(worker, arguments["change"], arguments["name"])
        elif name == "ask":
            return await self._ask(worker, arguments["what"])
        else:
            raise ValueError(f"unknown call '{name}'")
        return None

    async def _change(self, origin: _Worker, change: str, name: str) -> None:
        """Load or unload a model everywhere, first where it was asked for: a failure there changes no other worker."""
        async with self._changing:
            try:
                await origin.link.call(change, timeout=CHANGE_SECONDS, name=name)
            except asyncio.TimeoutError:
                raise ModelNotReady(
                    f"model '{name}' took more than {CHANGE_SECONDS:g} s to {change}"
                ) from None
            if self._models is not None:
                (self._models.add if change == "load" else self._models.discard)(name)
            self._change_count += 1
            self._changes[name] = (self._change_count, change)
            others = [worker for worker in self._workers if worker.follows and worker is not origin]
            reasons = await asyncio.gather(*(self._follow(worker, change, name) for worker in others))
        failed = [reason for reason in reasons if reason]
        if failed:
            raise ModelNotReady(
                f"the {change} of model '{name}' succeeded in one worker and failed in {len(failed)} of "
                f"{len(others)} others ({'; '.join(failed)}): try again"
            )

    async def _follow(self, worker: _Worker, change: str, name: str) -> str:
        """Make a change in one more worker; returns why it failed, or ""."""
        try:
            await worker.link.call(change, timeout=CHANGE_SECONDS, name=name)
        except asyncio.TimeoutError:
            return f"no answer within {CHANGE_SECONDS:g} s"
        except ConnectionError:
            return ""  # it died, and the worker that takes its place starts with the change
        except WasmServingError as error:
            logger.error("worker %d did not %s model %s: %s", worker.process.pid, change, name, error)
            return str(error)
        return ""

    async def _ask(self, origin: _Worker, what: str) -> list[Any]:
        """Ask the other workers; returns the answers of those that gave one."""
        others = [worker for worker in self._workers if worker.serves and worker is not origin]
        answers = await asyncio.gather(
            *(worker.link.call(what, timeout=ASK_SECONDS) for worker in others), return_exceptions=True
        )
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _forget_gauges(self, index: int) -> None:
        """Remove what the dead worker had in flight. Its counters stay: its successor goes on counting from them."""
        for file in self._metrics.glob(f"gauge_live*_{index}.db"):
            file.unlink()


def reserve(host: str, port: int) -> socket.socket:
    """Take a port that the workers can then listen on together.

    Returns:
        A socket that keeps the port from others as long as it is open, and never listens.

    Raises:
        OSError: the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port:
        # Another server that shares its port would share it with us too, and get half of the requests.
        socket.create_server((host, port), family=family).close()
    reserved = socket.socket(family)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        reserved.bind((host, port))
    except OSError:
        reserved.close()
        raise
    return reserved
