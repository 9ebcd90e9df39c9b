"""Watches whether the events that producers publish reach this daemon.

A missing binding causes no error: the broker confirms to producers, and the consumer waits. So a daemon publishes a marker through the
events exchange at intervals. If the binding exists, the marker comes back. Daemons that read the same stream share their markers: each
marker proves the binding for all of them.

Events that are published while the binding is missing never reach the log. Their place in the log is called a *hole*.

  state    | begins with                                    | what the watch does
  watching | a marker came back, or consuming began         | sends a marker every `INTERVAL_S`, unless another daemon's came
  unbound  | a marker was returned; or the exchange does    | declares and binds, again and again, until our marker that tells of the
           | not exist; or a marker was confirmed and did   | hole comes back. With `passive` it leaves a stream to an
           | not come, and a later one straight to us did   | operator, and reports
           |                                                | If the broker refuses to bind, the watch still sends markers: an
           |                                                | operator may bind, and only a marker shows that
  refused  | the user may not publish (403)                 | binds again at intervals, and reports that the binding is not proven
  alarm    | the broker takes no messages                   | waits for the end of the alarm

A marker that is late proves nothing. It turns `/readyz` to 503, and another marker is sent.

Before the reader is live, only its own markers can show that the binding is missing, if they go through the exchange. The reader calls
`missing` then, and binds. While the binding is missing, each marker through the exchange tells of the hole. The watch remembers the hole
when the connection ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.logger import Logger

from towerws.broker.failures import UNANSWERED, ConnectionFailure
from towerws.broker.markers import MarkerPublisher
from towerws.core.deliveries import MARKER_TOPIC, Marker
from towerws.core.errors import BrokerError, NotRouted, PublishersBlocked, PublishRefused
from towerws.outgoing import Deadline

INTERVAL_S: Final = 10.0
OWN_EVERY_S: Final = 60.0
"""A daemon sends a marker of its own at least this often, even if others do. Its round trip is the lag."""
UNPROVEN_S: Final = 15.0
"""After this long without a marker the daemon is not ready. `reason` computes it when it is read, so no timer can delay it."""
GRACE_S: Final = 2.0
"""How long a confirmed marker may be on its way. Then a second one goes straight to the stream: it shows whether the first one is
late or lost."""
STALLED_S: Final = 5.0
"""If nothing at all was read for this long after a marker straight to the stream was confirmed, the reader consumes again. A time in
which the daemon itself paused does not count."""
RETRY_S: Final = 2.0
"""Delay before the next marker or binding, after one that failed."""
REBIND_S: Final = 60.0
"""How often the queue is bound again while markers are refused."""


class Watched(Protocol):
    """The reader of a stream or a queue, while it consumes."""

    marker_key: str
    """The routing key with which a marker goes straight to the stream or queue."""
    shares_log: bool
    """Whether other daemons read the same log. Then another daemon's marker tells of our hole, too."""

    @property
    def deliveries(self) -> int:
        """How many messages were read so far."""

    @property
    def reading_since(self) -> float | None:
        """Since when the connection reads without a pause, in the reactor's seconds. None: it pauses while a batch is being written."""

    def attach_again(self, reason: str) -> None:
        """Consume again, because of `reason`, on this connection if that loses nothing. Else give it up. That proves nothing."""

    def rebind(self, done: Callable[[ConnectionFailure | None], None]) -> None:
        """Declare and bind again. `done` gets None, or why the broker refused.

        While the broker owes the answer to an earlier call, nothing is sent, and `done` gets `UNANSWERED` at once.
        """

    def marker_sent(self, text: str) -> None:
        """A marker is being published."""

    def gap_before_next(self) -> None:
        """Tell the clients of a gap before the next event: events before it were lost. Markers straight to the queue may come first."""

    def binding_restored(self) -> None:
        """The binding is proven again, after it was missing."""

    def no_markers(self, reason: str) -> None:
        """No marker came for `no_marker_s`: give the connection up."""


