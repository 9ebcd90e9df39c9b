"""Publishes messages to the control exchange or elsewhere. The broker confirms each one within `CONFIRM_S`, or the caller gets the reason.

The publisher uses a connection of its own, never the one that consumes. A broker in a memory or disk alarm stops reading from a
connection that publishes, including its acknowledgements of events. The publisher connects when there is a message, and
closes the connection after `IDLE_S` without one.

  state      | begins with            | deadline           | ends in
  none       | no message             | -                  | connecting
  connecting | a message              | part of CONFIRM_S  | ready, connecting (another host), none
  ready      | confirms are enabled   | IDLE_S, when idle  | none

After a failure, the next host is tried, and every message that was not confirmed is sent again. A daemon that gets the same revocation
twice carries it out twice, which changes nothing. After `ROUNDS` rounds over the hosts, or `CONFIRM_S`, the callers get the reason. A host
whose refusal of the connection needs an operator is not tried twice.

If the broker refuses a message, its caller gets the reason, and the others are sent again. RabbitMQ's text names the exchange, the topic or
the size that it refuses, but not the message.

In an alarm messages wait until it ends, or for `CONFIRM_S`. They are not written meanwhile: the broker would publish them after the
alarm, though their callers may have been told that they failed.

`EventPublisher` publishes the events of `POST /publish` in this way. An event that is sent again has the same `message_id`, so daemons
deliver it once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet import defer
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from towerws.broker.failures import ConnectionFailure, RetryPolicy
from towerws.broker.publishing_connection import OutgoingMessage, PublishingConnection
from towerws.core.errors import BrokerError, NotRouted, PublishersBlocked, PublishNacked, PublishQueueFull, PublishRefused
from towerws.core.publication import MAX_LINES, Outcome, Publication, Published
from towerws.core.settings import BrokerSettings, BrokerUrl
from towerws.outgoing import MakeEndpoint, broker_endpoint

CONFIRM_S: Final = 5.0
"""Connecting with TLS and a confirm take about 20 ms. The rest is for a busy machine, or for another host."""
ROUNDS: Final = 2
"""How often each host is tried."""
MAX_WAITING: Final = 1000
"""How many messages may wait for their confirm, unless a publisher has its own bound."""
MAX_WAITING_BYTES: Final = 8 * 1024**2
"""How many bytes the bodies of these messages may have together."""

NO_ACCESS: Final = 530
"""RabbitMQ's code for a vhost that is missing, that the user has no access to, or that has too many connections."""

MAX_EVENTS: Final = 10 * MAX_LINES
"""How many events may wait for a confirm: ten full batches."""
MAX_EVENTS_BYTES: Final = 16 * 1024**2
"""How many bytes these events may have together: four full batches, or the largest four events by default."""


