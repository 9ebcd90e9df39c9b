"""One attempt at one host, from connecting to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from twisted.internet import defer, interfaces

from towerws.broker.connection import BrokerConnection
from towerws.broker.failures import ConnectionFailure
from towerws.broker.queue_reader import QueueReader
from towerws.broker.stream_reader import StreamReader
from towerws.core.settings import BrokerUrl
from towerws.core.sources import SourceState


class BrokerSessionOwner(Protocol):
    """Who made an attempt: told of all that happens to it, also when it is no longer the present one."""

    def advance(self, session: BrokerSession, state: SourceState, reason: str | None = None) -> None:
        """It got one step further; `reason` says in a line what it waits for."""

    def handshaken(self, session: BrokerSession, server_properties: Mapping[str, Any]) -> None:
        """AMQP is open."""

    def live(self, session: BrokerSession) -> None:
        """Deliveries come as they are published."""

    def restarted(self, session: BrokerSession, failure: ConnectionFailure) -> None:
        """The broker took the channel away; a new one is on its way on the same connection."""

    def lost(self, session: BrokerSession, failure: ConnectionFailure) -> None:
        """It is over."""

    def gone(self, session: BrokerSession) -> None:
        """Its transport is closed."""


class BrokerSession:
    """One attempt at one host, from connecting to its end. Passes on what happens as long as it is the present one."""

    def __init__(self, owner: BrokerSessionOwner, url: BrokerUrl) -> None:
        self.url = url
        self.connection: BrokerConnection | None = None
        self.reader: StreamReader | QueueReader | None = None
        self.connecting: defer.Deferred[Any] | None = None
        self.deadline: interfaces.IDelayedCall | None = None
        self.live_since: float | None = None
        self.consumed = False
        self.mode = self.version = ""
        self._owner = owner

    def set_deadline(self, call: interfaces.IDelayedCall | None) -> None:
        """Replace the deadline; None: there is none."""
        if self.deadline is not None and self.deadline.active():
            self.deadline.cancel()
        self.deadline = call

    def end(self) -> None:
        """Let go of everything, now."""
        self.set_deadline(None)
        if self.connection is not None:
            self.connection.abort()
        if self.reader is not None:
            self.reader.close()
        if self.connecting is not None:
            self.connecting.cancel()

    # BrokerConnectionEvents

    def connection_up(self) -> None:
        """TCP, and TLS where it is asked for, stands."""
        self._owner.advance(self, SourceState.HANDSHAKE)

    def connection_open(self, server_properties: Mapping[str, Any]) -> None:
        """AMQP is open."""
        self._owner.handshaken(self, server_properties)

    def connection_read(self) -> None:
        """One read from the broker was handled."""
        if self.reader is not None:
            self.reader.end_read()

    def connection_lost(self, failure: ConnectionFailure) -> None:
        """The connection is lost."""
        if self.reader is not None:
            self.reader.connection_lost(failure)
        self._owner.lost(self, failure)

    def connection_gone(self) -> None:
        """The transport is closed."""
        self._owner.gone(self)
        self.connection = self.reader = None  # both refer back here: a cycle

    # ReaderEvents

    def reader_state(self, state: SourceState, reason: str) -> None:
        """It consumes, and something is still to be proven or to be read."""
        self.set_deadline(None)
        self._owner.advance(self, state, reason)

    def reader_live(self) -> None:
        """Deliveries come as they are published."""
        self.set_deadline(None)
        self._owner.live(self)

    def reader_restarted(self, failure: ConnectionFailure) -> None:
        """The channel was lost; the next is on its way."""
        self._owner.restarted(self, failure)

    def reader_failed(self, failure: ConnectionFailure) -> None:
        """It can't go on on this connection."""
        self._owner.lost(self, failure)
