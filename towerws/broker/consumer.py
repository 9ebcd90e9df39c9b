"""One channel: consumes, hands each delivery to the sink, acknowledges.

`Feed` is what outlives channels and connections: the sink, the counters, and where a queue's offsets stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from pika.channel import Channel
from twisted.internet import interfaces
from twisted.logger import Logger

from towerws.broker.connection import BrokerConnection
from towerws.broker.content import Content
from towerws.broker.failures import ConnectionFailure, RetryPolicy, from_channel
from towerws.broker.topology import Mode
from towerws.core.markers import MARKER_TOPIC, Marker, parse_marker
from towerws.core.settings import BrokerSettings
from towerws.core.sources import Sink

BATCH_DELIVERIES: Final = 1024
"""The prefetch allows 1,000 in a read, if the operator does not say otherwise; beyond this a turn ends within the read."""
ACK_DELIVERIES: Final = 128
ACK_S: Final = 0.05
SCOUT_PREFETCH: Final = 100
SCOUT_ACK_DELIVERIES: Final = 50


@dataclass(slots=True)
class Feed:
    """What is fed, and how far: it outlives channels and connections. `log` names this process's offsets in queue mode."""

    sink: Sink
    log: str
    attached: Mode | None = None
    """What was consumed last; None before the first time."""
    interrupted: bool = False
    queue_offset: int = 0
    read: int | None = None
    """The offset of the newest message that was read from the stream, good or bad; None while there is none."""
    anchor: tuple[int, bytes] | None = None
    """The newest marker of our own that was read: its offset, and its body, which no other log holds."""
    hole: bool = False
    """Something before the next delivery was lost, and clients have not been told yet."""
    by_interval: bool = False
    """The refill began at an interval of the broker's clock, and nothing has shown yet that this reached far enough."""
    unprovable: str | None = None
    """Why no marker can be published; None when one can, or nothing is known."""
    unreadable: bool = False
    """The broker ended the connection (541) at `stuck_at`."""
    stuck_at: int | None = None
    evidence: int | None = None
    """The stream serves its end at that broker all the same: the offset of the marker that showed it."""
    skip: int = 0
    """How many offsets are passed over, because there is an entry that AMQP 0-9-1 can't read; 0: none."""
    deliveries: int = 0
    received_bytes: int = 0
    poison_headers: int = 0
    sink_errors: int = 0
    acks: int = 0


def unused_callback(*_: object) -> None:
    """What pika's `basic_consume` wants to call: deliveries never get that far, the link hands them to `on_delivery`."""