class ConfirmedPublisher:
    """Publishes to all daemons with `announce`, and to any exchange with `publish`.

    `prefer` returns the broker that is known to work, if any. The broker shows `purpose` in the connection's name. At most
    `max_waiting` messages and `max_waiting_bytes` of their bodies wait for a confirm.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        reactor: Any,
        *,
        prefer: Callable[[], BrokerUrl | None],
        endpoint: MakeEndpoint | None = None,
        purpose: str = "control",
        max_waiting: int = MAX_WAITING,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._purpose = purpose
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_bytes = 0
        self._settings = settings
        self._reactor = reactor
        self._prefer = prefer
        self._endpoint = endpoint or (lambda url: broker_endpoint(reactor, url, settings))
        self._waiting: dict[OutgoingMessage, None] = {}  # in the order of publishing
        self._unsent: dict[OutgoingMessage, None] = {}  # messages of `_waiting` that were not sent on the current connection
        self._connection: PublishingConnection | None = None
        self._hosts: list[BrokerUrl] = []  # to be tried next
        self._stopped = False

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no messages, by its last notice on this connection."""
        return self._connection is not None and self._connection.blocked

    def announce(self, body: bytes, message_id: str) -> defer.Deferred[None]:
        """Publish to all daemons. Fires with None when every daemon's queue has it. Fails with `BrokerError` within `CONFIRM_S`."""
        return self.publish(self._settings.control, "", body, message_id)

    def publish(self, exchange: str, routing_key: str, body: bytes, message_id: str) -> defer.Deferred[None]:
        """Publish a message. Fires with None when the broker has confirmed that the bound queues have it.

        Fails within `CONFIRM_S` with a `BrokerError`:

        - `NotRouted`: no queue is bound.
        - `PublishRefused`: the user may not publish there, the exchange does not exist, or the body is too large for the broker.
        - `PublishNacked`: a queue did not take it.
        - `PublishersBlocked`: the broker is in an alarm.
        - `PublishQueueFull`: too many messages wait already.
        - any other: no broker answered.
        """
        return self.send(OutgoingMessage(exchange, routing_key, body, message_id))

    def send(self, message: OutgoingMessage) -> defer.Deferred[None]:
        """Publish a message that the caller made, as `publish` does.

        If it fails, and
        `message.unanswered` is above 0, the broker may have published it.
        """
        if self._stopped:
            return defer.fail(BrokerError("the daemon is stopping"))
        if len(self._waiting) >= self._max_waiting or self._waiting_bytes + message.size > self._max_waiting_bytes:
            held = f"{len(self._waiting)} messages with {self._waiting_bytes} bytes"
            return defer.fail(PublishQueueFull(f"{held} wait for the broker already"))
        self._waiting_bytes += message.size
        message.deadline = self._reactor.callLater(CONFIRM_S, self._timed_out, message)
        self._waiting[message] = self._unsent[message] = None
        if self._connection is None:
            self._start_rounds(self._prefer())
        else:
            self._send_waiting(self._connection)
        return message.confirmed

    def stop(self) -> defer.Deferred[None]:
        """Fail the waiting messages, and close the connection. Fires with None within `CLOSE_S`, and never fails."""
        self._stopped = True
        self._give_up(BrokerError("the daemon is stopping"))
        connection, self._connection = self._connection, None
        return defer.succeed(None) if connection is None else connection.close()

    # PublishingOwner

    def publishing_ready(self, connection: PublishingConnection) -> None:
        """The connection takes messages: publish all that wait."""
        self._send_waiting(connection)

    def publishing_unblocked(self, connection: PublishingConnection) -> None:
        """The alarm has ended: publish the messages that waited for that."""
        self._send_waiting(connection)

    def publishing_answered(self, message: OutgoingMessage, error: BrokerError | None) -> None:
        """The broker confirmed `message`, or refused it."""
        self._finish(message, error)

    def publishing_idle(self, connection: PublishingConnection) -> None:
        """Nothing was published for `IDLE_S`."""
        if connection is self._connection and not self._waiting:
            self._connection = None
            connection.close()

    def publishing_refused(self, connection: PublishingConnection, failure: ConnectionFailure, suspects: Sequence[OutgoingMessage]) -> None:
        """The broker refused one of `suspects`, and closed the channel. Fail the messages that its text fits, and send the others again.

        A text may fit several messages: the broker would refuse them, too. If it fits none, all suspects fail.
        """
        if connection is not self._connection:
            return
        self._connection = None
        fitting = [message for message in suspects if _is_about(failure.text, message)] or list(suspects)
        unread = suspects[suspects.index(fitting[-1]) + 1 :]  # the broker reads nothing after the message that it refuses
        for message in [*unread, *(fitting if len(fitting) == 1 else ())]:
            message.unanswered -= 1
        error = PublishRefused(f"{connection.url}: {failure}", failure.code)
        for message in [*fitting, *(message for message in self._waiting if _is_about(failure.text, message))]:
            self._finish(message, error)
        if self._waiting and self._connection is None:  # a caller that got its answer may have sent another message, and so connected
            self._start_rounds(connection.url)

    def publishing_failed(self, connection: PublishingConnection, failure: ConnectionFailure) -> None:
        """The connection ended: try the next host if messages wait."""
        if connection is not self._connection:
            return
        self._connection = None
        if connection.worked:
            self._hosts = list(self._settings.urls)
        if failure.retry is RetryPolicy.SLOW:  # it would refuse again; another host may not
            self._hosts = [url for url in self._hosts if url != connection.url]
        if self._waiting and self._hosts:
            self._connect()
        elif failure.code in {403, 404}:
            self._give_up(PublishRefused(f"{connection.url}: {failure}", failure.code))
        else:
            self._give_up(BrokerError(f"{connection.url}: {failure}", failure.code))

    # our own

    def _start_rounds(self, first: BrokerUrl | None) -> None:
        """Try each host up to `ROUNDS` times, beginning with `first`."""
        self._hosts = sorted(self._settings.urls, key=lambda url: url != first) * ROUNDS
        self._connect()

    def _send_waiting(self, connection: PublishingConnection) -> None:
        while self._unsent and connection is self._connection and connection.ready and not connection.blocked:
            message = next(iter(self._unsent))
            del self._unsent[message]
            connection.publish(message)

    def _connect(self) -> None:
        assert self._connection is None, "the connection before this one would stay open"
        self._unsent = dict(self._waiting)
        connect_s = CONFIRM_S / min(len(self._settings.urls), 3)
        connection = self._connection = PublishingConnection(
            self, self._hosts.pop(0), self._settings, self._reactor, connect_s=connect_s, purpose=self._purpose
        )
        try:
            connection.connect(self._endpoint(connection.url))
        except (OSError, ValueError) as error:
            self.publishing_failed(connection, ConnectionFailure(f"connecting: {error}", RetryPolicy.SLOW))

    def _timed_out(self, message: OutgoingMessage) -> None:
        """The deadline of `message` is over: fail it. End a connection that did not answer recently, and connect again if messages wait.

        In an alarm, the connection is kept. A connection that is not ready is ended as soon as no message waits for it.
        """
        connection = self._connection
        if connection is not None and connection.blocked:
            self._finish(message, PublishersBlocked())
            return
        published = connection is not None and connection.ready
        doing, hint = ("publishing", " (is it in a memory or disk alarm?)") if published else ("connecting", "")
        self._finish(message, BrokerError(f"{doing}: no answer from the broker within {CONFIRM_S:g} s{hint}"))
        if connection is None:
            return
        wanted = connection.ready or bool(self._waiting)
        works = self._reactor.seconds() - connection.answered_at < CONFIRM_S / 2 and connection.unanswered <= 2 * self._max_waiting
        if wanted and works:
            return
        self._connection = None
        connection.abort()
        if self._waiting:
            self._hosts = list(self._settings.urls)
            self._connect()

    def _give_up(self, error: BrokerError) -> None:
        for message in list(self._waiting):
            self._finish(message, error)

    def _finish(self, message: OutgoingMessage, error: BrokerError | None) -> None:
        if message not in self._waiting:
            return
        del self._waiting[message]
        self._unsent.pop(message, None)
        self._waiting_bytes -= message.size
        message.body = b""  # the connection keeps the message until its answer comes, and needs no body for that
        if message.deadline.active():
            message.deadline.cancel()
        if error is None:
            message.confirmed.callback(None)
        else:
            message.confirmed.errback(error)


