"""A uvicorn protocol that answers ``POST …/infer`` itself, before ASGI; all else goes to the application.

The SDK's request path costs ten times what a small model does. A request taken here is parsed by the same httptools
parser as every other on the connection, waits its turn in the same pipeline, and counts as a cycle of that connection:
:class:`_InferCycle` has the attributes that uvicorn reads of its own ``RequestResponseCycle``. So keep-alive, its
timeout, graceful shutdown and the order of pipelined answers stay uvicorn's.

Not taken here, and answered by the same code as an ordinary route: names that need percent-decoding, a query string,
servers with ``limit_concurrency``.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

import numpy as np
import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from kserve_wasm.errors import PayloadTooLarge
from kserve_wasm.server.rest.answer import JSON_TYPE, Answer
from kserve_wasm.server.rest.codec import JSON_LENGTH
from kserve_wasm.server.rest.context import RestContext
from kserve_wasm.server.rest.errors import error_answer
from kserve_wasm.server.rest.infer import Inference
from kserve_wasm.tensors.tensor import BytesLike

_INFER = re.compile(rb"/v2/models/([A-Za-z0-9._~-]+)(?:/versions/([A-Za-z0-9._~-]+))?/infer")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ALIGNMENT = 64
"""Of the first binary tensor in a body of known length: a cache line, and what SIMD loads like best."""
_SMALL_ANSWER = 64 * 1024
"""Up to this size head and body are joined into one write."""
_LINGER_SECONDS = 5.0
_HEAD_SECONDS = 10.0
"""From the first byte of a request, or from the connection's begin, to the end of the request's headers."""
_BODY_SECONDS = 30.0
"""Without a single byte of a body that is to come."""
_RESET_SECONDS = 0.05
_MAX_HEAD_BYTES = 64 * 1024
"""Of request line and headers. httptools has no limit and takes quadratic time; what comes in one piece may pass."""


def fast_protocol(context: RestContext) -> type[HttpToolsProtocol]:
    """Make the protocol class to give to ``uvicorn.Config(http=…)``."""

    class BoundFastHttpProtocol(FastHttpProtocol):
        rest = context

    return BoundFastHttpProtocol


class FastHttpProtocol(HttpToolsProtocol):
    """One connection. Make a class of it by :func:`fast_protocol`."""

    rest: RestContext
    cycle: Any  # uvicorn's or an _InferCycle, which has what uvicorn reads of its own

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._discarding = False
        self._cycles: set[_InferCycle] = set()
        self._held: _InferCycle | None = None
        self._in_body = False
        self._head_size = 0  # of a head that has begun and not ended; at least 1 then
        self._last_data = 0.0
        self._patience: asyncio.TimerHandle | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(_HEAD_SECONDS, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the network."""
        if self._discarding:
            return
        if not self._in_body:
            self._head_size += len(data)
        super().data_received(data)
        if self._in_body:
            self._last_data = self.loop.time()
            if self._patience is None:
                self._patience = self.loop.call_later(_BODY_SECONDS, self._body_is_late)
        elif self._head_size > _MAX_HEAD_BYTES:
            self._end(431, f"the request's headers are larger than the limit of {_MAX_HEAD_BYTES} bytes")
        elif self._patience is None and self.timeout_keep_alive_task is None and not self._is_answering():
            self._patience = self.loop.call_later(_HEAD_SECONDS, self._head_is_late)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Go on answering a client that ended its own sending only.

        A client that went away looks alike until something is written to it. An interim answer, which every client
        skips (RFC 9110, section 15.2), tells: the network's reply to it is a reset then.
        """
        cycle = self.cycle
        if (
            self.scheme == "https"  # TLS has no half-closed connections in asyncio
            or self._in_body
            or self._discarding
            or self.pipeline
            or not self._is_answering()
            or cycle.response_started
            or self.parser.get_http_version() == "1.0"
        ):
            return None
        cycle.keep_alive = False
        self.transport.write(_CONTINUE)
        self._look_for_reset()
        return True

    def _look_for_reset(self) -> None:
        # The event loop no longer reads here, and so does not see it.
        if self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(_RESET_SECONDS, self._look_for_reset)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what runs for a client that went away."""
        super().connection_lost(exc)
        self._stop_waiting()
        for cycle in self._cycles:
            cycle.disconnect()
        self._cycles.clear()
        self.pipeline.clear()

    def resume_writing(self) -> None:
        """Go on answering: the client reads again."""
        super().resume_writing()
        held, self._held = self._held, None
        if held is not None:
            self._finished(held)

    # What httptools calls

    def on_message_begin(self) -> None:
        """Begin a request; uvicorn's scope is made only for what goes to the application."""
        # An answer given while its own chunk of data was still being parsed has armed the timer.
        self._unset_keepalive_if_required()
        self._head_size = self._head_size or 1
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """Decide who answers the request."""
        self._in_body = True
        self._head_size = 0
        if self._patience is not None:
            self._stop_waiting()
        if self._discarding or self.transport.is_closing():
            return
        found = None
        if self.limit_concurrency is None and self.parser.get_method() == b"POST":
            found = _INFER.fullmatch(self.url)
        if found is None or self.parser.should_upgrade():
            url, headers, expect = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = url, expect
            self.headers.extend(headers)
            super().on_headers_complete()
            if self.rest.repository.draining and self.cycle is not None:
                self.cycle.keep_alive = False
            return
        previous = self.cycle
        cycle = _InferCycle(self, found[1].decode(), found[2].decode() if found[2] else None)
        self.cycle = cycle
        self._cycles.add(cycle)
        if previous is None or previous.response_complete:
            cycle.begin()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        """Take a part of the request's body."""
        cycle = self.cycle
        if isinstance(cycle, _InferCycle):
            cycle.feed(body)
        elif cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        self._in_body = False
        if self._patience is not None:
            self._stop_waiting()
        cycle = self.cycle
        if isinstance(cycle, _InferCycle):
            cycle.complete()
        elif cycle is not None:
            super().on_message_complete()

    # What uvicorn calls

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for it."""
        super().on_response_complete()
        if self._head_size and self.timeout_keep_alive_task is not None:
            # The connection is not idle: the next request has begun.
            self._unset_keepalive_if_required()
            if self._patience is None:
                self._patience = self.loop.call_later(_HEAD_SECONDS, self._head_is_late)

    # Clients that keep the server waiting

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _head_is_late(self) -> None:
        self._patience = None
        self._end(408, f"the request's headers did not come within {_HEAD_SECONDS:g} seconds")

    def _body_is_late(self) -> None:
        self._patience = None
        left = self._last_data + _BODY_SECONDS - self.loop.time()
        if left > 0 or self.flow.read_paused:
            # Paused: the server is what holds up the body.
            self._patience = self.loop.call_later(left if left > 0 else _BODY_SECONDS, self._body_is_late)
        else:
            self._end(408, f"the request's body did not go on for {_BODY_SECONDS:g} seconds")

    def _end(self, status: int, message: str) -> None:
        """Answer what did not become a request, and end the connection."""
        if self._discarding or self.transport.is_closing():
            return
        cycle = self.cycle
        if self._in_body:
            can_answer = self._is_answering() and not cycle.response_started
        else:
            # The answer to an earlier request must not be mixed up with this.
            can_answer = self._head_size > 0 and not self._is_answering()
        if not can_answer:
            self.transport.close()
            return
        self._write(Answer(status, [JSON_TYPE], [orjson.dumps({"error": message})]), keep_alive=False)
        self._linger()
        if self._in_body:
            # As if the client had gone: whoever waits for the body gives up.
            cycle.disconnected = True
            cycle.message_event.set()

    # What cycles call

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, _InferCycle):
            # From the pipeline, when the answer before it is out. Not at once: a thousand small pipelined requests
            # would nest as deeply.
            self.loop.call_soon(cycle.begin)
        else:
            super()._start_asgi_task(cycle, app)

    def send(self, cycle: _InferCycle, answer: Answer) -> None:
        """Write an answer and go on with the next request."""
        self._cycles.discard(cycle)
        if self.transport.is_closing():
            cycle.response_complete = True
            return
        # A client that hears of the end does not send its next request into a connection that is being closed.
        if answer.close or self.rest.repository.draining:
            cycle.keep_alive = False
        if self.access_log:
            self._log_access(cycle, answer.status)
        self._write(answer, cycle.keep_alive)
        if answer.close:
            self._linger()
        if cycle.keep_alive and self.flow.write_paused:
            # A client that asks and does not read must not fill the memory with answers.
            self._held = cycle
            self.flow.pause_reading()
        else:
            self._finished(cycle)

    def _write(self, answer: Answer, keep_alive: bool) -> None:
        head = [STATUS_LINE[answer.status]]
        for name, value in self.server_state.default_headers:
            head += (name, b": ", value, b"\r\n")
        for name, value in answer.headers:
            head += (name, b": ", value, b"\r\n")
        size = answer.nbytes
        head.append(b"content-length: %d\r\n" % size)
        head.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
        if size <= _SMALL_ANSWER:
            self.transport.write(b"".join([*head, *answer.body]))
        else:
            self.transport.write(b"".join(head))
            for part in answer.body:
                self.transport.write(part)

    def _finished(self, cycle: _InferCycle) -> None:
        cycle.response_complete = True
        if self._discarding:
            self.server_state.total_requests += 1
            return
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _log_access(self, cycle: _InferCycle, status: int) -> None:
        """Write uvicorn's access line."""
        client = "{}:{}".format(*self.client) if self.client else ""
        self.access_logger.info(
            '%s - "%s %s HTTP/%s" %d', client, "POST", cycle.path, cycle.http_version, status
        )

    def _linger(self) -> None:
        """End the connection so that the client can still read the answer.

        Closing a socket with unread bytes resets the connection, and a reset may overtake the answer (RFC 9112, section
        9.6): say that nothing more comes, and drop what the client still sends, for a while.
        """
        self._discarding = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()