class ConsumerEvents(Protocol):
    """What a consumer tells its owner; nothing after `consumer_lost` or `close`."""

    def consumer_ok(self) -> None:
        """The broker accepted the consumer: deliveries may come next."""

    def consumer_saw(self, consumer: Consumer, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """A message of the stream that is not the expected one. The owner takes it (`Consumer.take`), skips it, or closes the consumer."""

    def consumer_marker(self, marker: Marker, routing_key: str, body: bytes, offset: int) -> None:
        """A marker was handed to the sink."""

    def consumer_lost(self, failure: ConnectionFailure) -> None:
        """The broker took the consumer or its channel away; the connection stands."""


class Consumer:
    """One consumer on a channel of its own.

    `topology` declares what there is to declare on the open channel, and gives the name of what to consume. `start` is the stream's
    `x-stream-offset` (ignored for a queue).
    """

    _log = Logger()

    def __init__(
        self,
        connection: BrokerConnection,
        mode: Mode,
        topology: Callable[[Any], str],
        start: object,
        settings: BrokerSettings,
        feed: Feed,
        reactor: interfaces.IReactorTime,
        events: ConsumerEvents,
    ) -> None:
        self.expected: int | None = None
        """The offset that the next message has, if nothing is out of step. None: the owner looks at each."""
        self._connection = connection
        self._mode = mode
        self._topology = topology
        self._start = start
        self._feed = feed
        self._reactor = reactor
        self._events = events
        self._closed = False
        self._tag = 0
        self._unacked = 0
        self._batch_size = 0
        self._writing = False  # to clients, what the turn before came to
        # What goes straight to a queue has its name as routing key.
        self._marker_keys = frozenset({MARKER_TOPIC, settings.stream})
        self._passive = settings.passive
        # A prefetch below the batch would otherwise wait for the timer with nothing on the way.
        self._ack_at = max(1, min(ACK_DELIVERIES, settings.prefetch // 2))
        self._ack_timer: interfaces.IDelayedCall | None = None
        self._channel = connection.open_channel(self._opened, self._on_stream if mode is Mode.STREAM else self._on_queue)
        self._channel.add_on_close_callback(self._channel_closed)
        self._channel.add_on_cancel_callback(self._cancelled)

    def markers_to(self, queue: str) -> None:
        """Markers that go straight to our queue have its name as routing key."""
        self._marker_keys = frozenset({MARKER_TOPIC, queue})

    def take(self, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Hand on a message that `consumer_saw` told of, and expect the one behind it."""
        self.expected = offset + 1
        self._deliver(tag, routing_key, body, offset, message_id)

    def skip(self, tag: int) -> None:
        """Acknowledge a message that `consumer_saw` told of, and no more."""
        self._tag = tag
        self._unacked += 1

    def end_read(self) -> None:
        """One read from the socket was handled: end the turn, acknowledge what is due."""
        if self._batch_size:
            self._end_batch()
        if self._writing:
            self._connection.pause()
        if self._unacked >= self._ack_at:
            self._ack()
        elif self._unacked and self._ack_timer is None:
            self._ack_timer = self._reactor.callLater(ACK_S, self._ack_late)

    def close(self) -> None:
        """Acknowledge, and end the channel if it still stands. No delivery reaches the sink any more."""
        if self._closed:
            return
        if self._batch_size:
            self._end_batch()
        if self._unacked:
            self._ack()
        self._closed = True
        if self.expected is not None:
            self._feed.read = self.expected - 1
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._channel.is_open and not self._connection.dead:
            # Never basic_cancel alone: pika rejects what still comes, and a stream answers a reject by ending the connection.
            self._channel.close()

    # pika calls these

    def _opened(self, channel: Channel) -> None:
        if self._closed:
            return
        source = self._topology(channel)
        if self._mode is Mode.STREAM:
            arguments = {"x-stream-offset": self._start}
            channel.basic_consume(source, unused_callback, arguments=arguments, callback=self._consume_ok)
        else:
            channel.basic_consume(source, unused_callback, exclusive=True, callback=self._consume_ok)

    def _consume_ok(self, _: object) -> None:
        if not self._closed:
            self._events.consumer_ok()

    def _channel_closed(self, _channel: object, reason: Exception) -> None:
        failure = from_channel(reason)
        if failure.code == 404 and not self._passive:
            failure = replace(failure, retry=RetryPolicy.FAST, hint="")  # declared, and gone a moment later: declare it again
        self._lose(failure)

    def _cancelled(self, _: object) -> None:
        self._lose(ConnectionFailure(f"the broker cancelled the consumer: its {self._mode.value} was deleted or moved", RetryPolicy.FAST))

    # The link calls these, once per message: no logging, no timers, nothing that raises

    def _on_stream(self, tag: int, routing_key: str, content: Content, body: bytes) -> None:
        offset = content.offset
        if offset is not None and offset == self.expected:
            self.expected = offset + 1
            self._deliver(tag, routing_key, body, offset, content.message_id)
        elif self._closed:
            pass
        elif offset is not None:
            self._events.consumer_saw(self, tag, routing_key, body, offset, content.message_id)
        else:
            self.skip(tag)
            self._feed.poison_headers += 1

    def _on_queue(self, tag: int, routing_key: str, content: Content, body: bytes) -> None:
        feed = self._feed
        feed.poison_headers += content.damaged
        feed.queue_offset = offset = feed.queue_offset + 1
        self._deliver(tag, routing_key, body, offset, content.message_id)

    def _deliver(self, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        if self._closed:
            return
        self._tag = tag
        self._unacked += 1
        feed = self._feed
        feed.deliveries += 1
        feed.received_bytes += len(body)
        try:
            if routing_key in self._marker_keys and (marker := parse_marker(body)) is not None:
                feed.sink.marker(marker, body, offset, message_id)
                self._events.consumer_marker(marker, routing_key, body, offset)
            else:
                feed.sink.deliver(routing_key, body, offset, message_id)
        except Exception:  # noqa: BLE001 - ours to mend, but it must not end the connection
            self._sink_failed()
        self._batch_size += 1
        if self._batch_size >= BATCH_DELIVERIES:
            self._end_batch()

    # Our own

    def _lose(self, failure: ConnectionFailure) -> None:
        if not self._closed:
            self.close()
            self._events.consumer_lost(failure)

    def _end_batch(self) -> None:
        self._batch_size = 0
        self._writing = True
        try:
            self._feed.sink.end_batch(self._written)
        except Exception:  # noqa: BLE001 - as in _deliver
            self._writing = False
            self._sink_failed()

    def _written(self, size: int) -> None:
        self._writing = False
        self._connection.resume(size)

    def _sink_failed(self) -> None:
        self._feed.sink_errors += 1
        if self._feed.sink_errors == 1:
            self._log.failure("a delivery could not be handed on; further failures are only counted")

    def _ack(self) -> None:
        self._unacked = 0
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._channel.is_open and not self._connection.dead:
            self._feed.acks += 1
            self._channel.basic_ack(self._tag, multiple=True)

    def _ack_late(self) -> None:
        self._ack_timer = None
        self._ack()


class Scout:
    """Looks at `stream` from `start` on.

    `ready` is called when the broker accepted the consumer, `saw(offset, routing_key, body)` with each message until `close`,
    `lost` when the broker took the channel away.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        stream: str,
        start: object,
        *,
        ready: Callable[[], None],
        saw: Callable[[int, str, bytes], None],
        lost: Callable[[ConnectionFailure], None],
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._start = start
        self._ready = ready
        self._saw = saw
        self._lost = lost
        self._unacked = 0
        self._closed = False
        self._channel = connection.open_channel(self._opened, self._delivered)
        self._channel.add_on_close_callback(self._channel_closed)
        self._channel.add_on_cancel_callback(
            lambda _: self._end(ConnectionFailure("the broker cancelled the scout: its stream was deleted or moved"))
        )

    def close(self) -> None:
        """Look no more. A second call does nothing."""
        if not self._closed:
            self._closed = True
            if self._channel.is_open and not self._connection.dead:
                self._channel.close()

    def _opened(self, channel: Channel) -> None:
        if self._closed:
            return
        channel.basic_qos(prefetch_count=SCOUT_PREFETCH, callback=lambda _: None)
        arguments = {"x-stream-offset": self._start}
        channel.basic_consume(self._stream, unused_callback, arguments=arguments, callback=self._consume_ok)

    def _consume_ok(self, _: object) -> None:
        if not self._closed:
            self._ready()

    def _delivered(self, tag: int, routing_key: str, content: Content, body: bytes) -> None:
        if self._closed:
            return
        self._unacked += 1
        if self._unacked >= SCOUT_ACK_DELIVERIES and self._channel.is_open and not self._connection.dead:
            self._unacked = 0
            self._channel.basic_ack(tag, multiple=True)
        if content.offset is not None:
            self._saw(content.offset, routing_key, body)

    def _channel_closed(self, _channel: object, reason: Exception) -> None:
        self._end(from_channel(reason))

    def _end(self, failure: ConnectionFailure) -> None:
        if not self._closed:
            self.close()
            self._lost(failure)
