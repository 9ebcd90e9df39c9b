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
from towerws.broker.line import Announcement, Line
from towerws.broker.loss import Cure, Loss
from towerws.core.errors import BrokerError, PublishersBlocked, PublishRefused
from towerws.core.settings import BrokerSettings, BrokerUrl

TELL_S: Final = 5.0
"""A connection, with TLS, and a confirm take some 20 ms; the rest is for a machine that is busy, or another host."""
ROUNDS: Final = 2
WAITING: Final = 1000
"""How many may wait for their confirm: at 8 KiB each that is 8 MiB."""

Endpoint = Callable[[BrokerUrl], interfaces.IStreamClientEndpoint]


class Announcer:
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
        self._waiting: dict[Announcement, None] = {}  # in their order
        self._line: Line | None = None
        self._hosts: list[BrokerUrl] = []  # still to be tried
        self._stopped = False

    @property
    def blocked(self) -> bool:
        """Whether the broker said that it takes no messages, and has not said otherwise since."""
        return self._line is not None and self._line.blocked

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
        announcement = Announcement(exchange, routing_key, body, message_id)
        announcement.deadline = self._reactor.callLater(TELL_S, self._late, announcement)
        self._waiting[announcement] = None
        if self._line is None:
            first, urls = self._prefer(), self._settings.urls
            self._hosts = sorted(urls, key=lambda url: url != first) * ROUNDS
            self._connect()
        elif self._line.ready:
            self._line.publish(announcement)
        return announcement.told

    def stop(self) -> defer.Deferred[None]:
        """Whoever waits is told so; the connection is closed in order, or by force. Fires within `CLOSE_S`."""
        self._stopped = True
        self._give_up(BrokerError("the daemon is stopping"))
        line, self._line = self._line, None
        return defer.succeed(None) if line is None else line.close()

    # the line calls these

    def line_ready(self, line: Line) -> None:
        """Say what there is to say."""
        if line is self._line:
            for announcement in list(self._waiting):
                line.publish(announcement)

    def line_answered(self, announcement: Announcement, error: BrokerError | None) -> None:
        """The broker has confirmed it, or not taken it."""
        self._settle(announcement, error)

    def line_idle(self, line: Line) -> None:
        """Nothing was said for a while."""
        if line is self._line and not self._waiting:
            self._line = None
            line.close()

    def line_lost(self, line: Line, loss: Loss) -> None:
        """Try the next host while somebody waits."""
        if line is not self._line:
            return
        self._line = None
        if line.worked:
            self._hosts = list(self._settings.urls)
        if loss.cure is Cure.OPERATOR:  # it would say the same again; another host may not
            self._hosts = [url for url in self._hosts if url != line.url]
        if self._waiting and self._hosts:
            self._connect()
        else:
            reason = f"{line.url}: {loss}"
            self._give_up(BrokerError(reason) if loss.code not in {403, 404} else PublishRefused(reason, loss.code))

    # our own

    def _connect(self) -> None:
        share_s = TELL_S / min(len(self._settings.urls), 3)
        line = self._line = Line(self, self._hosts.pop(0), self._settings, self._reactor, connect_s=share_s, purpose=self._purpose)
        try:
            line.connect(self._endpoint(line.url))
        except (OSError, ValueError) as error:
            self.line_lost(line, Loss(f"connecting: {error}", Cure.OPERATOR))

    def _late(self, announcement: Announcement) -> None:
        """The deadline is over. A line that has not answered for so long is of no use to the others either."""
        line = self._line
        if line is not None and line.blocked:
            self._settle(announcement, PublishersBlocked("the broker is in a memory or disk alarm: it takes no messages"))
            return
        published = line is not None and line.ready
        doing, hint = ("publishing", " (is it in a memory or disk alarm?)") if published else ("connecting", "")
        self._settle(announcement, BrokerError(f"{doing}: no answer from the broker within {TELL_S:g} s{hint}"))
        if line is None:
            return
        wanted = line.ready or bool(self._waiting)
        if wanted and self._reactor.seconds() - line.heard_at < TELL_S / 2:
            return
        self._line = None
        line.abort()
        if self._waiting:
            self._hosts = list(self._settings.urls)
            self._connect()

    def _give_up(self, error: BrokerError) -> None:
        for announcement in list(self._waiting):
            self._settle(announcement, error)

    def _settle(self, announcement: Announcement, error: BrokerError | None) -> None:
        if announcement not in self._waiting:
            return
        del self._waiting[announcement]
        if announcement.deadline.active():
            announcement.deadline.cancel()
        if error is None:
            announcement.told.callback(None)
        else:
            announcement.told.errback(error)
