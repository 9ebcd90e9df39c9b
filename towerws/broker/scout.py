"""A second consumer on a stream that only looks, on a channel of its own.

RabbitMQ offers neither the first nor the last offset of a stream over AMQP 0-9-1; what a consumer gets is all there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pika import exceptions as pika_exceptions
from pika.channel import Channel

from towerws.broker.connection import BrokerConnection
from towerws.broker.consumer import unused_callback
from towerws.broker.content import Content
from towerws.broker.failures import ConnectionFailure, from_broker

PREFETCH: Final = 100
ACK_EVERY: Final = 50


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
        channel.basic_qos(prefetch_count=PREFETCH, callback=lambda _: None)
        arguments = {"x-stream-offset": self._start}
        channel.basic_consume(self._stream, unused_callback, arguments=arguments, callback=self._consume_ok)

    def _consume_ok(self, _: object) -> None:
        if not self._closed:
            self._ready()

    def _delivered(self, tag: int, routing_key: str, content: Content, body: bytes) -> None:
        if self._closed:
            return
        self._unacked += 1
        if self._unacked >= ACK_EVERY and self._channel.is_open and not self._connection.dead:
            self._unacked = 0
            self._channel.basic_ack(tag, multiple=True)
        if content.offset is not None:
            self._saw(content.offset, routing_key, body)

    def _channel_closed(self, _channel: object, reason: Exception) -> None:
        if isinstance(reason, pika_exceptions.ChannelClosedByBroker):
            self._end(from_broker(reason.reply_code, reason.reply_text))
        else:
            self._end(ConnectionFailure(f"channel closed: {type(reason).__name__}"))

    def _end(self, failure: ConnectionFailure) -> None:
        if not self._closed:
            self.close()
            self._lost(failure)
