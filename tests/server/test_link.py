"""Calls over a socket pair."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kserve_wasm.errors import ModelNotFound, WasmServingError
from kserve_wasm.server.link import Link


def between(
    handler: Callable[[str, dict[str, Any]], Awaitable[Any]], talk: Callable[[Link, Link], Any]
) -> None:
    """Let ``talk`` use one end, and ``handler`` answer at the other."""

    async def run() -> None:
        ends = socket.socketpair()
        links = Link(handler), Link(handler)
        running = []
        for link, end in zip(links, ends, strict=True):
            end.setblocking(False)
            await link.open(end)
            running.append(asyncio.create_task(link.run()))
        await talk(*links)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    asyncio.run(run())


async def handle(name: str, arguments: dict[str, Any]) -> Any:
    if name == "echo":
        return arguments
    if name == "wait":
        await asyncio.sleep(arguments["seconds"])
        return arguments["seconds"]
    if name == "missing":
        raise ModelNotFound("there is no model 'ü'")
    raise RuntimeError("a secret")


def test_both_sides_call_at_once_and_slow_answers_hold_nothing_up():
    async def talk(here: Link, there: Link) -> None:
        slow = asyncio.create_task(here.call("wait", seconds=0.3))
        large = "x" * 3_000_000
        echoes = await asyncio.gather(
            *(link.call("echo", name=i, large=large) for i in range(3) for link in (here, there))
        )
        assert [echo["name"] for echo in echoes] == [0, 0, 1, 1, 2, 2]
        assert {echo["large"] for echo in echoes} == {large}
        assert await slow == 0.3

    between(handle, talk)


def test_errors_keep_their_class_and_their_secrets(caplog: pytest.LogCaptureFixture):
    async def talk(here: Link, _: Link) -> None:
        with pytest.raises(ModelNotFound, match="there is no model 'ü'"):
            await here.call("missing")
        with pytest.raises(WasmServingError, match="internal server error") as raised:
            await here.call("other")
        assert "secret" not in str(raised.value)

    between(handle, talk)
    assert "a secret" in caplog.text


def test_an_answer_that_comes_too_late_is_dropped():
    async def talk(here: Link, _: Link) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await here.call("wait", timeout=0.05, seconds=0.2)
        await asyncio.sleep(0.3)
        assert await here.call("echo", name=1) == {"name": 1}

    between(handle, talk)


def test_whoever_waits_hears_that_the_other_side_is_gone():
    async def run() -> None:
        here, there = socket.socketpair()
        here.setblocking(False)
        link = Link(handle)
        await link.open(here)
        running = asyncio.create_task(link.run())
        waiting = asyncio.create_task(link.call("echo"))
        await asyncio.sleep(0)
        there.close()
        with pytest.raises(ConnectionError):
            await waiting
        await running
        with pytest.raises(ConnectionError):
            await link.call("echo")

    asyncio.run(run())
