"""The client without asyncio: its end from any thread, and functions that block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.kit.daemon import DEADLINE_S
from tests.kit.standin import StandIn
from towerws.client import ClientError, Event, StateChange, sync

OWN: dict[str, list[int | str]] = {"own": ["thing"]}

MORE_THAN_ASYNCIO_HAS = 33
"""asyncio's own executor has 32 threads at most."""


def at_once(count: int, call: Callable[[], Any]) -> list[Future[Any]]:
    """Call a function in so many threads at the same time, and wait until all have ended."""
    start = threading.Barrier(count)

    def called() -> Any:
        start.wait(DEADLINE_S)
        return call()

    pool = ThreadPoolExecutor(count)
    futures = [pool.submit(called) for _ in range(count)]
    for future in futures:
        future.exception(DEADLINE_S)
    pool.shutdown()
    return futures


@contextmanager
def blocking(standin: StandIn, url: str, count: int, **options: Any) -> Iterator[sync.Client]:
    """A client with so many subscriptions whose handlers all block until the end of the block."""
    release, entered = threading.Event(), threading.Semaphore(0)

    def block(event: Any) -> None:
        entered.release()
        release.wait(DEADLINE_S)

    with sync.connect(url, **options) as live:
        try:
            online = threading.Semaphore(0)
            for _ in range(count):
                live.subscribe(OWN, block, subscribed=lambda notice: online.release())
            for _ in range(count):
                assert online.acquire(timeout=DEADLINE_S)
            standin.publish("own.thing", b"1")
            for _ in range(count):
                assert entered.acquire(timeout=DEADLINE_S), "a handler waits for that of another subscription"
            yield live
        finally:
            release.set()


def test_calls_after_the_end() -> None:
    """Each call on a closed client has a defined result at once, in every thread: nothing, or the error `closed`."""
    with StandIn() as standin:
        live = sync.connect(standin.url)
        items = live.subscribe(OWN)
        assert items.get(DEADLINE_S).type == "subscribed"
        live.close()
        for future in at_once(4, lambda: live.subscribe(OWN)):
            error = future.exception()
            assert isinstance(error, ClientError)
            assert error.code == "closed"
        with pytest.raises(ClientError, match="closed"):
            items.get()
        for call in (live.close, items.close):
            assert [future.exception() for future in at_once(4, call)] == [None] * 4
        assert list(items) == []
        assert live.state == "closed"


def test_the_end_while_others_call() -> None:
    """Threads that close, subscribe and wait for items at the same time all return. None hangs, and none gets another error."""
    with StandIn() as standin:
        for _ in range(20):
            live = sync.connect(standin.url)
            for future in at_once(6, one_of(live, live.subscribe(OWN))):
                error = future.exception()
                assert error is None or (isinstance(error, ClientError) and error.code == "closed"), repr(error)
            assert live.state == "closed"


def one_of(live: sync.Client, items: sync.Subscription) -> Callable[[], Any]:
    """A function that makes another call each time."""

    def read_another() -> Any:
        return live.subscribe(OWN).get(DEADLINE_S)

    calls: Iterator[Callable[[], Any]] = iter([items.get, live.close, lambda: live.subscribe(OWN), live.close, items.close, read_another])
    lock = threading.Lock()

    def call() -> Any:
        with lock:
            chosen = next(calls)
        return chosen()

    return call


def test_the_end_of_a_subscription_that_another_thread_reads() -> None:
    """`get` then raises `closed`. An iteration ends."""
    with StandIn() as standin, sync.connect(standin.url) as live:
        items = live.subscribe(OWN)
        assert items.get(DEADLINE_S).type == "subscribed"
        with pytest.raises(TimeoutError):
            items.get(0.01)  # its request goes on
        items.close()
        with pytest.raises(ClientError, match="closed"):
            items.get(DEADLINE_S)
        assert list(items) == []


