"""Publishes, to the control exchange or elsewhere, each message confirmed by the broker within `TELL_S`.

On a connection of its own, never on the one that consumes: a broker in a memory or disk alarm stops reading from a connection
that publishes, its acknowledgements of events included. It is made when there is something to say and closed when there was
nothing more for `IDLE_S`; so nothing has to be kept alive, and nothing comes back by itself.

  state      | begins with                  | deadline             | ends in
  none       | nothing to say               | -                    | connecting
  connecting | something to say             | a share of TELL_S    | ready; connecting (another host); none
  ready      | confirms are switched on     | IDLE_S, when idle    | none

A connection that is lost is made anew, at the next host, and what it had not confirmed is sent again: who hears the same
revocation twice does the same twice. After `ROUNDS` rounds over the hosts in vain, or `TELL_S`, whoever waits is told the
reason. A host whose refusal only an operator can cure is not tried twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet import defer, interfaces

from towerws.broker.endpoint import broker_endpoint
from towerws.broker.failures import ConnectionFailure, RetryPolicy
from towerws.broker.publishing_connection import OutgoingMessage, PublishingConnection
from towerws.core.errors import BrokerError, PublishersBlocked, PublishRefused
from towerws.core.settings import BrokerSettings, BrokerUrl

TELL_S: Final = 5.0
"""A connection, with TLS, and a confirm take some 20 ms; the rest is for a machine that is busy, or another host."""
ROUNDS: Final = 2
WAITING: Final = 1000
"""How many may wait for their confirm: at 8 KiB each that is 8 MiB."""

Endpoint = Callable[[BrokerUrl], interfaces.IStreamClientEndpoint]


class ConfirmedPublisher:
    """`announce` says something to all daemons, `publish` anything anywhere.

    `prefer` gives the broker that is known to work just now, if any. `purpose` is what the broker shows of the connection.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        reactor: Any,
        *,
        prefer: Callable[[], BrokerUrl | None],
        endpoint: Endpoint | None = None,
        purpose: str = "control",
    ) -> None:
        self._purpose = purpose
        self._settings = settings
        self._reactor = reactor
        self._prefer = prefer
        self._endpoint = endpoint or (lambda url: broker_endpoint(reactor, url, settings))
        self._waiting: dict[OutgoingMessage, None] = {}  # in their order
        self._connection: PublishingConnection | None = None
        self._hosts: list[BrokerUrl] = []  # still to be tried
        self._stopped = False

    @property
    def blocked(self) -> bool:
        """Whether the broker said that it takes no messages, and has not said otherwise since."""
        return self._connection is not None and self._connection.blocked

    def announce(self, body: bytes, message_id: str) -> defer.Deferred[None]:
        """Fires once the broker has confirmed that every daemon's queue has it; fails with `BrokerError` within `TELL_S`."""
        return self.publish(self._settings.control, "", body, message_id)

    def publish(self, exchange: str, routing_key: str, body: bytes, message_id: str) -> defer.Deferred[None]:
        """Fires once the broker has confirmed the message, and some queue has it. Fails within `TELL_S`.

        Fails with `NotRouted` where no queue took it, `PublishRefused` where the user may not publish there or there is no such
        exchange, `PublishersBlocked` during an alarm, and `BrokerError` where no broker answered.
        """
        if self._stopped:
            return defer.fail(BrokerError("the daemon is stopping"))
        if len(self._waiting) >= WAITING:
            return defer.fail(BrokerError(f"{WAITING} messages wait for the broker already"))
        message = OutgoingMessage(exchange, routing_key, body, message_id)
        message.deadline = self._reactor.callLater(TELL_S, self._late, message)
        self._waiting[message] = None
        if self._connection is None:
            first, urls = self._prefer(), self._settings.urls
            self._hosts = sorted(urls, key=lambda url: url != first) * ROUNDS
            self._connect()
        elif self._connection.ready:
            self._connection.publish(message)
        return message.confirmed

    def stop(self) -> defer.Deferred[None]:
        """Whoever waits is told so; the connection is closed in order, or by force. Fires within `CLOSE_S`."""
        self._stopped = True
        self._give_up(BrokerError("the daemon is stopping"))
        connection, self._connection = self._connection, None
        return defer.succeed(None) if connection is None else connection.close()

    # the line calls these

    def publishing_ready(self, connection: PublishingConnection) -> None:
        """Say what there is to say."""
        if connection is self._connection:
            for message in list(self._waiting):
                connection.publish(message)

    def publishing_answered(self, message: OutgoingMessage, error: BrokerError | None) -> None:
        """The broker has confirmed it, or not taken it."""
        self._settle(message, error)

    def publishing_idle(self, connection: PublishingConnection) -> None:
        """Nothing was said for a while."""
        if connection is self._connection and not self._waiting:
            self._connection = None
            connection.close()

    def publishing_lost(self, connection: PublishingConnection, failure: ConnectionFailure) -> None:
        """Try the next host while somebody waits."""
        if connection is not self._connection:
            return
        self._connection = None
        if connection.worked:
            self._hosts = list(self._settings.urls)
        if failure.retry is RetryPolicy.SLOW:  # it would say the same again; another host may not
            self._hosts = [url for url in self._hosts if url != connection.url]
        if self._waiting and self._hosts:
            self._connect()
        else:
            reason = f"{connection.url}: {failure}"
            self._give_up(BrokerError(reason) if failure.code not in {403, 404} else PublishRefused(reason, failure.code))

    # our own

    def _connect(self) -> None:
        share_s = TELL_S / min(len(self._settings.urls), 3)
        connection = self._connection = PublishingConnection(
            self, self._hosts.pop(0), self._settings, self._reactor, connect_s=share_s, purpose=self._purpose
        )
        try:
            connection.connect(self._endpoint(connection.url))
        except (OSError, ValueError) as error:
            self.publishing_lost(connection, ConnectionFailure(f"connecting: {error}", RetryPolicy.SLOW))

    def _late(self, message: OutgoingMessage) -> None:
        """The deadline is over. A line that has not answered for so long is of no use to the others either."""
        connection = self._connection
        if connection is not None and connection.blocked:
            self._settle(message, PublishersBlocked("the broker is in a memory or disk alarm: it takes no messages"))
            return
        published = connection is not None and connection.ready
        doing, hint = ("publishing", " (is it in a memory or disk alarm?)") if published else ("connecting", "")
        self._settle(message, BrokerError(f"{doing}: no answer from the broker within {TELL_S:g} s{hint}"))
        if connection is None:
            return
        wanted = connection.ready or bool(self._waiting)
        if wanted and self._reactor.seconds() - connection.heard_at < TELL_S / 2:
            return
        self._connection = None
        connection.abort()
        if self._waiting:
            self._hosts = list(self._settings.urls)
            self._connect()

    def _give_up(self, error: BrokerError) -> None:
        for message in list(self._waiting):
            self._settle(message, error)

    def _settle(self, message: OutgoingMessage, error: BrokerError | None) -> None:
        if message not in self._waiting:
            return
        del self._waiting[message]
        if message.deadline.active():
            message.deadline.cancel()
        if error is None:
            message.confirmed.callback(None)
        else:
            message.confirmed.errback(error)
