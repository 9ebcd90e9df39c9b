"""The client for programs without asyncio: the same calls, which block. The client's event loop has a thread of its own.

with connect("wss://example.com/websocket/") as live:
    for item in live.subscribe({"job_events": [42]}):
        ...
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self, TypeVar
from weakref import WeakSet

from towerws.client import connection
from towerws.client.items import ClientError, Groups, Item
from towerws.client.options import Options, Store, checked_url
from towerws.client.subscription import Handler
from towerws.client.subscription import Subscription as AsyncSubscription

T = TypeVar("T")

END_S = 5.0
"""Seconds that the thread may take to end, in addition to the time of the store."""

TOKEN_THREADS = 4
"""Threads for the token callback. A call that never returns holds one for ever. When all are held, the client gets no more tokens."""


class Subscription:
    """A subscription to topics, which `Client.subscribe` returns.

    Without handlers, read it with `for`, or with `get`, in one thread at a time.
    """

    def __init__(self, client: Client, inner: AsyncSubscription, thread: ThreadPoolExecutor) -> None:
        self.topics = inner.topics
        self._client = client
        self._inner = inner
        self._thread = thread
        self._pending: Future[Item] | None = None
        self._reading = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        """Wait for the next item. The item before it counts as handled. The iteration ends with the subscription."""
        try:
            return self._next(None)
        except StopAsyncIteration:
            raise StopIteration from None

    def get(self, timeout_s: float | None = None) -> Item:
        """Wait for the next item, for at most `timeout_s` seconds. The item before it counts as handled.

        Raises `TimeoutError` if no item came: then call it again. Raises the `ClientError` with which the client stopped. After `close`, it
        raises one with the code `closed`. Raises `RuntimeError` in the client's own thread, and if another thread reads the subscription.
        """
        try:
            return self._next(timeout_s)
        except StopAsyncIteration:
            raise _closed("subscription") from None

    def _next(self, timeout_s: float | None) -> Item:
        """Do the same as `get`, but raise `StopAsyncIteration` after `close`."""
        if self._client._in_own_thread():  # noqa: SLF001 - this class is a part of the client
            raise RuntimeError("this is the client's own thread: an item that is waited for here never comes")
        if not self._reading.acquire(blocking=False):
            raise RuntimeError("another thread reads this subscription")
        try:
            if self._pending is None:
                self._pending = self._client._start(self._inner.__anext__())  # noqa: SLF001
            item = self._pending.result(timeout_s) if not self._pending.done() else None
            pending, self._pending = self._pending, None
            return pending.result() if item is None else item
        except (_ThreadEnded, CancelledError):
            self._pending = None
            if self._inner.reason is not None:
                raise self._inner.reason from None
            raise StopAsyncIteration from None
        finally:
            self._reading.release()

    def close(self) -> None:
        """End the subscription. Other subscriptions go on, also those with the same topics. A second call does nothing."""

        def leave() -> None:
            self._inner.close()
            asyncio.get_running_loop().call_soon(self._thread.shutdown, False)  # later, since a call of a handler may be scheduled already

        with suppress(_ThreadEnded):
            self._client._call(leave)  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Client:
    """A client that stays connected. `connect` makes it. Its methods may be called from any thread, also after its end.

    Handlers, the token callback and the methods of a store may block. The handlers of one subscription share a thread, one call at a time.
    The token callback and the store have other threads. `onstate` and `onerror` run in the client's own thread, and must not block. They
    may subscribe and close.
    """

    def __init__(self, url: str, options: Options) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._ended = False
        """Whether the event loop takes no more calls."""
        self._end_s = END_S + 2 * options.connect_s
        self._threads: WeakSet[ThreadPoolExecutor] = WeakSet()
        options = self._in_threads(options)
        self._thread = threading.Thread(target=self._run, name="towerws.client", daemon=True)
        self._thread.start()
        self._client = self._call(lambda: connection.Client(url, options))

    def subscribe(
        self, groups: Groups, handler: Handler | None = None, *, since: str | None = None, **handlers: Handler | None
    ) -> Subscription:
        """Subscribe to topics, as `towerws.client.Client.subscribe` does. Raises the same errors."""
        thread = self._new_threads(1)  # the executor starts its thread at the first call of a handler
        called = {name: _in_thread(thread, call) for name, call in handlers.items() if call is not None}
        first = None if handler is None else _in_thread(thread, handler)
        try:
            return Subscription(self, self._call(lambda: self._client.subscribe(groups, first, since=since, **called)), thread)
        except _ThreadEnded:
            raise _closed("client") from None

    def close(self) -> None:
        """End the connection and all subscriptions, and wait until the position is stored. A second call waits, too.

        It does not wait in the client's own thread, and never for handlers that still run.
        """

        async def end() -> None:
            self._client.close()
            await self._client.wait_closed()
            if not self._ended:  # otherwise another call has stopped the loop, and `_end_tasks` runs this one
                self._loop.stop()

        with suppress(_ThreadEnded):
            self._start(end())
        if not self._in_own_thread():
            self._thread.join(self._end_s)

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

    # for this module only

    def _in_own_thread(self) -> bool:
        """Whether the caller runs in the thread of the event loop."""
        return threading.current_thread() is self._thread

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the event loop. Raises `_ThreadEnded`."""
        with self._lock:
            if self._ended:
                work.close()
                raise _ThreadEnded
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _call(self, call: Callable[[], T]) -> T:
        """Call a function in the event loop, and return what it returns. Raises `_ThreadEnded`."""
        if self._in_own_thread():
            return call()

        async def now() -> T:
            return call()

        try:
            return self._start(now()).result()
        except CancelledError:
            raise _ThreadEnded from None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            with self._lock:
                self._ended = True
            self._loop.run_until_complete(_end_tasks())
        finally:
            with self._lock:
                for threads in self._threads:
                    threads.shutdown(wait=False, cancel_futures=True)
            self._loop.close()

    def _new_threads(self, count: int) -> ThreadPoolExecutor:
        """Return an executor with threads of its own, which end with the client.

        asyncio resolves names in its default executor, and a function that blocks must not hold those threads.
        """
        threads = ThreadPoolExecutor(count, thread_name_prefix="towerws.client.call")
        with self._lock:
            self._threads.add(threads)
        return threads

    def _in_threads(self, options: Options) -> Options:
        """Return the options with a token callback and a store that run in threads, so that they may block."""
        if callable(options.token):
            options = dataclasses.replace(options, token=_in_thread(self._new_threads(TOKEN_THREADS), options.token))
        if options.store is not None:
            options = dataclasses.replace(options, store=_ThreadStore(self._new_threads(1), options.store))
        return options


