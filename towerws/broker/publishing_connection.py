"""One connection that publishes, from connecting to its end. Every message is confirmed, or was not told.

A message that no queue was bound for comes back (Basic.Return) before its confirm: nobody heard it. During an alarm the broker
says so (Connection.Blocked) when something is published, and confirms it when the alarm has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pika
from pika import exceptions as pika_exceptions
from pika import spec
from pika.channel import Channel
from twisted.internet import defer, interfaces
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from towerws.broker.connection import BrokerConnection
from towerws.broker.content import Content
from towerws.broker.deadline import Deadline
from towerws.broker.failures import ConnectionFailure, from_broker, from_transport
from towerws.core.errors import BrokerError, NotRouted
from towerws.core.settings import BrokerSettings, BrokerUrl

IDLE_S: Final = 30.0
CLOSE_S: Final = 1.0


@dataclass(slots=True, eq=False)
class OutgoingMessage:
    """One message, where it goes, and who waits for its confirm."""

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    confirmed: defer.Deferred[None] = field(default_factory=defer.Deferred)
    deadline: Any = None
    returned: bool = False


class PublishingOwner(Protocol):
    """Who made a line."""

    def publishing_ready(self, connection: PublishingConnection) -> None:
        """It takes messages now."""

    def publishing_answered(self, message: OutgoingMessage, error: BrokerError | None) -> None:
        """The broker confirmed one, and put it into every queue there is; or what kept it from that."""

    def publishing_idle(self, connection: PublishingConnection) -> None:
        """Nothing was published for `IDLE_S`."""

    def publishing_lost(self, connection: PublishingConnection, failure: ConnectionFailure) -> None:
        """It is over; told once, and not after `close` or `abort`."""


class PublishingConnection:
    """See the module. `connect_s` bounds everything until it is ready; `purpose` is shown by the broker."""

    def __init__(
        self, owner: PublishingOwner, url: BrokerUrl, settings: BrokerSettings, reactor: Any, *, connect_s: float, purpose: str = "control"
    ) -> None:
        self.url = url
        self.blocked = False
        """Whether the broker is in an alarm, as far as it said so on this connection."""
        self.ready = False
        self.worked = False
        """Whether it has confirmed anything."""
        self.heard_at: float = reactor.seconds()
        """When the broker answered last, or it was made."""
        self._owner = owner
        self._purpose = purpose
        self._settings = settings
        self._reactor = reactor
        self._connecting: defer.Deferred[Any] | None = None
        self._connection: BrokerConnection | None = None
        self._channel: Channel | None = None
        self._sent: dict[int, OutgoingMessage] = {}  # by delivery tag
        self._tag = 0
        self._over = False
        self._closed: defer.Deferred[None] | None = None
        self._deadline = Deadline(reactor)
        self._deadline.set(connect_s, lambda: self._lost(ConnectionFailure(f"connecting: no answer within {connect_s:g} s")))

    def connect(self, endpoint: interfaces.IStreamClientEndpoint) -> None:
        """Begin."""
        factory = Factory.forProtocol(self._new_connection)
        factory.noisy = False
        self._connecting = connecting = endpoint.connect(factory)
        connecting.addCallbacks(self._connected, self._not_connected)

    def publish(self, message: OutgoingMessage) -> None:
        """Send it; the owner is told of the answer."""
        self._tag += 1
        self._sent[self._tag] = message
        message.returned = False
        self._rest()
        properties = pika.BasicProperties(content_type="application/json", delivery_mode=1, message_id=message.message_id)
        assert self._channel is not None
        self._channel.basic_publish(message.exchange, message.routing_key, message.body, properties, mandatory=True)

    def close(self) -> defer.Deferred[None]:
        """End in order, after `CLOSE_S` by force. Fires when the transport is closed."""
        if self._connection is None or self._connection.dead:
            self.abort()
            return defer.succeed(None)
        self._over = True
        closed: defer.Deferred[None] = defer.Deferred()
        self._closed = closed
        self._deadline.set(CLOSE_S, self.abort)
        self._connection.close()
        return closed

    def abort(self) -> None:
        """End now; the owner is told nothing any more."""
        self._over = True
        self._deadline.clear()
        if self._connection is not None:
            self._connection.abort()
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        self._is_closed()

    # BrokerConnectionEvents

    def connection_up(self) -> None:
        """TCP, and TLS where it is asked for, stands."""

    def connection_open(self, server_properties: Mapping[str, Any]) -> None:
        """AMQP is open: switch confirms on."""
        if self._connection is not None:
            self._connection.watch_alarms(self._alarm)
            self._channel = self._connection.open_channel(self._opened, self._returned)
            self._channel.add_on_close_callback(self._channel_closed)

    def connection_read(self) -> None:
        """One read from the broker was handled. Its heartbeats are no answer."""

    def connection_lost(self, failure: ConnectionFailure) -> None:
        """The connection is lost."""
        self._lost(failure)

    def connection_gone(self) -> None:
        """The transport is closed."""
        self._deadline.clear()
        self._connection = self._channel = None  # both refer back here: a cycle
        self._is_closed()

    # pika calls these

    def _opened(self, channel: Channel) -> None:
        channel.confirm_delivery(self._answered, callback=self._confirming)

    def _confirming(self, _: object) -> None:
        if not self._over:
            self.ready, self.heard_at = True, self._reactor.seconds()
            self._rest()
            self._owner.publishing_ready(self)

    def _answered(self, frame: Any) -> None:
        """Basic.Ack or Basic.Nack, of one message or of all up to it."""
        method = frame.method
        self.worked, self.heard_at = True, self._reactor.seconds()
        tags = [tag for tag in self._sent if tag <= method.delivery_tag] if method.multiple else [method.delivery_tag]
        for tag in tags:
            if (message := self._sent.pop(tag, None)) is None:
                continue
            error: BrokerError | None = None
            if isinstance(method, spec.Basic.Nack):
                error = BrokerError("the broker did not put it into every queue: a daemon's is full, or its node is down")
            elif message.returned:
                error = NotRouted(f"no daemon listens to exchange {message.exchange}")
            self._owner.publishing_answered(message, error)

    def _channel_closed(self, _channel: object, reason: Exception) -> None:
        if isinstance(reason, pika_exceptions.ChannelClosedByBroker):
            self._lost(from_broker(reason.reply_code, reason.reply_text))
        else:
            self._lost(ConnectionFailure(f"channel closed: {type(reason).__name__}"))

    def _returned(self, _tag: int, _routing_key: str, content: Content, _body: bytes) -> None:
        """Content on a channel without consumers is a Basic.Return's: no queue was bound. Its confirm follows."""
        for message in self._sent.values():
            if message.message_id == content.message_id:
                message.returned = True

    # our own

    def _alarm(self, blocked: bool) -> None:
        self.blocked = blocked
        self.heard_at = self._reactor.seconds()

    def _new_connection(self) -> BrokerConnection:
        connection = self._connection = BrokerConnection(self.url, self._settings, self._reactor, self, f" {self._purpose}")
        if self._over:
            connection.abort()
        return connection

    def _connected(self, _: object) -> None:
        self._connecting = None

    def _not_connected(self, failure: Failure) -> None:
        self._connecting = None
        self._lost(from_transport(failure, "connecting", tls=self.url.tls))

    def _lost(self, failure: ConnectionFailure) -> None:
        if not self._over:
            self.abort()
            self._owner.publishing_lost(self, failure)

    def _rest(self) -> None:
        """Nothing more to say? Then this line ends after a while."""
        self._deadline.set(IDLE_S, lambda: self._owner.publishing_idle(self))

    def _is_closed(self) -> None:
        closed, self._closed = self._closed, None
        if closed is not None:
            closed.callback(None)
