"""How fast one connection, and one user, may have history replayed.

A request with `since` costs a client a hundred bytes, and may be answered with all of history. So what is replayed counts: a
connection gets the whole of history once, and from then on `CONNECTION_SHARE` of what its user gets. Whoever is beyond that waits, is
fed on as slowly, and loses nothing but what falls out of history meanwhile, of which it is told as ever. What a slow
reader is fed of live events is not counted: it gets each of them once.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

from towerws.core.hub import Hub
from towerws.core.rate_limits import Throttle
from towerws.core.subscribers import Subscriber

HISTORIES_AT_ONCE: Final = 4
"""How many times the whole of history one user gets at once, on all of its connections: a few pages that were away for long."""

CONNECTION_SHARE: Final = 1 / 64


class ReplayBounds:
    """What all connections share: `bytes_per_s` for each user, and the size of history."""

    def __init__(self, bytes_per_s: float, history_bytes: int) -> None:
        self.accounts = Throttle(bytes_per_s, HISTORIES_AT_ONCE * history_bytes)
        self.connection_rate = bytes_per_s * CONNECTION_SHARE
        self.history_bytes = history_bytes
        self.delays = 0
        """How often a replay had to wait."""


class Replay:
    """The replays of one connection. `account` says whose they are."""

    __slots__ = ("_account", "_bounds", "_hub", "_own", "_reactor", "_subscriber", "_timer", "_until")

    def __init__(self, bounds: ReplayBounds, hub: Hub, subscriber: Subscriber, reactor: IReactorTime, account: str) -> None:
        self._bounds = bounds
        self._hub = hub
        self._subscriber = subscriber
        self._reactor = reactor
        self._account = account
        self._own = Throttle(bounds.connection_rate, bounds.history_bytes, names=1)
        self._until = 0
        self._timer: Any = None

    def begin(self) -> None:
        """The member resumes: what lies between its place and the log's newest delivery is replayed."""
        self._until = self._hub.flushed_seq
        self.feed()

    def feed(self) -> None:
        """Give the member its next piece, now or when it is due."""
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
            self._timer = self._reactor.callLater(delay_s, self._go_on)
            return
        sent = self._hub.feed(subscriber)
        if sent:
            self._own.count("", now, sent)
            self._bounds.accounts.count(self._account, now, sent)

    def close(self) -> None:
        """The connection is gone."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _go_on(self) -> None:
        self._timer = None
        self.feed()