class _ThreadEnded(Exception):
    """The client's thread has ended, or is about to end."""


class _ThreadStore:
    """A store that calls another store's methods in a thread, so that they may block."""

    def __init__(self, thread: ThreadPoolExecutor, store: Store) -> None:
        self.get = _in_thread(thread, store.get)
        self.set = _in_thread(thread, store.set)


def _in_thread(threads: ThreadPoolExecutor, call: Callable[..., object]) -> Callable[..., Awaitable[Any]]:
    """Return a coroutine function that calls `call` in one of these threads, and awaits its result if that is awaitable."""

    async def called(*arguments: Any) -> Any:
        result = await asyncio.get_running_loop().run_in_executor(threads, call, *arguments)
        return await result if inspect.isawaitable(result) else result

    return called


async def _end_tasks() -> None:
    """End the calls that came while the event loop stopped, and the tasks that wait for a handler."""
    await asyncio.sleep(0)  # Calls of other threads become tasks now. They end at once, because the client is closed.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=END_S)


def _closed(what: str) -> ClientError:
    return ClientError("closed", f"the {what} is closed")


def connect(url: str, **options: Any) -> Client:
    """Connect, and stay connected, as `towerws.client.connect` does. Raises the same errors."""
    return Client(checked_url(url), Options(**options))
