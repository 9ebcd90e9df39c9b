"""One connection that publishes, from connecting to its end. The broker confirms each message, or refuses it.

A message comes back (Basic.Return) before its confirm if no queue is bound for it. In an alarm the broker sends Connection.Blocked
when something is published, and confirms the message after the alarm.

A broker that refuses a message closes the channel. It has routed the messages before that one, though their confirms may be missing. It
does not read the messages after it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pika
from pika import spec
from pika.channel import Channel
from twisted.internet import defer, interfaces
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from towerws.broker.connection import BrokerConnection
from towerws.broker.content import Content
from towerws.broker.failures import ConnectionFailure, from_channel, from_transport
from towerws.core.errors import BrokerError, NotRouted, PublishNacked
from towerws.core.settings import BrokerSettings, BrokerUrl
from towerws.outgoing import Deadline

IDLE_S: Final = 30.0
"""The connection is closed after this long without a message."""
CLOSE_S: Final = 1.0
"""After this time an orderly close becomes an abort."""
REFUSALS: Final = frozenset({403, 404, 406})
"""Codes with which RabbitMQ refuses a message: no permission, no such exchange, a body that is too large (AMQP 0-9-1 section 1.1)."""


@dataclass(slots=True, eq=False)
class OutgoingMessage:
    """One message with its destination. `confirmed` fires with None, or fails with `BrokerError`. `returned`: no queue was bound for it.

    `unanswered` is how often it was sent without an answer. Above 0, the broker may have published it. `created_ms` is in milliseconds
    since 1970, and stays the same when the message is sent again. The publisher drops the body when `confirmed` has fired.
    """

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    confirmed: defer.Deferred[None] = field(default_factory=defer.Deferred)
    deadline: Any = None
    returned: bool = False
    unanswered: int = 0
    created_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    size: int = field(init=False)
    """Bytes of the body."""

    def __post_init__(self) -> None:
        """Keep the size: the body may be dropped."""
        self.size = len(self.body)


class PublishingOwner(Protocol):
    """What made the connection: `ConfirmedPublisher`."""

    def publishing_ready(self, connection: PublishingConnection) -> None:
        """The connection takes messages."""

    def publishing_answered(self, message: OutgoingMessage, error: BrokerError | None) -> None:
        """The broker confirmed a message for every queue (`error` is None), or refused it."""

    def publishing_unblocked(self, connection: PublishingConnection) -> None:
        """An alarm has ended: the connection takes messages again."""

    def publishing_idle(self, connection: PublishingConnection) -> None:
        """Nothing was published for `IDLE_S`."""

    def publishing_refused(self, connection: PublishingConnection, failure: ConnectionFailure, suspects: Sequence[OutgoingMessage]) -> None:
        """The broker refused one of these messages, and ended the channel for it. The connection is closed. `publishing_failed` does
        not follow.
        """

    def publishing_failed(self, connection: PublishingConnection, failure: ConnectionFailure) -> None:
        """The connection ended. Called once, and not after `close` or `abort`."""


class PublishingConnection:
    """A connection to the broker `url` that publishes. It must be ready within `connect_s`. The broker shows `purpose` in its name."""

    def __init__(
        self, owner: PublishingOwner, url: BrokerUrl, settings: BrokerSettings, reactor: Any, *, connect_s: float, purpose: str
    ) -> None:
        self.url = url
        self.blocked = False
        """Whether the broker takes no messages, by its last notice on this connection."""
        self.ready = False
        self.worked = False
        """Whether the broker answered any message on this connection, with a confirm or a nack."""
        self.answered_at: float = reactor.seconds()
        """When the broker last answered, or when the connection was made. Monotonic seconds."""
        self._owner = owner
        self._purpose = purpose
        self._settings = settings
        self._reactor = reactor
        self._connecting: defer.Deferred[Any] | None = None
        self._connection: BrokerConnection | None = None
        self._channel: Channel | None = None
        self._sent: dict[int, OutgoingMessage] = {}  # by delivery tag
        self._tag = 0
        self._ended = False
        self._closing: defer.Deferred[None] | None = None
        self._deadline = Deadline(reactor)
        self._deadline.set(connect_s, lambda: self._fail(ConnectionFailure(f"connecting: no answer within {connect_s:g} s")))

    @property
    def unanswered(self) -> int:
        """How many messages on this connection have no answer, including those whose deadline is over."""
        return len(self._sent)

    def connect(self, endpoint: interfaces.IStreamClientEndpoint) -> None:
        """Connect to `endpoint`. Call it once."""
        factory = Factory.forProtocol(self._new_connection)
        factory.noisy = False
        self._connecting = connecting = defer.maybeDeferred(endpoint.connect, factory)
        connecting.addCallbacks(self._connected, self._not_connected)

    def publish(self, message: OutgoingMessage) -> None:
        """Send `message`. The owner gets the answer. Only after `publishing_ready`, and not while it is `blocked`."""
        self._tag += 1
        self._sent[self._tag] = message
        message.returned = False
        message.unanswered += 1
        self._restart_idle()
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=1,
            message_id=message.message_id,
            timestamp=message.created_ms // 1000,
            headers={"timestamp_in_ms": message.created_ms},
        )
        assert self._channel is not None
        self._channel.basic_publish(message.exchange, message.routing_key, message.body, properties, mandatory=True)

    def close(self) -> defer.Deferred[None]:
        """Close in order, and abort after `CLOSE_S`. Fires with None when the transport is closed or aborted, and never fails."""
        if self._connection is None or self._connection.dead:
            self.abort()
            return defer.succeed(None)
        self._ended = True
        closed: defer.Deferred[None] = defer.Deferred()
        self._closing = closed
        self._deadline.set(CLOSE_S, self.abort)
        self._connection.close()
        return closed

    def abort(self) -> None:
        """End now. The owner is told nothing after that."""
        self._ended = True
        self._deadline.clear()
        if self._connection is not None:
            self._connection.abort()
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        self._fire_closed()

    # BrokerConnectionEvents

    def connection_up(self) -> None:
        """TCP is connected, and TLS if the URL asks for it."""

    def connection_open(self, server_properties: Mapping[str, Any]) -> None:
        """AMQP is open: open a channel with confirms."""
        if self._connection is not None:
            self._connection.watch_alarms(self._alarm)
            self._channel = self._connection.open_channel(self._opened, self._returned, max_body_bytes=0)
            self._channel.add_on_close_callback(self._channel_closed)

    def connection_failed(self, failure: ConnectionFailure) -> None:
        """The connection ended."""
        self._fail(failure)

    def connection_closed(self) -> None:
        """The transport is closed."""
        self._deadline.clear()
        self._connection = self._channel = None  # both refer to this object: a cycle
        self._fire_closed()

    # pika calls these

    def _opened(self, channel: Channel) -> None:
        channel.confirm_delivery(self._answered, callback=self._confirming)

    def _confirming(self, _: object) -> None:
        if not self._ended:
            self.ready, self.answered_at = True, self._reactor.seconds()
            self._restart_idle()
            self._owner.publishing_ready(self)

    def _answered(self, frame: Any) -> None:
        """Handle Basic.Ack or Basic.Nack, of one message or of all up to it."""
        method = frame.method
        self.worked, self.answered_at = True, self._reactor.seconds()
        tags = [tag for tag in self._sent if tag <= method.delivery_tag] if method.multiple else [method.delivery_tag]
        for tag in tags:
            if (message := self._sent.pop(tag, None)) is None:
                continue
            message.unanswered -= 1
            error: BrokerError | None = None
            if isinstance(method, spec.Basic.Nack):
                error = PublishNacked("the broker did not put it into every queue: the queue of a daemon is full, or its node is down")
            elif message.returned:
                error = NotRouted(f"no daemon listens to exchange {message.exchange}")
            self._owner.publishing_answered(message, error)

    def _channel_closed(self, _channel: object, reason: Exception) -> None:
        failure = from_channel(reason)
        if self._ended or failure.code not in REFUSALS or not self._sent:
            self._fail(failure)
            return
        suspects = list(self._sent.values())
        self.abort()
        self._owner.publishing_refused(self, failure, suspects)

    def _returned(self, _tag: int, routing_key: str, content: Content, _body: bytes) -> None:
        """Handle Basic.Return: no queue was bound. The confirm follows. A channel without consumers gets no other content.

        Messages come back in the order of publishing. Two of them may have the same id, and two of these the same topic.
        """
        for message in self._sent.values():
            if not message.returned and message.message_id == content.message_id and message.routing_key == routing_key:
                message.returned = True
                return

    # our own

    def _alarm(self, blocked: bool) -> None:
        self.blocked = blocked
        self.answered_at = self._reactor.seconds()
        if not blocked and self.ready:
            self._owner.publishing_unblocked(self)

    def _new_connection(self) -> BrokerConnection:
        connection = self._connection = BrokerConnection(self.url, self._settings, self._reactor, self, f" {self._purpose}")
        if self._ended:
            connection.abort()
        return connection

    def _connected(self, _: object) -> None:
        self._connecting = None

    def _not_connected(self, failure: Failure) -> None:
        self._connecting = None
        self._fail(from_transport(failure, "connecting", tls=self.url.tls))

    def _fail(self, failure: ConnectionFailure) -> None:
        if not self._ended:
            self.abort()
            self._owner.publishing_failed(self, failure)

    def _restart_idle(self) -> None:
        """Tell the owner when nothing was published for `IDLE_S`, counted from now."""

        def idle() -> None:
            self._restart_idle()  # the owner keeps the connection if messages wait, and is told again later
            self._owner.publishing_idle(self)

        self._deadline.set(IDLE_S, idle)

    def _fire_closed(self) -> None:
        closed, self._closing = self._closing, None
        if closed is not None:
            closed.callback(None)
