"""What one subscription has not handled yet: a queue that is bounded in bytes. Plain Python."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from towerws.client.items import Denied, DeniedTopic, Event, Gap, Item

ITEM_BYTES = 200
"""What an item counts besides the characters of its frame."""


class Waiting(NamedTuple):
    """An item that was not handled yet. `before` is the position to resume from to get it again. `at` orders all queues."""

    item: Item
    before: str | None
    size: int
    at: int


class Queue:
    """One subscriber's topics and items. `wake` is called when an item came."""

    def __init__(self, topics: tuple[str, ...], limit_bytes: int, *, since: str | None = None) -> None:
        self.topics = topics
        self.since = since
        self.wake: Callable[[], None] = _nothing
        self.waiting: deque[Waiting] = deque()
        self.bytes = 0
        self.busy = False
        """The first item is being handled."""
        self.ended = False
        self.told: set[str] = set()
        """Topics that a notice has said to be subscribed."""
        self.told_denied: tuple[DeniedTopic, ...] = ()
        self._limit_bytes = limit_bytes

    def put(self, item: Item, before: str | None, characters: int, at: int) -> None:
        """Add an item. If the queue is full, all that waits becomes one gap: the handler is too slow."""
        if self.ended:
            return
        size = characters + ITEM_BYTES
        if self.bytes + size > self._limit_bytes and len(self.waiting) > self.busy:
            self._forget(before)
        self.waiting.append(Waiting(item, before, size, at))
        self.bytes += size
        self.wake()

    def _forget(self, to: str | None) -> None:
        """Replace what waits by a gap. The newest list of denied topics stays."""
        kept = [self.waiting.popleft()] if self.busy else []
        lost = list(self.waiting)
        first = lost[0]
        gone = dict.fromkeys(
            topic
            for waiting in lost
            if not isinstance(waiting.item, Denied)
            for topic in ((waiting.item.topic,) if isinstance(waiting.item, Event) else waiting.item.topics)
        )
        gap = Gap(tuple(gone), first.before, to, "slow")
        denied = [waiting for waiting in lost if isinstance(waiting.item, Denied)][-1:]
        self.waiting = deque([*kept, Waiting(gap, first.before, ITEM_BYTES, first.at), *denied])
        self.bytes = sum(waiting.size for waiting in self.waiting)

    def take(self) -> Item | None:
        """Return the next item, if there is one and none is being handled. It stays in the queue until `done`."""
        if self.busy or not self.waiting:
            return None
        self.busy = True
        return self.waiting[0].item

    def done(self) -> None:
        """The item was handled."""
        if self.busy and self.waiting:
            self.bytes -= self.waiting.popleft().size
        self.busy = False

    def clear(self) -> None:
        """Forget what waits."""
        self.waiting.clear()
        self.bytes = 0


def _nothing() -> None:
    """No one waits yet."""
