"""Watches that what producers publish reaches what this daemon reads.

A binding that is gone makes no sound: the broker confirms to producers, and the consumer waits. So a marker goes through the
events exchange at intervals, and comes back if all is well. Daemons of one stream share their markers: each proves the same.

  state    | begins with                                  | what it does
  watching | a marker came back, or consuming began       | sends one every `INTERVAL_S`, unless another daemon's came
  unbound  | a marker was returned; or there is no such   | declares and binds, again until a marker of ours comes back that
           | exchange; or it was confirmed and did not    | tells of the hole (under `passive`: only reports)
           | come, and a later one straight to us did     |
  refused  | the user may not publish (403)               | binds again at intervals; says that the binding is not verified
  alarm    | the broker takes no messages                 | waits for its end

A marker that does not come in time proves nothing. It turns `/readyz` to 503, and starts the next attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.logger import Logger

from towerws.broker.deadline import Deadline
from towerws.broker.failures import ConnectionFailure
from towerws.broker.markers import MarkerPublisher
from towerws.core.deliveries import MARKER_TOPIC, Marker
from towerws.core.errors import BrokerError, NotRouted, PublishersBlocked, PublishRefused

INTERVAL_S: Final = 10.0
OWN_EVERY_S: Final = 60.0
"""How often at least a daemon sends a marker of its own, whatever the others do: it measures the lag."""
UNPROVEN_S: Final = 15.0
"""After this long without a marker the daemon is not ready. It is worked out when somebody asks: nothing delays it."""
GRACE_S: Final = 2.0
"""How long a confirmed marker may be on its way before a second one goes straight to the stream, to tell late from lost."""
RETRY_S: Final = 2.0
REBIND_S: Final = 60.0


class Watched(Protocol):
    """What is watched: the reader of a stream or a queue, while it consumes."""

    marker_key: str
    """The routing key by which a marker goes straight to it."""

    def rebind(self, done: Callable[[ConnectionFailure | None], None]) -> None:
        """Declare and bind once more; `done` is told why it could not be done, or None."""

    def marker_sent(self, text: str) -> None:
        """A marker is being published."""

    def tell_before_next(self) -> None:
        """Events were lost before the next one. Clients are to hear of it before that. Markers straight to us may still come before."""

    def hole_closed(self) -> None:
        """The binding is proven again after it was missing."""

    def deaf(self, reason: str) -> None:
        """No marker came for very long, and nothing else either: this connection may be of no more use."""


class BindingWatch:
    """One for a source, for all of its connections: a hole that was found is told when the next marker arrives, whenever that is.

    `deaf_s` is how long no marker may come back before the connection is given up.
    """

    _log = Logger()

    def __init__(self, markers: MarkerPublisher, reactor: Any, *, exchange: str, passive: bool, deaf_s: float) -> None:
        self._markers = markers
        self._reactor = reactor
        self._exchange = exchange
        self._passive = passive
        self._deaf_s = deaf_s
        self._watched: Watched | None = None
        self._timer = Deadline(reactor)
        self._text = ""  # the marker that is on its way
        self._direct = ""  # the one that was sent straight to us after it
        self._sent_at = 0.0
        self._proved_at: float | None = None
        """When the newest marker came back, over whichever connection. None before the first connection."""
        self._began_at = 0.0
        self._own_at = 0.0
        self._rebound_at = -REBIND_S
        self._alarm = False
        self._last_offset: int | None = None
        self._unbound: str | None = None
        self._hole: int | None = None
        self._told = False
        """Whether the reader was asked to tell the hole."""
        self._last_before = ""
        """The marker behind which nothing from before the hole is on its way to us."""
        self._covering: set[str] = set()
        """Our markers that tell of the hole."""
        self._refused: str | None = None
        self._problem: str | None = None
        self.lag_s: float | None = None
        """How long the newest marker of our own was on its way, there and back."""
        self.unbound_count = 0
        self.proved = 0

    # what an operator reads

    @property
    def reason(self) -> str | None:
        """Why the daemon is not ready; None when nothing is known against it."""
        if self._watched is None:
            return None
        if self._unbound is not None:
            return f"events don't reach us: {self._unbound}"
        silent_s = self._reactor.seconds() - (self._proved_at or 0.0)
        if self._refused is None and not self._in_alarm and silent_s > UNPROVEN_S:
            return f"no marker came back for {silent_s:.0f} s" + (f": {self._problem}" if self._problem else "")
        return None

    @property
    def unproven(self) -> tuple[str, ...]:
        """What can't be proven just now."""
        if self._watched is None:
            return ()
        if self._in_alarm:
            return ("the binding of the exchange: the broker is in a memory or disk alarm and takes no markers",)
        if self._refused is not None:
            return (f"the binding of the exchange: markers are refused ({self._refused})",)
        return ()

    @property
    def _in_alarm(self) -> bool:
        """The broker takes no messages: it said so of the last marker, or says so on the connection that there is."""
        return self._alarm or self._markers.blocked

    # what the source calls

    def start(self, watched: Watched) -> None:
        """Consuming: watch."""
        self._watched = watched
        self._began_at = self._own_at = self._reactor.seconds()
        if self._proved_at is None:
            self._proved_at = self._began_at
        self._text = self._direct = ""
        self._problem = None
        self._send()

    def stop(self) -> None:
        """No longer consuming. What was found is kept."""
        self._watched = None
        self._timer.clear()

    def came(self, marker: Marker, routing_key: str, offset: int) -> None:
        """A marker was read, in the log's order."""
        now = self._reactor.seconds()
        if routing_key != MARKER_TOPIC:
            if marker.text == self._direct and self._text:
                reason = f"a marker through exchange {self._exchange} was confirmed and did not arrive, a later one did"
                self._found_unbound(reason, all_read=True)
            elif marker.text == self._last_before and self._unbound is not None:
                self._rebind(all_read=True)
            return
        self._last_offset = offset
        self._proved_at = now
        self.proved += 1
        self._problem = None
        if marker.text == self._text:
            self._text = self._direct = ""
            self._own_at = now
            self.lag_s = now - self._sent_at
            self._refused = None
        if self._unbound is not None and marker.text in self._covering:
            self._log.info("events of exchange {exchange} reach us again", exchange=self._exchange)
            self._forget_hole()
            if self._watched is not None:
                self._watched.hole_closed()
        elif self._unbound is not None and marker.hole is not None and (self._hole is None or marker.hole >= self._hole):
            self._forget_hole()  # another daemon has told of it, to all
        self._schedule(RETRY_S if self._unbound is not None else INTERVAL_S)

    # our own

    def _schedule(self, delay_s: float) -> None:
        if self._watched is not None:
            self._timer.set(delay_s, self._turn)

    def _turn(self) -> None:
        watched = self._watched
        if watched is None:
            return
        now = self._reactor.seconds()
        heard_at = max(self._began_at, self._proved_at or 0.0)
        if now - heard_at > self._deaf_s and self._refused is None and not self._in_alarm and self._unbound is None:
            self._schedule(INTERVAL_S)
            watched.deaf(self.reason or "no marker came back")
            return
        if self._unbound is not None and not self._passive:
            self._rebind()
        elif self._refused is not None and not self._passive and now - self._rebound_at >= REBIND_S:
            self._rebound_at = now
            watched.rebind(self._rebound_blindly)
            self._send()
        elif now - heard_at < INTERVAL_S - 0.001 and now - self._own_at < OWN_EVERY_S:
            self._schedule(INTERVAL_S - (now - heard_at))
        else:
            self._send()

    def _send(self) -> None:
        watched = self._watched
        if watched is None:
            return
        self._schedule(INTERVAL_S)
        self._direct = ""
        self._sent_at = self._reactor.seconds()
        hole = self._hole if self._unbound is not None else None
        text = ""

        def sent(name: str) -> None:
            nonlocal text
            text = self._text = name
            if self._unbound is not None:
                self._covering.add(name)
            watched.marker_sent(name)

        self._markers.send_through_exchange(lambda error: self._answered(text, error), hole=hole, sent=sent)

    def _answered(self, text: str, error: BrokerError | None) -> None:
        if self._watched is None:
            return
        self._alarm = isinstance(error, PublishersBlocked)
        if error is None:
            self._refused = None
            if text == self._text:  # confirmed, and not here yet
                self._timer.set(GRACE_S, lambda: self._ask_directly(text))
        elif isinstance(error, NotRouted):
            self._found_unbound(f"no queue is bound to exchange {self._exchange}")
        elif isinstance(error, PublishRefused) and error.code == 404:
            self._found_unbound(str(error))
        elif isinstance(error, PublishRefused):
            if self._refused is None:
                self._log.warn("markers are refused, so that the binding can't be verified: {reason}", reason=str(error))
            self._text, self._refused = "", str(error)
            self._schedule(REBIND_S)
        else:
            self._text, self._problem = "", str(error)
            self._schedule(RETRY_S)

    def _ask_directly(self, text: str) -> None:
        """The marker is late, or the binding is gone. One that needs no binding, published after the confirm, tells."""
        watched = self._watched
        if watched is None:
            return
        if text != self._text:
            self._turn()
            return
        self._schedule(INTERVAL_S)

        def sent(name: str) -> None:
            self._direct = name
            watched.marker_sent(name)

        self._markers.send_direct(watched.marker_key, self._answered_directly, sent)

    def _answered_directly(self, error: BrokerError | None) -> None:
        if error is not None:
            self._problem = str(error)
            self._schedule(RETRY_S)

    def _forget_hole(self) -> None:
        self._unbound = self._hole = None
        self._told, self._last_before = False, ""
        self._covering.clear()

    def _found_unbound(self, reason: str, *, all_read: bool = False) -> None:
        """`all_read`: nothing that producers published before is still on its way to us."""
        self._text = self._direct = ""
        if self._unbound is None:
            self.unbound_count += 1
            self._hole = self._last_offset
            self._log.warn(
                "events don't reach us: {reason}; " + ("passive is set: bind it on the broker" if self._passive else "binding again"),
                reason=reason,
            )
        self._unbound = reason
        if self._passive or self._reactor.seconds() - self._rebound_at < RETRY_S:
            self._schedule(RETRY_S)
        elif all_read:
            self._rebind(all_read=True)
        else:
            self._read_all_first()

    def _read_all_first(self) -> None:
        """A marker straight to us: what was published before the hole is read before it, and nothing but the new binding brings more.

        So the hole can be told before the first event behind it, however late the broker says that it is bound. If the marker
        doesn't come in time, the binding is made all the same.
        """
        watched = self._watched
        if watched is None:
            return
        self._schedule(RETRY_S)

        def sent(name: str) -> None:
            self._last_before = name
            watched.marker_sent(name)

        def answered(error: BrokerError | None) -> None:
            if error is not None and self._unbound is not None and self._watched is watched:
                self._rebind()

        self._markers.send_direct(watched.marker_key, answered, sent)

    def _rebind(self, *, all_read: bool = False) -> None:
        watched = self._watched
        if watched is not None:
            self._last_before = ""
            if all_read:
                self._tell_hole(watched)
            self._rebound_at = self._reactor.seconds()
            self._schedule(INTERVAL_S)
            watched.rebind(self._rebound)

    def _tell_hole(self, watched: Watched) -> None:
        if self._hole is not None and not self._told:
            self._told = True
            watched.tell_before_next()

    def _rebound(self, failure: ConnectionFailure | None) -> None:
        watched = self._watched
        if watched is None:
            return
        if failure is None:
            self._tell_hole(watched)
            self._send()
        else:
            if self._unbound is not None and str(failure) not in self._unbound:
                self._unbound = f"can't bind again: {failure}"
                self._log.warn("{reason}", reason=self._unbound)
            self._schedule(RETRY_S)

    def _rebound_blindly(self, failure: ConnectionFailure | None) -> None:
        if failure is not None:
            self._problem = str(failure)
