"""Consumes on a channel: `Consumer` passes each delivery to the sink and acknowledges it, `Scout` only looks at a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from pika.channel import Channel
from twisted.internet import interfaces
from twisted.logger import Logger

from towerws.broker.connection import BrokerConnection
from towerws.broker.content import Content
from towerws.broker.failures import ConnectionFailure, RetryPolicy, from_channel
from towerws.broker.reader import ReadProgress
from towerws.broker.topology import Mode
from towerws.core.deliveries import MARKER_TOPIC, Marker, parse_marker
from towerws.core.measurements import PublishedAt
from towerws.core.settings import BrokerSettings

BATCH_DELIVERIES: Final = 1024
"""A batch ends within the read after this many deliveries. The default prefetch allows 1,000 in a read."""
ACK_DELIVERIES: Final = 128
"""Deliveries are acknowledged at the end of a read if there are this many, or half of the prefetch if that is less."""
ACK_S: Final = 0.05
"""Fewer deliveries are acknowledged after this time."""
SCOUT_PREFETCH: Final = 100
SCOUT_ACK_DELIVERIES: Final = 50


def unused_callback(*_: object) -> None:
    """The callback that pika's `basic_consume` demands. `BrokerConnection` calls `on_delivery` instead, and never this."""


class ConsumerEvents(Protocol):
    """What a consumer tells its reader. After `consumer_failed` or `close` it tells nothing."""

    def consumer_ok(self) -> None:
        """The broker accepted the consumer. Deliveries may follow."""

    def consumer_unexpected(self, consumer: Consumer, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """A message of the stream does not have the expected offset. The reader delivers it, skips it, or closes the consumer."""

    def consumer_marker(self, marker: Marker, routing_key: str, body: bytes, offset: int) -> None:
        """The sink got a marker."""

    def consumer_failed(self, failure: ConnectionFailure) -> None:
        """The broker closed the channel or cancelled the consumer. The connection is still open."""


class Consumer:
    """Consumes a stream or a queue on a channel of its own.

    `declare` declares everything on the open channel, and returns the name of the stream or queue to consume. `start` is the stream's
    `x-stream-offset`. A queue ignores it.
    """

    _log = Logger()

    def __init__(
        self,
        connection: BrokerConnection,
        mode: Mode,
        declare: Callable[[Any], str],
        start: object,
        settings: BrokerSettings,
        progress: ReadProgress,
        reactor: interfaces.IReactorTime,
        events: ConsumerEvents,
    ) -> None:
        self.expected: int | None = None
        """The offset that the next message should have. None: the reader judges each message."""
        self._connection = connection
        self._mode = mode
        self._declare = declare
        self._start = start
        self._progress = progress
        self._reactor = reactor
        self._events = events
        self._closed = False
        self._tag = 0
        self._unacked = 0
        self._batch_size = 0
        self._published: PublishedAt | None = None  # of the batch's first message
        self._batches = 0  # so many batches have ended
        self._writing = False  # the last of them is still being written to clients
        self._written_bytes = 0  # were written since the connection was last resumed
        # A message that was published straight to a stream or queue has its name as routing key.
        self._marker_keys = frozenset({MARKER_TOPIC, settings.stream})
        self._passive = settings.passive
        # With a prefetch below ACK_DELIVERIES the broker would send nothing more until the timer fires.
        self._ack_at = max(1, min(ACK_DELIVERIES, settings.prefetch // 2))
        self._ack_timer: interfaces.IDelayedCall | None = None
        self._channel = connection.open_channel(
            self._opened,
            self._on_stream if mode is Mode.STREAM else self._on_queue,
            max_body_bytes=progress.sink.max_payload_bytes,
        )
        self._channel.add_on_close_callback(self._channel_closed)
        self._channel.add_on_cancel_callback(self._cancelled)

    def set_marker_key(self, queue: str) -> None:
        """The broker named the queue. Markers that go straight to it have its name as routing key."""
        self._marker_keys = frozenset({MARKER_TOPIC, queue})

    def deliver(self, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Deliver a message that was reported with `consumer_unexpected`, and expect the next offset after it."""
        self.expected = offset + 1
        self._deliver(tag, routing_key, body, offset, message_id)

    def skip(self, tag: int) -> None:
        """Acknowledge a message that was reported with `consumer_unexpected`, and don't deliver it."""
        self._tag = tag
        self._unacked += 1

    def end_read(self) -> None:
        """One read from the socket was handled: end the batch, and acknowledge."""
        if self._batch_size:
            self._end_batch()
        if self._writing:
            self._connection.pause()
        if self._unacked >= self._ack_at:
            self._ack()
        elif self._unacked and self._ack_timer is None:
            self._ack_timer = self._reactor.callLater(ACK_S, self._ack_late)

    def close(self) -> None:
        """End the batch, acknowledge, and close the channel, also if it is still opening. Keeps in `progress` how far the stream was read.

        No delivery reaches the sink after that. A second call does nothing.
        """
        if self._closed:
            return
        if self._batch_size:
            self._end_batch()
        if self._unacked:
            self._ack()
        self._closed = True
        if self.expected is not None:
            self._progress.read = self.expected - 1
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        # Never basic_cancel alone: pika rejects deliveries that still arrive, and a stream answers a reject by ending the connection.
        self._connection.close_channel(self._channel)

    # pika calls these

    def _opened(self, channel: Channel) -> None:
        if self._closed:
            return
        queue = self._declare(channel)
        if self._mode is Mode.STREAM:
            arguments = {"x-stream-offset": self._start}
            channel.basic_consume(queue, unused_callback, arguments=arguments, callback=self._consume_ok)
        else:
            channel.basic_consume(queue, unused_callback, exclusive=True, callback=self._consume_ok)

    def _consume_ok(self, _: object) -> None:
        if not self._closed:
            self._events.consumer_ok()

    def _channel_closed(self, _channel: object, reason: Exception) -> None:
        failure = from_channel(reason)
        if failure.code == 404 and not self._passive:
            failure = replace(failure, retry=RetryPolicy.FAST, hint="")  # it was deleted just after we declared it: declare it again
        self._fail(failure)

    def _cancelled(self, _: object) -> None:
        self._fail(ConnectionFailure(f"the broker cancelled the consumer: its {self._mode.value} was deleted or moved", RetryPolicy.FAST))

    # BrokerConnection calls these, once per message: no logging, no timers, nothing that raises

    def _on_stream(self, tag: int, routing_key: str, content: Content, body: bytes) -> None:
        offset = content.offset
        if offset is not None and offset == self.expected:
            self.expected = offset + 1
            if content.published is not None:
                self._published = content.published
            self._deliver(tag, routing_key, body, offset, content.message_id)
        elif self._closed:
            pass
        elif offset is not None:
            self._events.consumer_unexpected(self, tag, routing_key, body, offset, content.message_id)
        else:
            self.skip(tag)
            self._progress.poison_headers += 1

    def _on_queue(self, tag: int, routing_key: str, content: Content, body: bytes) -> None:
        progress = self._progress
        progress.poison_headers += content.damaged
        progress.queue_offset = offset = progress.queue_offset + 1
        if content.published is not None:
            self._published = content.published
        self._deliver(tag, routing_key, body, offset, content.message_id)

    def _deliver(self, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        if self._closed:
            return
        self._tag = tag
        self._unacked += 1
        progress = self._progress
        progress.deliveries += 1
        progress.received_bytes += len(body)
        try:
            if routing_key in self._marker_keys and (marker := parse_marker(body)) is not None:
                progress.sink.marker(marker, body, offset, message_id, through_exchange=routing_key == MARKER_TOPIC)
                self._events.consumer_marker(marker, routing_key, body, offset)
            else:
                progress.sink.deliver(routing_key, body, offset, message_id)
        except Exception:  # noqa: BLE001 - a bug of ours must not end the connection
            self._sink_failed()
        self._batch_size += 1
        if self._batch_size >= BATCH_DELIVERIES:
            self._end_batch()

    # our own

    def _fail(self, failure: ConnectionFailure) -> None:
        if not self._closed:
            self.close()
            self._events.consumer_failed(failure)

    def _end_batch(self) -> None:
        self._batch_size = 0
        self._batches += 1
        self._writing = True
        published, self._published = self._published, None
        try:
            self._progress.sink.end_batch(partial(self._written, self._batches), published)
        except Exception:  # noqa: BLE001 - as in _deliver
            self._written(self._batches, 0)
            self._sink_failed()

    def _written(self, batch: int, size: int) -> None:
        """A batch is written. It is an earlier one if the sink wrote its rest because of the last one."""
        self._written_bytes += size
        if batch == self._batches:
            self._writing = False
            written, self._written_bytes = self._written_bytes, 0
            self._connection.resume(written)

    def _sink_failed(self) -> None:
        self._progress.sink_errors += 1
        if self._progress.sink_errors == 1:
            self._log.failure(
                "a delivery was lost by an error in towerws: report it with this traceback; further errors are only counted as sink_errors"
            )

    def _ack(self) -> None:
        self._unacked = 0
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._channel.is_open and not self._connection.dead:
            self._progress.acks += 1
            self._channel.basic_ack(self._tag, multiple=True)

    def _ack_late(self) -> None:
        self._ack_timer = None
        self._ack()


class Scout:
    """Looks at the messages of `stream` from `start` on, on a channel of its own. It delivers nothing.

    RabbitMQ tells neither the first nor the last offset of a stream over AMQP 0-9-1. Only consuming shows them.

    `ready` is called when the broker accepted the consumer, and `saw(offset, routing_key, body)` with each message until `close`.
    `failed` is called if the broker closes the channel. Nothing is kept of a body in several frames above `max_body_bytes`.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        stream: str,
        start: object,
        *,
        max_body_bytes: int,
        ready: Callable[[], None],
        saw: Callable[[int, str, bytes], None],
        failed: Callable[[ConnectionFailure], None],
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._start = start
        self._ready = ready
        self._saw = saw
        self._failed = failed
        self._unacked = 0
        self._closed = False
        self._channel = connection.open_channel(self._opened, self._delivered, max_body_bytes=max_body_bytes)
        self._channel.add_on_close_callback(self._channel_closed)
        self._channel.add_on_cancel_callback(
            lambda _: self._end(ConnectionFailure("the broker cancelled the scout: its stream was deleted or moved"))
        )

    def close(self) -> None:
        """Close the channel, also if it is still opening. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._connection.close_channel(self._channel)

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
            self._failed(failure)