def test_the_reason_of_a_client_that_stopped() -> None:
    """`get` raises it, before `close` and after."""
    with StandIn() as standin:
        live = sync.connect(standin.url, onerror=lambda error: None)
        items = live.subscribe(OWN)
        assert items.get(DEADLINE_S).type == "subscribed"
        standin.say({"type": "bye", "action": "stop", "reconnect_after_ms": None, "reason": "policy"})
        for _ in range(2):
            with pytest.raises(ClientError, match="policy"):
                items.get(DEADLINE_S)
            live.close()


def test_calls_from_the_clients_own_thread() -> None:
    """`onstate` may subscribe and close. Waiting for an item there would wait for itself: it is an error at once."""
    made: Future[sync.Client] = Future()
    got: Future[BaseException] = Future()
    closed = threading.Event()

    def onstate(change: StateChange) -> None:
        if change.state == "open":
            live = made.result(DEADLINE_S)
            items = live.subscribe(OWN)
            try:
                items.get()
            except RuntimeError as error:
                got.set_result(error)
            live.close()
        elif change.state == "closed":
            closed.set()

    with StandIn() as standin:
        live = sync.connect(standin.url, onstate=onstate)
        made.set_result(live)
        assert "own thread" in str(got.result(DEADLINE_S))
        assert closed.wait(DEADLINE_S)
        live.close()


def test_a_handler_closes_the_client() -> None:
    """It returns from `close`, and the thread of the client ends."""
    with StandIn() as standin:
        returned = threading.Event()
        live = sync.connect(standin.url)

        def close(notice: Any) -> None:
            live.close()
            returned.set()

        live.subscribe(OWN, lambda event: None, subscribed=close)
        assert returned.wait(DEADLINE_S)
        assert live.state == "closed"
        assert not any(thread.name == "towerws.client" for thread in threading.enumerate())


def test_a_slow_function() -> None:
    """What waits for it is bounded, and becomes a gap that is told. The newest events follow."""
    got: list[Any] = []
    entered, release, done = threading.Event(), threading.Event(), threading.Event()

    def slow(event: Event) -> None:
        entered.set()
        release.wait(DEADLINE_S)
        got.append(event.payload)
        if event.payload == 49:
            done.set()

    with StandIn() as standin, sync.connect(standin.url, queue_bytes=4000) as live, live.subscribe(OWN) as quick:
        assert quick.get(DEADLINE_S).type == "subscribed"
        live.subscribe(OWN, slow, gap=lambda gap: got.append(gap.reason))
        for number in range(50):
            standin.publish("own.thing", str(number).encode())
            assert quick.get(DEADLINE_S).type == "event"
            assert entered.wait(DEADLINE_S)
        release.set()
        assert done.wait(DEADLINE_S)
    numbers = [found for found in got if found != "slow"]
    assert got.count("slow") == 1
    assert got.index("slow") == 1, "the event that was being handled comes first"
    assert numbers == [0, *range(51 - len(numbers), 50)]


def test_handlers_that_block() -> None:
    """They delay only their own subscription: another one gets its events, and the client can reconnect with a new token."""
    tokens: list[str] = []

    def fetch() -> str:
        tokens.append(f"token{len(tokens)}")
        return tokens[-1]

    with StandIn() as standin:
        url = standin.url.replace("127.0.0.1", "localhost")  # a name, because asyncio resolves names in its own threads
        with blocking(standin, url, MORE_THAN_ASYNCIO_HAS, token=fetch, retry_min_s=0.01) as live, live.subscribe(OWN) as items:
            assert items.get(DEADLINE_S).type == "subscribed"
            standin.drop()
            assert items.get(DEADLINE_S).type == "recovered"
            standin.publish("own.thing", b"2")
            assert items.get(DEADLINE_S).type == "event"
    assert tokens == ["token0", "token1"]


def test_a_stopped_client_gives_the_reason_each_time() -> None:
    """The reason does not grow with the calls."""
    with StandIn(refuse=404) as standin, sync.connect(standin.url, onerror=lambda error: None) as live:
        errors = []
        for _ in range(3):
            with pytest.raises(ClientError, match="404") as raised:
                live.subscribe(OWN).get(DEADLINE_S)
            errors.append(len(raised.traceback))
        assert raised.value.status == 404
        assert errors[1] == errors[2]
