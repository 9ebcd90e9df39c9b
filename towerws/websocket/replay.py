"""Bounds the rate at which history is replayed to one connection and to one user.

A request with `since` costs a client a hundred bytes, and its answer may be all of history. So replayed bytes are counted. A connection
gets the whole of history once at full speed. After that it gets `CONNECTION_SHARE` of its user's rate. A client over its rate waits
and is fed more slowly. It misses only what falls out of history meanwhile, and it gets a notice of that gap. Live events that a slow
client reads late from history are not counted: the client gets each of them once.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

from towerws.core.hub import Hub
from towerws.core.limits import Throttle
from towerws.core.subscribers import Subscriber

HISTORIES_AT_ONCE: Final = 4
"""Full histories that one user gets at full speed, over all its connections: enough for a few pages that were away for long."""

CONNECTION_SHARE: Final = 1 / 64
"""One connection's part of its user's rate."""


class ReplayBounds:
    """The bounds that all connections share. `bytes_per_s` is the rate of one user; `history_bytes` is the size of history."""

    def __init__(self, bytes_per_s: float, history_bytes: int) -> None:
        self.accounts = Throttle(bytes_per_s, HISTORIES_AT_ONCE * history_bytes)
        self.connection_rate = bytes_per_s * CONNECTION_SHARE
        self.history_bytes = history_bytes
        self.delays = 0
        """Pieces of history that had to wait."""

    def set_rate(self, bytes_per_s: float) -> None:
        """Change the rate of one user. A connection that had a replay keeps its share of the old rate."""
        self.accounts.set_rate(bytes_per_s)
        self.connection_rate = bytes_per_s * CONNECTION_SHARE


class Replay:
    """Feeds history to one connection. `account` is the key of its user's rate."""

    __slots__ = ("_account", "_bounds", "_hub", "_own", "_reactor", "_subscriber", "_timer", "_until")

    def __init__(self, bounds: ReplayBounds, hub: Hub, subscriber: Subscriber, reactor: IReactorTime, account: str) -> None:
        self._bounds = bounds
        self._hub = hub
        self._subscriber = subscriber
        self._reactor = reactor
        self._account = account
        self._own = Throttle(bounds.connection_rate, bounds.history_bytes, names=1)
        self._until = 0
        """The `seq` up to which deliveries count as replayed. Later ones are live events that the client reads late."""
        self._timer: Any = None

    def begin(self) -> None:
        """Replay what lies between the subscriber's cursor and the newest delivery. Called each time it resumes."""
        self._until = self._hub.flushed.seq
        self.feed()

    def feed(self) -> None:
        """Send the subscriber its next piece, now or when its rate allows."""
        if self._timer is not None:
            return
        subscriber = self._subscriber
        if not subscriber.behind or subscriber.cursor.seq >= self._until:
            self._hub.feed(subscriber)
            return
        now = self._reactor.seconds()
        delay_s = max(self._own.delay("", now), self._bounds.accounts.delay(self._account, now))
        if delay_s:
            self._bounds.delays += 1
            self._timer = self._reactor.callLater(delay_s, self._resume)
            return
        sent = self._hub.feed(subscriber)
        if sent:
            self._own.count("", now, sent)
            self._bounds.accounts.count(self._account, now, sent)

    def close(self) -> None:
        """Stop, because the connection is closed. A second call does nothing."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _resume(self) -> None:
        self._timer = None
        self.feed()