class _InferCycle:
    """One request of a connection and its answer."""

    response_started = False  # before it is complete: answers are written whole

    def __init__(self, protocol: FastHttpProtocol, name: str, version: str | None) -> None:
        parser = protocol.parser
        self.http_version = parser.get_http_version()
        # uvicorn's rule: HTTP/1.0 connections end with the answer.
        self.keep_alive = self.http_version != "1.0" and parser.should_keep_alive()
        self.response_complete = False
        self.disconnected = False
        self.path = protocol.url.decode("ascii")
        self.message_event = _NoEvent
        self._protocol = protocol
        self._name = name
        self._version = version
        self._headers = dict(protocol.headers)
        self._expect = protocol.expect_100_continue
        self._limit = protocol.rest.max_request_bytes
        length = self._headers.get(b"content-length")
        self._length = int(length) if length is not None else None
        self._too_large = self._length is not None and self._length > self._limit
        self._received = 0
        self._body: BytesLike | None = None
        self._chunks: list[bytes] = []
        self._begun = False
        self._complete = False
        self._inference: Inference | None = None

    def begin(self) -> None:
        """Start, now that it is this request's turn to be answered."""
        if self.disconnected or self._begun:
            return
        self._begun = True
        if self._too_large:
            self._refuse()
        elif self._complete:
            self._infer()
        elif self._expect:
            self._protocol.transport.write(_CONTINUE)

    def feed(self, data: bytes) -> None:
        """Take a part of the body."""
        if self.response_complete or self._too_large:
            return
        received = self._received
        self._received = received + len(data)
        if self._received > self._limit:
            self._too_large = True
            self._chunks.clear()
            if self._begun:
                self._refuse()
        elif self._length is None:
            self._chunks.append(data)
        elif len(data) == self._length:
            self._body = data
        else:
            if self._body is None:
                self._body = self._room(self._length)
            self._body[received : self._received] = data  # type: ignore[index]  # writable, from _room

    def complete(self) -> None:
        """Take the end of the body."""
        self._complete = True
        if self._begun and not self._too_large:
            self._infer()

    def disconnect(self) -> None:
        """Give up: the client went away."""
        self.disconnected = True
        if self._inference is not None:
            self._inference.cancel()

    def _infer(self) -> None:
        body = self._body
        if body is None:
            body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
        self._body = None
        protocol = self._protocol
        self._inference = Inference(protocol.rest, protocol.loop, self._headers, body, self._reply)
        self._inference.start(self._name, self._version)

    def _reply(self, answer: Answer) -> None:
        self._inference = None
        self._protocol.send(self, answer)

    def _refuse(self) -> None:
        error = PayloadTooLarge(f"the request is larger than this server's limit of {self._limit} bytes")
        answer = error_answer(error)
        answer.close = True
        self._protocol.send(self, answer)

    def _room(self, length: int) -> memoryview:
        """Make room for a body, its first binary tensor aligned.

        NumPy's memory is not touched before it is written, so a client that only announces a large body takes none.
        """
        text = self._headers.get(JSON_LENGTH, b"0")
        split = int(text) if text.isdigit() and len(text) <= 18 else 0
        room = np.empty(length + _ALIGNMENT, np.uint8)
        start = -(room.ctypes.data + split) % _ALIGNMENT
        return room[start : start + length].data


class _NoEvent:
    """Stands where uvicorn wakes a waiting ASGI application; nothing waits here."""

    @staticmethod
    def set() -> None:
        """Do nothing."""