class BindingWatch:
    """Watches the binding of `exchange`. A source has one watch for all of its connections, so a hole is reported after a reconnect, too.

    With `passive` a stream's missing binding is only reported. After `no_marker_s` without a marker the watch gives the connection up. It
    keeps the connection if the binding is missing, and the broker answers when it is asked to bind again.
    """

    _log = Logger()

    def __init__(self, markers: MarkerPublisher, reactor: Any, *, exchange: str, passive: bool, no_marker_s: float) -> None:
        self._markers = markers
        self._reactor = reactor
        self._exchange = exchange
        self._passive = passive
        self._no_marker_s = no_marker_s
        self._watched: Watched | None = None
        self._timer = Deadline(reactor)
        self._pending_text = ""  # text of our marker through the exchange that has not come back; empty: none
        self._direct_text = ""  # text of the marker that was sent straight to the stream, after the pending one was confirmed
        self._sent_at = 0.0
        self._proved_at: float | None = None
        """When the newest marker came back, on any connection. None before the first connection."""
        self._began_at = 0.0
        self._own_marker_at = 0.0
        self._rebound_at = -REBIND_S
        self._bind_unanswered = False
        """Whether the broker has not answered our last attempt to bind."""
        self._alarm = False
        self._last_offset: int | None = None
        self._unbound: str | None = None
        """Why events don't reach us. None: no sign of a missing binding."""
        self._hole: int | None = None
        """The offset after which events were lost. None: no hole is known."""
        self._gap_requested = False
        """Whether this reader was asked to tell the clients of a gap, since the binding was last found missing."""
        self._drain_text = ""
        """Text of a marker straight to the queue. When it is read, every event from before the hole was read. Empty: none is on its way."""
        self._sent_before_hole = 0
        """How many markers we had sent when the hole was found. Later markers through the exchange tell of it."""
        self._bind_refused = False
        """Whether the broker has refused to bind since the binding was found missing."""
        self._refused: str | None = None
        """Why the user may not publish markers."""
        self._problem: str | None = None
        """Why the last marker could not be published."""
        self.lag_s: float | None = None
        """Round trip of our newest marker through the broker, in seconds."""
        self.unbound_count = 0
        """How often the binding was found missing."""
        self._attached_again: tuple[Watched, int] | None = None
        """The reader that attached again, and how many markers had come back before."""
        self.stalls = 0
        """How often the reader consumed again because nothing came, on the same connection or on another one."""
        self.proved = 0
        """How many markers came back."""

    @property
    def _may_bind(self) -> bool:
        """Whether the daemon binds what it reads. With `passive` an operator binds a stream. Only the daemon can bind its own queue."""
        return not self._passive or (self._watched is not None and not self._watched.shares_log)

    # for /status and /readyz

    @property
    def reason(self) -> str | None:
        """Why the binding keeps the daemon from being ready. None: no such reason is known."""
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
        """What can't be proven at present, each in a line."""
        if self._watched is None:
            return ()
        if self._in_alarm:
            return ("the binding of the exchange: the broker is in a memory or disk alarm and takes no markers",)
        if self._refused is not None:
            return (f"the binding of the exchange: markers are refused ({self._refused})",)
        return ()

    @property
    def _in_alarm(self) -> bool:
        """Whether the broker takes no messages: it said so to the last marker, or by a notice on the current connection."""
        return self._alarm or self._markers.blocked

    # the reader calls these

    def start(self, watched: Watched) -> None:
        """The reader consumes: watch."""
        self._watched = watched
        self._began_at = self._own_marker_at = self._reactor.seconds()
        if self._proved_at is None:
            self._proved_at = self._began_at
        self._pending_text = self._direct_text = ""
        self._problem = None
        self._bind_unanswered = self._gap_requested = False
        self._send()

    def stop(self) -> None:
        """The reader has stopped consuming. A hole that was found is remembered."""
        self._watched = None
        self._timer.clear()

    def missing(self, reason: str) -> None:
        """The binding is missing. Each marker that is sent through the exchange after this call tells of the hole.

        A reader that is not live yet calls this before it binds, when one of its own markers shows it.
        """
        self._pending_text = self._direct_text = ""
        if self._unbound is None:
            self.unbound_count += 1
            # If no marker was read before, events may be missing anywhere in what history holds: the hole begins at 0.
            self._hole = self._markers.hole = self._last_offset or 0
            self._sent_before_hole = self._markers.count
            self._log.warn(
                "events don't reach us: {reason}; "
                + ("towerws binds it again" if self._may_bind else "bind it on the broker, since passive is set"),
                reason=reason,
            )
        if not self._bind_refused:  # the broker's own reason tells an operator more than another lost marker does
            self._unbound = reason
        self._gap_requested = False

    def marker_arrived(self, marker: Marker, routing_key: str, offset: int) -> None:
        """A marker was read, in the order of the log."""
        now = self._reactor.seconds()
        if routing_key != MARKER_TOPIC:
            if marker.text == self._direct_text and self._pending_text:
                reason = f"a marker through exchange {self._exchange} was confirmed and did not arrive, and a later one straight to us did"
                self._found_unbound(reason, all_read=True)
            elif marker.text == self._drain_text and self._unbound is not None:
                self._rebind(all_read=True)
            return
        self._last_offset = offset
        self._proved_at = now
        self.proved += 1
        self._problem = None
        if marker.text == self._pending_text:
            self._pending_text = self._direct_text = ""
            self._own_marker_at = now
            self.lag_s = now - self._sent_at
            self._refused = None
        number = self._markers.number(marker)
        if self._unbound is not None and marker.hole is not None and number is not None and number > self._sent_before_hole:
            self._log.info("events of exchange {exchange} reach us again", exchange=self._exchange)
            self._forget_hole()
            if self._watched is not None:
                self._watched.binding_restored()
        elif self._unbound is not None and self._another_daemon_told(marker):
            self._forget_hole()
        self._schedule(RETRY_S if self._unbound is not None else INTERVAL_S)

    # our own

    def _another_daemon_told(self, marker: Marker) -> bool:
        """Whether `marker`, from another daemon, told all daemons of our hole. A daemon with a queue of its own has holes of its own."""
        if self._watched is not None and not self._watched.shares_log:
            return False
        return marker.hole is not None and (self._hole is None or marker.hole >= self._hole)

    def _schedule(self, delay_s: float) -> None:
        if self._watched is not None:
            self._timer.set(delay_s, self._next)

    def _next(self) -> None:
        watched = self._watched
        if watched is None:
            return
        now = self._reactor.seconds()
        marker_at = max(self._began_at, self._proved_at or 0.0)
        unexplained = self._unbound is None or self._bind_unanswered
        if now - marker_at > self._no_marker_s and self._refused is None and not self._in_alarm and unexplained:
            self._schedule(INTERVAL_S)
            watched.no_markers(self.reason or "no marker came back")
            return
        if self._unbound is not None and self._may_bind:
            self._rebind()
        elif self._refused is not None and self._may_bind and now - self._rebound_at >= REBIND_S:
            self._rebound_at = now
            watched.rebind(self._rebound_unproven)
            self._send()
        elif now - marker_at < INTERVAL_S - 0.001 and now - self._own_marker_at < OWN_EVERY_S:
            self._schedule(INTERVAL_S - (now - marker_at))
        else:
            self._send()

    def _send(self) -> None:
        watched = self._watched
        if watched is None:
            return
        self._schedule(INTERVAL_S)
        self._direct_text = ""
        self._sent_at = self._reactor.seconds()

        def sent(text: str) -> None:
            self._pending_text = text
            watched.marker_sent(text)

        self._markers.send_through_exchange(self._answered, sent)

    def _answered(self, text: str, error: BrokerError | None) -> None:
        if self._watched is None:
            return
        self._alarm = isinstance(error, PublishersBlocked)
        if error is None:
            self._refused = None
            if text == self._pending_text:  # confirmed, and not read yet
                self._timer.set(GRACE_S, lambda: self._ask_directly(text))
        elif isinstance(error, NotRouted):
            self._found_unbound(f"no queue is bound to exchange {self._exchange}")
        elif isinstance(error, PublishRefused) and error.code == 404:
            self._found_unbound(str(error))
        elif isinstance(error, PublishRefused):
            if self._refused is None:
                self._log.warn(
                    "markers are refused, so the binding of exchange {exchange} can't be proven: {reason}; grant the user write on it",
                    exchange=self._exchange,
                    reason=str(error),
                )
            self._pending_text, self._refused = "", str(error)
            self._schedule(RETRY_S if self._bind_refused else REBIND_S)
        else:
            self._pending_text, self._problem = "", str(error)
            self._schedule(RETRY_S)

    def _ask_directly(self, text: str) -> None:
        """Find out whether the confirmed marker `text` is late or lost: publish another one that needs no binding.

        The second marker is behind the first one in the log. If it is read first, the first one is lost.
        """
        watched = self._watched
        if watched is None:
            return
        if text != self._pending_text:
            self._next()
            return
        self._schedule(INTERVAL_S)

        def sent(text: str) -> None:
            self._direct_text = text
            watched.marker_sent(text)

        self._markers.send_direct(watched.marker_key, self._answered_directly, sent)

    def _answered_directly(self, text: str, error: BrokerError | None) -> None:
        watched = self._watched
        if error is not None:
            self._problem = str(error)
            self._schedule(RETRY_S)
        elif watched is not None and text == self._direct_text:
            read = watched.deliveries
            self._timer.set(STALLED_S, lambda: self._check_stall(text, read))

    def _check_stall(self, text: str, read: int) -> None:
        """Let the reader consume again if nothing was read since the marker straight to the stream was confirmed.

        RabbitMQ may have forgotten our consumer. A new one gets the marker. `read` is how many messages were read before.
        """
        watched = self._watched
        if watched is None or text != self._direct_text or watched.deliveries != read:
            self._next()
            return
        now, since = self._reactor.seconds(), watched.reading_since
        if since is None or now - since < STALLED_S:  # the daemon itself paused its reading
            self._timer.set(STALLED_S if since is None else since + STALLED_S - now, lambda: self._check_stall(text, read))
            return
        self._schedule(INTERVAL_S)
        silent_s = self._reactor.seconds() - (self._proved_at or 0.0)
        if self._attached_again == (watched, self.proved) and silent_s > self._no_marker_s:
            watched.no_markers("no marker came after consuming again")
            return
        self._attached_again = watched, self.proved
        self.stalls += 1
        watched.attach_again(f"nothing was read for {STALLED_S:g} s after a marker was confirmed")

    def _forget_hole(self) -> None:
        self._unbound = self._hole = self._markers.hole = None
        self._gap_requested = self._bind_refused = False
        self._drain_text = ""

    def _found_unbound(self, reason: str, *, all_read: bool = False) -> None:
        """Report the missing binding, and bind. `all_read`: every event from before the hole was read."""
        self.missing(reason)
        if not self._may_bind or self._reactor.seconds() - self._rebound_at < RETRY_S:
            self._schedule(RETRY_S)
        elif all_read:
            self._rebind(all_read=True)
        else:
            self._drain_then_bind()

    def _drain_then_bind(self) -> None:
        """Publish a marker straight to the queue, and bind when it comes back.

        Events from before the hole are read before this marker, and only the new binding brings more events. So clients can be told of the
        gap before the first event after the hole, even if the bind-ok comes late. If the marker doesn't come in time, the queue is bound
        anyway.
        """
        watched = self._watched
        if watched is None:
            return
        self._schedule(RETRY_S)

        def sent(text: str) -> None:
            self._drain_text = text
            watched.marker_sent(text)

        def answered(_text: str, error: BrokerError | None) -> None:
            if error is not None and self._unbound is not None and self._watched is watched:
                self._rebind()

        self._markers.send_direct(watched.marker_key, answered, sent)

    def _rebind(self, *, all_read: bool = False) -> None:
        watched = self._watched
        if watched is not None:
            self._drain_text = ""
            if all_read:
                self._request_gap(watched)
            self._rebound_at = self._reactor.seconds()
            self._schedule(INTERVAL_S)
            watched.rebind(self._rebound)

    def _request_gap(self, watched: Watched) -> None:
        if self._hole is not None and not self._gap_requested:
            self._gap_requested = True
            watched.gap_before_next()

    def _rebound(self, failure: ConnectionFailure | None) -> None:
        watched = self._watched
        if watched is None:
            return
        self._bind_unanswered = failure is UNANSWERED
        self._bind_refused = failure is not None and not self._bind_unanswered and self._unbound is not None
        if failure is None:
            self._request_gap(watched)
            self._send()
        else:
            if self._unbound is not None and str(failure) not in self._unbound:
                self._unbound = f"the exchange can't be bound again: {failure}"
                self._log.warn("events don't reach us: {reason}", reason=self._unbound)
            if self._bind_refused:  # an operator may bind instead: only our marker shows it
                self._send()
            self._schedule(RETRY_S)

    def _rebound_unproven(self, failure: ConnectionFailure | None) -> None:
        if failure is not None:
            self._problem = str(failure)
