"""Handlers, iterators, options and the end of a client, with a stand-in for the daemon."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.kit.daemon import DEADLINE_S
from tests.kit.rows import each_row
from tests.kit.standin import StandIn
from towerws.client import Client, ClientError, Event, Item, StateChange, connect


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until the condition is true. `with_client` has the deadline."""
    while not condition():  # noqa: ASYNC110 - what the tests wait for announces nothing
        await asyncio.sleep(0)


def with_client(work: Callable[[Client, StandIn], Awaitable[None]], **options: Any) -> None:
    """Run a coroutine with a client of a stand-in."""

    async def run() -> None:
        with StandIn() as standin:
            async with asyncio.timeout(DEADLINE_S), connect(standin.url, **options) as live:
                await work(live, standin)

    asyncio.run(run())


def test_a_handler_that_raises() -> None:
    """The other subscriptions go on, and the error reaches `onerror`, with what the handler was given."""
    errors: list[ClientError] = []
    got: list[Any] = []

    async def work(live: Client, standin: StandIn) -> None:
        enough = asyncio.Event()

        def raises(event: Event) -> None:
            raise ZeroDivisionError

        async def raises_later(event: Event) -> None:
            await asyncio.sleep(0)
            raise ZeroDivisionError

        async def cancelled(event: Event) -> None:
            raise asyncio.CancelledError

        def keep(event: Event) -> None:
            got.append(event.payload)
            if len(got) == 2:
                enough.set()

        online = asyncio.Event()
        for handler in (raises, raises_later, cancelled):
            live.subscribe({"own": ["thing"]}, handler)
        live.subscribe({"own": ["thing"]}, keep, subscribed=lambda notice: online.set())
        await online.wait()
        for number in range(2):
            standin.publish("own.thing", str(number).encode())
        await enough.wait()
        await until(lambda: not (len(errors) < 6))

    with_client(work, onerror=errors.append)
    assert got == [0, 1]
    assert {error.code for error in errors} == {"handler"}
    assert all(isinstance(error.item, Event) for error in errors)
    assert {type(error.__cause__) for error in errors} == {ZeroDivisionError, asyncio.CancelledError}


def test_without_onerror_there_is_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """A notice without a function, and callbacks that raise, are in the log."""

    async def work(live: Client, standin: StandIn) -> None:
        online = asyncio.Event()
        live.subscribe({"own": ["thing"]}, lambda event: None, subscribed=lambda notice: online.set())
        await online.wait()
        standin.say({"type": "gap", "topics": ["own.thing"], "from": None, "to": None, "reason": "history"})
        await until(lambda: not ("gap: own.thing" not in caplog.text))

    def bad(change: StateChange) -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, "towerws.client"):
        with_client(work, onstate=bad)
    assert "onstate failed" in caplog.text


def test_iterators() -> None:
    """An iterator gets all items in order. It ends with its subscription, and raises when the client stops."""

    async def work(live: Client, standin: StandIn) -> None:
        async def read(into: list[Any], items: Any) -> None:
            async for item in items:
                into.append(item.payload if isinstance(item, Event) else item.type)  # noqa: PERF401 - others read the list meanwhile

        first: list[Any] = []
        second: list[Any] = []
        with live.subscribe({"own": ["thing"]}) as items:
            reading = asyncio.create_task(read(first, items))
            await until(lambda: bool(first))
            with pytest.raises(RuntimeError, match="another task"):
                await anext(items)
            standin.publish("own.thing", b"[1]")
            await until(lambda: not (len(first) < 2))
        await reading
        stopped = asyncio.create_task(read(second, live.subscribe({"own": ["thing"]})))
        await until(lambda: bool(second))
        standin.say({"type": "bye", "action": "stop", "reconnect_after_ms": None, "reason": "policy"})
        with pytest.raises(ClientError, match="policy"):
            await stopped
        assert (first, second) == (["subscribed", [1]], ["subscribed"])
        with pytest.raises(ClientError, match="policy"):
            live.subscribe({"own": ["thing"]})

    with_client(work, onerror=lambda error: None)