class EventPublisher:
    """Publishes events to the exchange of `settings`. `prefer` returns the broker that is known to work, if any."""

    def __init__(
        self,
        settings: BrokerSettings,
        reactor: Any,
        *,
        prefer: Callable[[], BrokerUrl | None],
        max_payload_bytes: int,
        endpoint: MakeEndpoint | None = None,
    ) -> None:
        self._exchange = settings.exchange
        self._publisher = ConfirmedPublisher(
            settings,
            reactor,
            prefer=prefer,
            endpoint=endpoint,
            purpose="publish",
            max_waiting=MAX_EVENTS,
            max_waiting_bytes=max(MAX_EVENTS_BYTES, max_payload_bytes),
        )

    def publish(self, event: Publication) -> Deferred[Published]:
        """Publish an event. Fires within `CONFIRM_S` with what became of it, and never fails."""
        message_id = event.message_id or secrets.token_hex(16)
        message = OutgoingMessage(self._exchange, event.topic.routing_key, event.payload, message_id)
        if self._publisher.blocked:
            return succeed(self._failed(message, PublishersBlocked()))
        confirmed = self._publisher.send(message)
        return confirmed.addCallbacks(
            lambda _: Published(Outcome.CONFIRMED, published=True, message_id=message_id),
            lambda failure: self._failed(message, broker_error(failure)),
        )

    def stop(self) -> Deferred[None]:
        """Answer the events that wait, and close the connection. Fires with None within `CLOSE_S`, and never fails."""
        return self._publisher.stop()

    def _failed(self, message: OutgoingMessage, error: BrokerError) -> Published:
        """Return the answer to the caller for `error`. A message that was sent without an answer is never reported as not published."""
        text = str(error)
        published: bool | None = False
        if isinstance(error, PublishNacked):
            outcome, published = Outcome.NACKED, None
        elif isinstance(error, NotRouted | PublishRefused) or error.code == NO_ACCESS:
            outcome = Outcome.REFUSED
            if isinstance(error, NotRouted):
                outcome = Outcome.UNROUTABLE
                text = f"no queue is bound to the exchange {self._exchange} for this topic, so the broker dropped the event"
            if message.unanswered:
                published = None
                text += "; it was sent before without an answer, and may have been published then"
        elif message.unanswered:
            outcome, published = Outcome.UNKNOWN, None
            text = f"unknown, the event may have been published: {text}; repeat it with the same message_id"
        elif isinstance(error, PublishersBlocked):
            outcome = Outcome.BLOCKED
        else:
            outcome = Outcome.FULL if isinstance(error, PublishQueueFull) else Outcome.UNAVAILABLE
        return Published(outcome, published, message.message_id, error=text)


def _is_about(text: str, message: OutgoingMessage) -> bool:
    """Whether RabbitMQ's text of a refusal is about this message's exchange, its topic or its size. The text may be cut off, with "...".

    The texts are those of rabbit_access_control.erl, rabbit_channel.erl and rabbit_misc.erl in RabbitMQ 3.10 and 4.0.
    """
    exchange = message.exchange or "amq.default"
    refusals = [
        f"404 NOT_FOUND - no exchange '{exchange}' in vhost",
        f"406 PRECONDITION_FAILED - message size {message.size} is larger",
    ]
    for permission in ("", "write "):  # RabbitMQ 4 names the permission
        refused = f"403 ACCESS_REFUSED - {permission}access to "
        refusals += [
            f"{refused}exchange '{exchange}' in vhost",
            f"{refused}topic '{message.routing_key}' in exchange '{exchange}' in vhost",
        ]
    return any(text.startswith(refusal) or (text.endswith("...") and refusal.startswith(text[:-3])) for refusal in refusals)


def broker_error(failure: Failure) -> BrokerError:
    """Return the error with which `publish` or `send` failed. Raises any other failure again."""
    failure.trap(BrokerError)
    error = failure.value
    assert isinstance(error, BrokerError)
    return error
