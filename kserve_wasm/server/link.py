"""Calls between the supervisor and a worker: lines of JSON over a socket pair, in both directions at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from kserve_wasm import errors
from kserve_wasm.errors import WasmServingError

logger = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Does what the other side asks: takes the name of the call and its arguments, returns what JSON can hold."""

_LINE_BYTES = 64 << 20
"""The longest line: statistics of every model take one."""


class Link:
    """One end of the socket pair.

    Args:
        handler: answers the other side's calls, each in a task of its own.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self, end: socket.socket) -> None:
        """Take this end of the socket pair, so that :meth:`call` works while :meth:`run` does."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=end, limit=_LINE_BYTES)

    async def run(self) -> None:
        """Answer and be answered until the other side is gone; to be called once, after :meth:`open`."""
        assert self._reader is not None
        assert self._writer is not None
        try:
            while line := await self._reader.readline():
                self._take(json.loads(line))
        except ConnectionError:
            pass
        finally:
            self._writer.close()
            self._writer = None
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ConnectionError("the other process is gone"))

    async def call(self, name: str, /, timeout: float | None = None, **arguments: Any) -> Any:
        """Ask the other side.

        Raises:
            WasmServingError: what the call raised there.
            ConnectionError: the other side is gone.
            asyncio.TimeoutError: there was no answer for ``timeout`` seconds; what was asked may still happen.
        """
        number = next(self._ids)
        self._send({"id": number, "call": name, "arguments": arguments})
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(answer, timeout)
        finally:
            del self._waiting[number]

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is None:
            raise ConnectionError("the other process is gone")
        self._writer.write(json.dumps(message).encode() + b"\n")

    def _take(self, message: dict[str, Any]) -> None:
        if "call" in message:
            task = asyncio.create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        answer = self._waiting.get(message["id"])
        if answer is None or answer.done():
            return
        if "error" in message:
            answer.set_exception(_error(*message["error"]))
        else:
            answer.set_result(message["result"])

    async def _answer(self, message: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": message["id"]}
        try:
            answer["result"] = await self._handler(message["call"], message["arguments"])
        except WasmServingError as error:
            answer["error"] = (type(error).__name__, str(error))
        except Exception:
            logger.exception("'%s' failed between supervisor and worker", message["call"])
            answer["error"] = (WasmServingError.__name__, "internal server error; the server's log says more")
        try:
            self._send(answer)
        except ConnectionError:
            logger.debug("nobody waits for the answer to '%s' any more", message["call"])


def _error(name: str, text: str) -> WasmServingError:
    """Make the error anew that the other side raised; its class decides on the client's status."""
    kind = getattr(errors, name, None)
    if not isinstance(kind, type) or not issubclass(kind, WasmServingError):
        kind = WasmServingError
    return kind(text)
