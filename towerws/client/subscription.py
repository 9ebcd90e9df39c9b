"""One subscription, which calls its handlers or gives its items to an iterator."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from towerws.client import items
from towerws.client.items import ClientError, Item, Queue

Handler = Callable[[Any], object]
"""Gets an item. If a handler returns an awaitable, the next item of its subscription waits for the awaitable."""


class Owner(NamedTuple):
    """The functions of the client that a subscription calls."""

    left: Callable[[Queue], None]
    """Called when the subscription has ended."""
    handled: Callable[[], None]
    """Called when an item was handled."""
    handler_failed: Callable[[BaseException, Item], None]
    """Called with the exception of a handler."""
    report: Callable[[items.ClientError], None]  # with its module: Sphinx finds the short name twice
    """Called for a `gap`, `stale` or `denied` that has no handler."""


class Subscription:
    """A subscription to topics, which `Client.subscribe` returns.

    Without handlers, read it with `async for`. It gives items of all types. `close`, or the end of a `with` block, ends the subscription.
    """

    def __init__(self, owner: Owner, queue: Queue, handlers: Mapping[str, Handler] | None) -> None:
        self.topics = queue.topics
        self._owner = owner
        self._queue = queue
        self._handlers = handlers
        self.reason: ClientError | None = None
        """The error with which the client stopped."""
        self._arrived = asyncio.Event()
        self._reading = False
        self._task: asyncio.Task[None] | None = None
        queue.wake = self._arrived.set if handlers is None else self._handle

    def close(self) -> None:
        """End the subscription. Other subscriptions go on, also those with the same topics. A handler that runs is not cancelled."""
        self.end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def end(self, reason: ClientError | None) -> None:
        """End the subscription. The client calls this with the error that stopped it, or with None after `close`."""
        if self._queue.ended:
            return
        self._queue.ended = True
        self.reason = reason
        if self._handlers is not None or reason is None:
            self._queue.clear()
        self._arrived.set()
        self._owner.left(self._queue)

    # handlers

    def _handle(self) -> None:
        """Call the handlers for the items that wait, up to a handler that returns an awaitable."""
        while (item := self._queue.take()) is not None:
            try:
                result = self._call(item)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises, the other subscriptions go on
                self._owner.handler_failed(error, item)
                result = None
            if inspect.isawaitable(result):
                self._task = asyncio.ensure_future(self._wait(result, item))
                return
            self._done()

    def _call(self, item: Item) -> object:
        assert self._handlers is not None
        handler = self._handlers.get(item.type)
        if handler is not None:
            return handler(item)
        if item.type in {"gap", "stale", "denied"}:
            topics = ", ".join(item.topics[:5]) + (" …" if len(item.topics) > 5 else "")
            self._owner.report(ClientError(item.type, f"{item.type}: {topics}: no handler for it", item=item))
        return None

    async def _wait(self, result: Any, item: Item) -> None:
        try:
            await result
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            self._owner.handler_failed(error, item)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, the other subscriptions go on
            self._owner.handler_failed(error, item)
        self._task = None
        self._done()
        self._handle()

    def _done(self) -> None:
        self._queue.done()
        self._owner.handled()

    # the iterator

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        """Return the next item. The one before it counts as handled.

        Raises `TypeError` if the subscription has handlers, `RuntimeError` if another task reads it, and the `ClientError` with which
        the client stopped.
        """
        if self._handlers is not None:
            raise TypeError("a subscription with handlers can't be read")
        if self._reading:
            raise RuntimeError("another task reads this subscription")
        self._reading = True
        try:
            if self._queue.busy:
                self._done()
            while (item := self._queue.take()) is None:
                if self._queue.ended:
                    if self.reason is not None:
                        raise self.reason
                    raise StopAsyncIteration
                self._arrived.clear()
                await self._arrived.wait()
            return item
        finally:
            self._reading = False
