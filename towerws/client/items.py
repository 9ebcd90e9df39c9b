"""The items that a subscription gets, its errors, and the bounded queue of items that it has not handled yet. Plain Python."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from towerws.core.errors import TowerwsError
from towerws.core.topics import is_event, is_group

Groups = Mapping[str, Iterable[str | int]]
"""Topics: each group with its events. `42` and `"42"` are the same event."""

ITEM_BYTES = 200
"""Bytes that an item counts for in its queue, in addition to the characters of its frame."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a topic. `event` is always text: `"42"`."""

    topic: str
    group: str
    event: str
    payload: Any
    """The producer's payload. `NaN` and infinities in it are None. The whole payload is None if it can't be read as JSON even so."""
    position: str | None
    """The event's place in the log. None while the server has no useful position."""
    text: str | None = None
    """The payload as text, only if it is not plain JSON."""
    frame: str = field(default="", repr=False)
    """The whole frame, as the server sent it."""
    type: Literal["event"] = field(default="event", init=False)


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The subscription gets every event of these topics after this item.

    `type` is `subscribed` for new topics: fetch their state. After a reconnect, `type` is `recovered` if all events since the connection
    was lost follow. It is `stale` if some of them are missing: fetch the state.
    """

    type: Literal["subscribed", "recovered", "stale"]
    topics: tuple[str, ...]
    position: str | None


@dataclass(frozen=True, slots=True)
class Gap:
    """Some events of these topics are missing at this point: fetch their state.

    `reason` is `history` or `broker` (docs/protocol.md), or `slow` if this subscription's own queue was full. `from_` and `to` are the
    positions before and after the gap.
    """

    topics: tuple[str, ...]
    from_: str | None
    to: str | None
    reason: str
    type: Literal["gap"] = field(default="gap", init=False)


class DeniedTopic(NamedTuple):
    """A topic that the server does not send, and why (docs/protocol.md)."""

    topic: str
    reason: str


@dataclass(frozen=True, slots=True)
class Denied:
    """All topics of the subscription that the server does not send now. The subscription gets this item when the list changes.

    There is no item for an empty list. The client asks for these topics again: after some seconds if the reason is `unavailable`, otherwise
    after a reconnect and with a new token.
    """

    denied: tuple[DeniedTopic, ...]
    type: Literal["denied"] = field(default="denied", init=False)

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics without the reasons."""
        return tuple(item.topic for item in self.denied)


Item = Event | Subscribed | Gap | Denied


class ClientError(TowerwsError):
    """An error of the client. docs/python-client.md lists the codes.

    `status` is the HTTP status of a refused handshake. `item` is the item whose handler failed or is missing. `said` is the server's own
    reason.
    """

    def __init__(self, code: str, text: str, *, status: int | None = None, item: Item | None = None, said: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.status = status
        self.item = item
        self.said = said


def caused(code: str, text: str, cause: BaseException, item: Item | None = None) -> ClientError:
    """Return a `ClientError` for an exception (`cause`). A traceback shows both."""
    error = ClientError(code, text, item=item)
    error.__cause__ = cause
    return error


def topics_of(groups: Groups) -> tuple[str, ...]:
    """Return the topics that these groups name, each once. Raise `ValueError` for a malformed one, `TypeError` for another shape."""
    given: Any = groups
    if not isinstance(given, Mapping):
        raise TypeError(f"groups is {type(groups).__name__}: it must be a mapping, as in {{'job_events': [42]}}")
    found: dict[str, None] = {}
    for group, events in given.items():
        if isinstance(events, str | bytes | Mapping) or not isinstance(events, Iterable):
            raise TypeError(f"groups[{group!r}] is {type(events).__name__}: it must be a list of events")
        for event in events:
            text = str(event) if isinstance(event, str | int) and not isinstance(event, bool) else ""
            if not isinstance(group, str) or not is_group(group) or not is_event(text):
                raise ValueError(
                    f"{str(group)[:80]!r}: {str(event)[:80]!r}: a group has letters, digits and _, "
                    'an event printable ASCII without . * # " \\'
                )
            found[f"{group}.{text}"] = None
    return tuple(found)


def as_groups(topics: Iterable[str]) -> dict[str, list[str]]:
    """Return the groups that name these topics."""
    groups: dict[str, list[str]] = {}
    for topic in topics:
        group, _, event = topic.partition(".")
        groups.setdefault(group, []).append(event)
    return groups


class Waiting(NamedTuple):
    """An item that has not been handled yet.

    A client that resumes at the position `before` gets the item again. `at` numbers the items of all queues in their order.
    """

    item: Item
    before: str | None
    size: int
    at: int


class Queue:
    """The topics of one subscription, and its items that wait. `wake` is called when an item was added."""

    def __init__(self, topics: tuple[str, ...], limit_bytes: int, *, since: str | None = None) -> None:
        self.topics = topics
        self.since = since
        self.wake: Callable[[], None] = lambda: None
        self.waiting: deque[Waiting] = deque()
        self.bytes = 0
        self.busy = False
        """Whether the first item is being handled."""
        self.ended = False
        self.told: set[str] = set()
        """Topics for which the subscription has got a `Subscribed`."""
        self.told_denied: tuple[DeniedTopic, ...] = ()
        """The newest list of denied topics that the subscription has got."""
        self._limit_bytes = limit_bytes

    def put(self, item: Item, before: str | None, characters: int, at: int) -> None:
        """Add an item. If the queue is full, because the handler is too slow, one gap replaces all items that wait."""
        if self.ended:
            return
        size = characters + ITEM_BYTES
        if self.bytes + size > self._limit_bytes and len(self.waiting) > self.busy:
            self._forget(before)
        self.waiting.append(Waiting(item, before, size, at))
        self.bytes += size
        self.wake()

    def _forget(self, to: str | None) -> None:
        """Replace the items that wait by a gap up to the position `to`. The newest `Denied` stays. It alone needs no gap."""
        kept = [self.waiting.popleft()] if self.busy else []
        lost = list(self.waiting)
        first = lost[0]
        topics = dict.fromkeys(
            topic
            for waiting in lost
            if not isinstance(waiting.item, Denied)
            for topic in ((waiting.item.topic,) if isinstance(waiting.item, Event) else waiting.item.topics)
        )
        gap = [Waiting(Gap(tuple(topics), first.before, to, "slow"), first.before, ITEM_BYTES, first.at)] if topics else []
        denied = [waiting for waiting in lost if isinstance(waiting.item, Denied)][-1:]
        self.waiting = deque([*kept, *gap, *denied])
        self.bytes = sum(waiting.size for waiting in self.waiting)

    def take(self) -> Item | None:
        """Return the next item. None if no item waits, or one is being handled. The item stays in the queue until `done`."""
        if self.busy or not self.waiting:
            return None
        self.busy = True
        return self.waiting[0].item

    def done(self) -> None:
        """Remove the item that `take` returned, because it was handled."""
        if self.busy and self.waiting:
            self.bytes -= self.waiting.popleft().size
        self.busy = False

    def clear(self) -> None:
        """Remove all items."""
        self.waiting.clear()
        self.bytes = 0
