"""One session with one broker: connects, chooses a reader, and ends. A new attempt is a new session.

event                     | what the session does                          | what it tells its owner
connect                   | TCP and TLS, within attempt_s                  | -
connection up             | AMQP handshake, within the same attempt_s      | session_state HANDSHAKE
AMQP open                 | chooses the mode, makes the reader, and has    | session_opened; session_failed if the broker
                          | `control` listen on the same connection        | can't serve the mode
reader waits for a proof  | no deadline any more: the reader has its own   | session_state PROVING, REFILLING
reader is live            | -                                              | session_live
reader has a new channel  | attempt_s for the set-up                       | session_restarted
reader or connection ends | -                                              | session_failed; the owner calls `abort`
transport closed          | -                                              | session_closed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet import defer, interfaces
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from towerws.broker.binding_watch import BindingWatch
from towerws.broker.connection import BrokerConnection
from towerws.broker.control import ControlListener
from towerws.broker.failures import ConnectionFailure, RetryPolicy, from_transport
from towerws.broker.markers import MarkerPublisher
from towerws.broker.queue_reader import QueueReader
from towerws.broker.reader import ReadProgress
from towerws.broker.stream_reader import StreamReader
from towerws.broker.topology import Mode, choose_mode
from towerws.core.errors import BrokerError
from towerws.core.settings import BrokerSettings, BrokerUrl
from towerws.core.sources import SourceState
from towerws.outgoing import Deadline


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What a source gives to each of its sessions. `reactor` gives time. `control` is None without a control exchange."""

    settings: BrokerSettings
    reactor: Any
    progress: ReadProgress
    markers: MarkerPublisher
    watch: BindingWatch
    control: ControlListener | None


class SessionOwner(Protocol):
    """The source. A session may still report after the source has replaced it. The source ignores such reports."""

    def session_state(self, session: BrokerSession, state: SourceState, reason: str | None = None) -> None:
        """The session got one step further. `reason` says in a line what it waits for."""

    def session_opened(self, session: BrokerSession) -> None:
        """AMQP is open."""

    def session_live(self, session: BrokerSession) -> None:
        """Deliveries arrive as they are published."""

    def session_restarted(self, session: BrokerSession, failure: ConnectionFailure) -> None:
        """The broker closed the channel. The session sets up a new one on the same connection."""

    def session_failed(self, session: BrokerSession, failure: ConnectionFailure) -> None:
        """The session can't go on. The owner calls `abort`, and tries again with a new session."""

    def session_closed(self, session: BrokerSession) -> None:
        """The transport is closed."""


