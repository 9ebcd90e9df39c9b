"""Publishes this daemon's markers, and recognizes them when they come back.

A marker takes one of two ways. Through the default exchange it goes straight to the stream or queue, whose name is the routing key. That
way needs no binding, but permission to write to `amq.default`. Through the events exchange a marker proves the binding as well. If the
broker refuses the first way, the marker takes the second.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from twisted.internet import interfaces

from towerws.broker.confirmed_publisher import ConfirmedPublisher, broker_error
from towerws.core.deliveries import MARKER_TOPIC, Marker, parse_marker
from towerws.core.errors import BrokerError, PublishRefused
from towerws.core.sources import Sink
from towerws.outgoing import Deadline

REMEMBERED: Final = 1000
"""Number of our newest markers that are recognized. A marker takes milliseconds, and a few are published per minute."""

REFUSAL_S: Final = 300.0
"""For this long after a refusal, no marker is published straight to the stream."""

MARKER_RETRY_S: Final = 1.0
"""Delay before the next marker, after one that could not be published."""

ASK_EVERY_S: Final = 0.1
"""At most one marker in this time is published for clients that wait for a position."""

MarkerAnswered = Callable[[str, BrokerError | None], None]
"""Called with a marker's text and the broker's answer to it: None if a queue has it, else why not. Another marker may be sent meanwhile."""


def this_machine() -> str:
    """Return an id of this boot of this machine, as hexadecimal digits: a hash of the kernel's boot id. "" if the kernel gives none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return ""
    return blake2b(boot.strip(), digest_size=8, person=b"towerws").hexdigest()


def machine_uptime() -> float:
    """Return the seconds since this machine started (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class MarkerPublisher:
    """Publishes markers with `publisher`, to the events exchange `exchange` or straight to a stream or queue.

    `publisher` has a connection of its own: in an alarm the broker stops reading from a connection that publishes, including its
    acknowledgements.
    `uptime` returns the seconds since this machine started, which no setting of a clock changes.
    """

    def __init__(self, publisher: ConfirmedPublisher, exchange: str, reactor: Any, uptime: Callable[[], float]) -> None:
        self.machine = this_machine()
        self.uptime = uptime
        self._publisher = publisher
        self._exchange = exchange
        self._reactor = reactor
        self._daemon = secrets.token_hex(8)
        self._sent: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Number and time (monotonic seconds) of our newest markers, by their text."""
        self._direct_refused_at: float | None = None
        self._previous_s: int | None = None
        """The machine's uptime when our last confirmed marker was published. The next marker carries it."""
        self.count = 0
        """How many markers were sent. A marker's number shows whether it was sent after something else."""
        self.hole: int | None = None
        """The offset after which events were lost, for markers through the exchange. The watch sets it while the binding is missing."""

    @property
    def blocked(self) -> bool:
        """Whether the broker is in an alarm, and takes no messages."""
        return self._publisher.blocked

    @property
    def direct_refused(self) -> bool:
        """Whether the broker has ever refused a marker straight to the stream or queue. Then markers may go through the exchange."""
        return self._direct_refused_at is not None

    def number(self, marker: Marker) -> int | None:
        """Return the number of our marker, in the order of publishing. None: it is another daemon's, or not among our newest."""
        sent = self._sent.get(marker.text) if marker.daemon == self._daemon else None
        return None if sent is None else sent[0]

    def sent_at(self, marker: Marker) -> float:
        """Return when a marker that has a number was published, in monotonic seconds."""
        return self._sent[marker.text][1]

    def send_through_exchange(self, done: MarkerAnswered, sent: Callable[[str], None] = lambda _: None) -> None:
        """Publish a marker that proves the binding. `sent` is called with its text, before it is published."""
        self._send(self._exchange, MARKER_TOPIC, self.hole, done, sent)

    def send_direct(self, key: str, done: MarkerAnswered, sent: Callable[[str], None] = lambda _: None) -> None:
        """Publish a marker straight to the stream or queue `key`. If that is refused, another one goes through the exchange."""
        refused_at = self._direct_refused_at
        if refused_at is not None and self._reactor.seconds() - refused_at < REFUSAL_S:
            self.send_through_exchange(done, sent)
            return

        def answered(text: str, error: BrokerError | None) -> None:
            if isinstance(error, PublishRefused) and error.code == 403:
                self._direct_refused_at = self._reactor.seconds()
                self.send_through_exchange(done, sent)
            else:
                done(text, error)

        self._send("", key, None, answered, sent)

    def _send(self, exchange: str, routing_key: str, hole: int | None, done: MarkerAnswered, sent: Callable[[str], None]) -> None:
        marker = Marker(secrets.token_hex(16), self._daemon, hole, self.machine, self._previous_s if self.machine else None)
        self.count += 1
        self._sent[marker.text] = self.count, self._reactor.seconds()
        if len(self._sent) > REMEMBERED:
            self._sent.popitem(last=False)
        sent(marker.text)
        published = self._publisher.publish(exchange, routing_key, marker.body, marker.text)
        sent_s = int(self.uptime())

        def confirmed(_: None) -> None:
            self._previous_s = sent_s
            done(marker.text, None)

        published.addCallbacks(confirmed, lambda failure: done(marker.text, broker_error(failure)))


