"""The client for programs without asyncio: the same calls, with the client's event loop in a thread of its own.

with connect("wss://example.com/websocket/") as live:
    for item in live.subscribe({"job_events": [42]}):
        ...
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self, TypeVar

from towerws.client import connection
from towerws.client.items import Groups, Item
from towerws.client.options import Options, checked_url
from towerws.client.subscription import Handler
from towerws.client.subscription import Subscription as AsyncSubscription

T = TypeVar("T")

JOIN_S = 5.0
"""Seconds to wait for the thread when it has nothing left to do."""


class Subscription:
    """What `Client.subscribe` returns. Without handlers, read it with `for`, or with `get`."""

    def __init__(self, client: Client, inner: AsyncSubscription) -> None:
        self.topics = inner.topics
        self._client = client
        self._inner = inner
        self._pending: concurrent.futures.Future[Item] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        """Wait for the next item. The one before it counts as handled."""
        try:
            return self.get()
        except StopAsyncIteration:
            raise StopIteration from None

    def get(self, timeout_s: float | None = None) -> Item:
        """Wait for the next item, for so many seconds at most. The one before it counts as handled.

        Raises `TimeoutError` if none came: then call it again. Raises `StopAsyncIteration` after `close`, and the `ClientError` with which
        the client stopped.
        """
        if self._pending is None:
            self._pending = self._client._start(self._inner.__anext__())  # noqa: SLF001 - the two are one
        item = self._pending.result(timeout_s) if not self._pending.done() else None
        pending, self._pending = self._pending, None
        return pending.result() if item is None else item

    def close(self) -> None:
        """Leave. Other subscriptions go on, with the same topics too."""
        self._client._call(self._inner.close)  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Client:
    """A client that stays connected. `connect` makes it. Its methods may be called from any thread.

    Handlers, the token callback and a store's methods run in threads, one call at a time for each subscription. So they may block.
    `onstate` and `onerror` run in the client's own thread, and must not.
    """

    def __init__(self, url: str, options: Options) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="towerws.client", daemon=True)
        self._thread.start()
        self._client = self._call(lambda: connection.Client(url, options))

    def subscribe(
        self, groups: Groups, handler: Handler | None = None, *, since: str | None = None, **handlers: Handler | None
    ) -> Subscription:
        """Subscribe to topics, as `towerws.client.Client.subscribe` does."""
        called = {name: _in_thread(call) for name, call in handlers.items() if call is not None}
        first = None if handler is None else _in_thread(handler)
        return Subscription(self, self._call(lambda: self._client.subscribe(groups, first, since=since, **called)))

    def close(self) -> None:
        """End the connection and all subscriptions, and wait for that."""
        if self._loop.is_closed():
            return

        async def end() -> None:
            self._client.close()
            await self._client.wait_closed()

        self._start(end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def state(self) -> str:
        """The state of the connection."""
        return self._client.state

    @property
    def user(self) -> int | str | None:
        """The user whom the server recognised, None for an anonymous one."""
        return self._client.user

    @property
    def position(self) -> str | None:
        """The newest place in the log that was received."""
        return self._client.position

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            self._loop.close()

    def _start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _call(self, call: Callable[[], T]) -> T:
        async def now() -> T:
            return call()

        return self._start(now()).result()


class _ThreadStore:
    """A store whose methods may block."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def get(self) -> Any:
        return await _in_thread(lambda _: self._store.get())(None)

    async def set(self, position: str, /) -> Any:
        return await _in_thread(self._store.set)(position)


def _in_thread(call: Handler) -> Callable[[Any], Awaitable[Any]]:
    """Run a function in a thread. What it returns may be awaitable."""

    async def called(argument: Any) -> Any:
        result = await asyncio.to_thread(call, argument)
        return await result if inspect.isawaitable(result) else result

    return called


def connect(url: str, **options: Any) -> Client:
    """Connect, and stay connected, as `towerws.client.connect` does. Raises the same errors."""
    checked_url(url)
    checked = Options(**options)
    token = checked.token
    if token is not None and not isinstance(token, str):
        fetch = token
        options["token"] = lambda: _in_thread(lambda _: fetch())(None)
    if checked.store is not None:
        options["store"] = _ThreadStore(checked.store)
    return Client(url, Options(**options))