class BrokerSession:
    """One attempt at the broker `url`, from connecting to its end. `connect` begins it, `close` or `abort` ends it."""

    def __init__(self, owner: SessionOwner, url: BrokerUrl, parts: SessionParts) -> None:
        self.url = url
        self.connection: BrokerConnection | None = None
        self.live_since: float | None = None
        """Since when deliveries arrive as they are published, in monotonic seconds. None: they never did."""
        self.mode = self.version = ""
        """"stream" or "queue", and the broker's version. Both are empty before AMQP is open."""
        self._owner = owner
        self._parts = parts
        self._state = SourceState.CONNECTING
        self._ended = False
        self._reader: StreamReader | QueueReader | None = None
        self._connecting: defer.Deferred[Any] | None = None
        self._deadline = Deadline(parts.reactor)

    def connect(self, endpoint: interfaces.IStreamClientEndpoint) -> None:
        """Connect to `endpoint`. Call it once."""
        factory = Factory.forProtocol(self._new_connection)
        factory.noisy = False
        self._connecting = connecting = defer.maybeDeferred(endpoint.connect, factory)
        connecting.addCallbacks(self._connected, self._not_connected)

    def start_deadline(self) -> None:
        """Fail unless the next steps are done within `attempt_s`."""
        self._deadline.set(self._parts.settings.attempt_s, self._late)

    def close(self) -> None:
        """Acknowledge what was read, and close the connection in order. `session_closed` follows.

        The close has no deadline: the caller has one, and calls `abort`.
        """
        self._ended = True
        self._deadline.clear()
        if self._parts.control is not None:
            self._parts.control.end()
        if self._reader is not None:
            self._reader.close()
        if self.connection is not None:
            self.connection.close()

    def abort(self) -> None:
        """End the connection and everything on it, now. A second call does nothing."""
        self._ended = True
        self._deadline.clear()
        if self.connection is not None:
            self.connection.abort()
        if self._reader is not None:
            self._reader.close()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._parts.control is not None:
            self._parts.control.end()

    # BrokerConnectionEvents

    def connection_up(self) -> None:
        """TCP is connected, and TLS if the URL asks for it."""
        self._report(SourceState.HANDSHAKE)

    def connection_open(self, server_properties: Mapping[str, Any]) -> None:
        """AMQP is open: choose how to consume by the broker's version, and begin."""
        connection, parts = self.connection, self._parts
        if connection is None or self._ended:
            return
        self._owner.session_opened(self)
        self._report(SourceState.TOPOLOGY)
        self.version = str(server_properties.get("version"))
        try:
            mode = choose_mode(parts.settings.consume, server_properties)
        except BrokerError as error:
            self._fail(ConnectionFailure(str(error), RetryPolicy.SLOW))
            return
        self.mode = mode.value
        reader: StreamReader | QueueReader
        if mode is Mode.STREAM:
            reader = StreamReader(connection, parts.settings, parts.progress, parts.markers, parts.watch, parts.reactor, self)
        else:
            reader = QueueReader(connection, parts.settings, parts.progress, parts.watch, parts.reactor, self)
        self._reader = reader
        connection.on_read = reader.end_read
        reader.begin()
        if parts.control is not None:
            parts.control.begin(connection)

    def connection_failed(self, failure: ConnectionFailure) -> None:
        """The connection ended."""
        if self._reader is not None:
            self._reader.connection_failed(failure)
        self._fail(failure)

    def connection_closed(self) -> None:
        """The transport is closed."""
        self._owner.session_closed(self)
        self.connection = self._reader = None  # both refer to this object: a cycle

    # ReaderEvents

    def reader_state(self, state: SourceState, reason: str) -> None:
        """The reader consumes, and still has to prove or to read something. It has deadlines of its own."""
        self._deadline.clear()
        self._report(state, reason)

    def reader_live(self) -> None:
        """Deliveries arrive as they are published."""
        self._deadline.clear()
        self.live_since = self._parts.reactor.seconds()
        self._owner.session_live(self)

    def reader_restarted(self, failure: ConnectionFailure) -> None:
        """The broker closed the reader's channel. The reader sets up the next one."""
        self._state = SourceState.TOPOLOGY
        self._owner.session_restarted(self, failure)
        self.start_deadline()

    def reader_failed(self, failure: ConnectionFailure) -> None:
        """The reader can't go on with this connection."""
        self._fail(failure)

    # our own

    def _new_connection(self) -> BrokerConnection:
        connection = BrokerConnection(self.url, self._parts.settings, self._parts.reactor, self)
        if self._ended:
            connection.abort()
        else:
            self.connection = connection
        return connection

    def _connected(self, _: object) -> None:
        self._connecting = None

    def _not_connected(self, failure: Failure) -> None:
        self._connecting = None
        self._fail(from_transport(failure, "connecting", tls=self.url.tls))

    def _late(self) -> None:
        self._fail(ConnectionFailure(f"{self._state.value}: no answer from the broker within {self._parts.settings.attempt_s:g} s"))

    def _report(self, state: SourceState, reason: str | None = None) -> None:
        self._state = state
        self._owner.session_state(self, state, reason)

    def _fail(self, failure: ConnectionFailure) -> None:
        self._owner.session_failed(self, failure)