def test_a_quiet_connection_is_asked() -> None:
    """The answer has the position from which a quiet topic resumes."""

    async def work(live: Client, standin: StandIn) -> None:
        quiet: list[str] = []
        live.subscribe(
            {"own": ["thing"]}, subscribed=lambda notice: quiet.append("subscribed"), recovered=lambda notice: quiet.append("recovered")
        )
        await until(lambda: quiet)
        standin.publish("own.other", b"1")
        await until(lambda: live.position == "1-standin")
        standin.drop()
        await until(lambda: len(quiet) > 1)
        assert quiet == ["subscribed", "recovered"]
        assert [request.get("since") for request in standin.requests.queue] == [None, "1-standin"]

    with_client(work, ping_s=0.01, retry_min_s=0.01)


def test_a_connection_that_does_not_answer() -> None:
    """It is dead. A ping is not sent behind a request, whose answer may take longer: that one has its own deadline."""
    reasons: list[str] = []

    def keep(change: StateChange) -> None:
        if change.reason is not None:
            reasons.append(change.reason.code)

    async def work(live: Client, standin: StandIn) -> None:
        standin.answers_pings = False
        await until(lambda: reasons)
        standin.answers_pings = True
        release = threading.Event()

        def wait() -> None:
            standin.before_subscribed = wait
            release.wait(DEADLINE_S)

        standin.before_subscribed = wait
        live.subscribe({"own": ["thing"]})
        await until(lambda: "timeout" in reasons)
        release.set()

    with_client(work, onstate=keep, ping_s=0.01, pong_s=0.05, answer_s=0.5, retry_min_s=0.01)
    assert reasons[0] == "dead"


def test_a_slow_coroutine_delays_only_its_own_subscription() -> None:
    """Its queue is bounded, and the loss is told."""
    slow: list[Item] = []
    quick: list[Item] = []

    async def work(live: Client, standin: StandIn) -> None:
        release = asyncio.Event()

        async def wait(event: Event) -> None:
            slow.append(event)
            await release.wait()

        live.subscribe({"own": ["thing"]}, wait, gap=slow.append)
        live.subscribe({"own": ["thing"]}, quick.append, subscribed=quick.append)
        await until(lambda: bool(quick))
        for number in range(50):
            standin.publish("own.thing", str(number).encode())
        await until(lambda: len(quick) >= 51)
        release.set()
        await until(lambda: bool(slow) and isinstance(slow[-1], Event) and slow[-1].payload == 49)

    with_client(work, queue_bytes=4000)
    assert [item.reason for item in slow if item.type == "gap"] == ["slow"]
    assert len(slow) < 20


@each_row(
    "url, options, error",
    [
        ("", {}, ValueError), ("host", {}, ValueError), ("ftp://host/", {}, ValueError), ("ws://", {}, ValueError), (None, {}, TypeError),
        ("ws://host/#x", {}, ValueError),
        ("ws://user@host/", {}, ValueError), ("ws://host:0/", {}, ValueError), ("ws://[::1/", {}, ValueError),
        ("ws://host/a b", {}, ValueError), ("ws://host/", {"tokn": "x"}, TypeError), ("ws://host/", {"token": "a b"}, ValueError),
        ("ws://host/", {"token": 5}, TypeError),
        ("ws://host/", {"ping_s": 0}, ValueError), ("ws://host/", {"ping_s": float("nan")}, ValueError),
        ("ws://host/", {"ping_s": "1"}, TypeError), ("ws://host/", {"store": 5}, TypeError), ("ws://host/", {"onerror": 5}, TypeError),
    ],
)  # fmt: skip
def test_wrong_urls_and_options(url: Any, options: dict[str, Any], error: type[Exception]) -> None:
    """Each is an error at once."""

    async def run() -> None:
        with pytest.raises(error):
            connect(url, **options)

    asyncio.run(run())