@dataclass(frozen=True, slots=True)
class Proof:
    """Our marker that was read: its offset, and when it was published (monotonic seconds)."""

    offset: int
    sent_at: float


def _ignored(_text: str, _error: BrokerError | None) -> None:
    """Does nothing: takes the answer to a marker for a reader that is closed."""


class ProofMarkers:
    """Publishes markers straight to `stream` until one that comes back shows how far the log reaches.

    Only markers count that were sent after the broker accepted the reader's consumer.
    """

    def __init__(
        self, markers: MarkerPublisher, stream: str, sink: Sink, reactor: interfaces.IReactorTime, answered: MarkerAnswered
    ) -> None:
        self.newest: Proof | None = None
        """The newest of these markers that was read."""
        self._markers = markers
        self._stream = stream
        self._sink = sink
        self._answered = answered
        self._sent_before_consumer = 0
        self._next = Deadline(reactor)

    def consumer_accepted(self) -> None:
        """The broker accepted a consumer, or is about to be asked: only markers that are sent after this call count."""
        self._sent_before_consumer = self._markers.count

    @property
    def none_sent(self) -> bool:
        """Whether no marker was sent since the last call of `consumer_accepted`."""
        return self._markers.count == self._sent_before_consumer

    def send(self) -> None:
        """Publish a marker now."""
        self._markers.send_direct(self._stream, self._answered, self._sink.marker_sent)

    def send_after(self, delay_s: float) -> None:
        """Publish a marker after `delay_s` seconds, unless `clear` is called before."""
        self._next.set(delay_s, self.send)

    def clear(self) -> None:
        """Cancel the marker that `send_after` has planned."""
        self._next.clear()

    def close(self) -> None:
        """Cancel the planned marker, and drop the reader's callback, which would be a reference cycle."""
        self._next.clear()
        self._answered = _ignored

    def is_proof(self, body: bytes) -> bool:
        """Whether `body` is our marker, sent after the broker accepted the current consumer."""
        marker = parse_marker(body)
        if marker is None:
            return False
        number = self._markers.number(marker)
        return number is not None and number > self._sent_before_consumer

    def arrived(self, marker: Marker, offset: int) -> bool:
        """A marker was read. Returns whether it is ours."""
        number = self._markers.number(marker)
        if number is None:
            return False
        if number > self._sent_before_consumer:
            self.newest = Proof(offset, self._markers.sent_at(marker))
        return True


class PositionMarkers:
    """Publishes markers to `stream` for clients that wait for a position. A marker that comes back shows how far the log reaches."""

    def __init__(self, markers: MarkerPublisher, stream: str, sink: Sink, reactor: interfaces.IReactorTime) -> None:
        self._markers = markers
        self._stream = stream
        self._sink = sink
        self._reactor = reactor
        self._closed = False
        self._asking = False
        self._asked_at = -ASK_EVERY_S
        self._next = Deadline(reactor)

    def send_early(self) -> None:
        """Publish a marker before the refill.

        A client that subscribes during the refill gets the events after the markers that were confirmed by then. So an early marker
        spares it a gap.
        """

        def answered(text: str, error: BrokerError | None) -> None:
            if error is None and not self._closed:
                self._sink.marker_confirmed(text)

        self._markers.send_direct(self._stream, answered)

    def ask(self) -> None:
        """A client waits: publish a marker, unless one is on its way. At most one is published in `ASK_EVERY_S`.

        If the marker is not read within `MARKER_RETRY_S` and clients still wait, another one is published.
        """
        if self._asking:
            return
        self._asking = True
        now = self._reactor.seconds()
        if now - self._asked_at < ASK_EVERY_S:
            self._next.set(ASK_EVERY_S, self._ask_again)
            return
        self._asked_at = now

        def answered(_text: str, error: BrokerError | None) -> None:
            if error is not None and not self._closed:
                self._next.set(MARKER_RETRY_S, self._ask_again)

        self._next.set(MARKER_RETRY_S, self._ask_again)
        self._markers.send_direct(self._stream, answered, self._sink.marker_sent)

    def marker_arrived(self) -> None:
        """One of our markers was read: the next question needs a new one."""
        self._asking = False

    def clear(self) -> None:
        """Publish no more until `ask` is called again."""
        self._asking = False
        self._next.clear()

    def close(self) -> None:
        """End it permanently."""
        self._closed = True
        self.clear()

    def _ask_again(self) -> None:
        self._asking = False
        if self._sink.waiting:
            self._sink.on_position_asked()  # the reader calls `ask` if it is still live
