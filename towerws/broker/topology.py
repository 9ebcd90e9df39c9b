"""What towerws has on the broker: one topic exchange, and behind it a stream for all processes or a queue for this one; and
the control exchange with a queue for each process.

pika holds back each method until the one before it was answered, so a whole topology is written down at once; the first
refusal closes the channel, and nothing after it is sent.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from typing import Any

from pika.channel import Channel

from towerws.broker.connection import BrokerConnection
from towerws.broker.failures import ConnectionFailure, from_channel
from towerws.core.errors import BrokerError
from towerws.core.settings import BrokerSettings

STREAMS_SINCE = (3, 9)
"""The first RabbitMQ with streams. An older one ignores `x-queue-type` and makes a queue that the processes would share."""


_CONTROL_ARGUMENTS: Mapping[str, Any] = {
    "x-max-length": 10_000,
    "x-max-length-bytes": 1024**2,
    # A daemon that is stuck for long misses some. Who revokes is told so by a nack; an older revocation that made room for it
    # (drop-head) would be lost without a word.
    "x-overflow": "reject-publish",
}


class Mode(enum.Enum):
    """How deliveries are consumed."""

    STREAM = "stream"
    QUEUE = "queue"


def choose_mode(consume: str, server_properties: Mapping[str, Any]) -> Mode:
    """The mode for this broker: "auto" takes the stream where there are streams.

    Raises `BrokerError` when a stream is demanded of a broker that has none.
    """
    if consume == "queue":
        return Mode.QUEUE
    version = server_properties.get("version")
    match = re.match(r"(\d+)\.(\d+)", str(version))
    if match and (int(match[1]), int(match[2])) >= STREAMS_SINCE:
        return Mode.STREAM
    if consume == "stream":
        raise BrokerError(f'consume = "stream" needs RabbitMQ 3.9 or later, this broker is {version}: set consume = "auto" or "queue"')
    return Mode.QUEUE


def declare_stream(channel: Channel, settings: BrokerSettings, *, bind: bool, callback: Callable[[], None] | None = None) -> str:
    """Declare exchange and stream on an open pika channel, or with `passive` only look for them; the stream's name.

    `bind` binds the stream as well. A binding that is there already is not looked at otherwise: AMQP has no way to ask, and to bind
    again would hide that it was missing. `callback` is called when the broker agreed to all of it.
    """
    passive = settings.passive
    channel.exchange_declare(settings.exchange, "topic", passive=passive, durable=True, callback=_go_on)
    last = _go_on if callback is None else (lambda _: callback())
    bind = bind and not passive
    arguments = _stream_arguments(settings)
    channel.queue_declare(settings.stream, passive=passive, durable=True, arguments=arguments, callback=_go_on if bind else last)
    if bind:
        channel.queue_bind(settings.stream, settings.exchange, "#", callback=last)
    return settings.stream


def declare_queue(channel: Channel, settings: BrokerSettings, named: Callable[[str], None]) -> str:
    """Declare the exchange, or with `passive` only look for it, and this process's queue behind it; "", which is the queue declared last.

    `named` is told the name that the broker gave the queue.
    """
    channel.exchange_declare(settings.exchange, "topic", passive=settings.passive, durable=True, callback=_go_on)
    # Exclusive and not durable: RabbitMQ 4.3 ends the connection for a transient queue that is not exclusive.
    channel.queue_declare(
        "", exclusive=True, auto_delete=True, arguments=_queue_arguments(settings), callback=lambda frame: named(str(frame.method.queue))
    )
    channel.queue_bind("", settings.exchange, "#", callback=_go_on)
    return ""


def set_prefetch(channel: Channel, settings: BrokerSettings) -> None:
    """Bound what the broker sends ahead of our acknowledgements. A stream refuses a consumer without it (406)."""
    channel.basic_qos(prefetch_count=settings.prefetch, callback=_go_on)


def rebind_queue(channel: Channel, settings: BrokerSettings, queue: str, callback: Callable[[], None]) -> None:
    """Declare the exchange and bind this process's queue to it, once more."""
    channel.exchange_declare(settings.exchange, "topic", passive=settings.passive, durable=True, callback=_go_on)
    channel.queue_bind(queue, settings.exchange, "#", callback=lambda _: callback())


def declare_control(channel: Channel, settings: BrokerSettings) -> None:
    """Declare the control exchange, or with `passive` only look for it, and this connection's queue behind it: to be consumed as ""."""
    channel.exchange_declare(settings.control, "fanout", passive=settings.passive, durable=True, callback=_go_on)
    channel.queue_declare("", exclusive=True, auto_delete=True, arguments=dict(_CONTROL_ARGUMENTS), callback=_go_on)
    channel.queue_bind("", settings.control, "", callback=_go_on)


def bind_control(channel: Channel, settings: BrokerSettings, bound: Callable[[], None]) -> None:
    """Declare (or with `passive` look for) the control exchange again, and bind the queue that this channel declared last.

    `bound` is called when the broker has done both. Repeating what is in force has no effect.
    """
    channel.exchange_declare(settings.control, "fanout", passive=settings.passive, durable=True, callback=_go_on)
    channel.queue_bind("", settings.control, "", callback=lambda _: bound())


def on_side_channel(
    connection: BrokerConnection, methods: Callable[[Channel, Callable[[], None]], object], done: Callable[[ConnectionFailure | None], None]
) -> None:
    """Open a channel, call `methods(channel, agreed)`, close the channel.

    `methods` has `agreed` called when the broker answered the last one. `done` is told None then, or why the broker refused;
    it is told nothing when the connection dies before that.
    """
    finished = False

    def finish(failure: ConnectionFailure | None) -> None:
        nonlocal finished
        if finished or connection.dead:
            return
        finished = True
        if channel.is_open:
            channel.close()
        done(failure)

    def closed(_channel: object, reason: Exception) -> None:
        finish(from_channel(reason))

    def opened(channel: Channel) -> None:
        methods(channel, lambda: finish(None))

    channel = connection.open_channel(opened, no_deliveries)
    channel.add_on_close_callback(closed)


def no_deliveries(*_: object) -> None:
    """A channel without consumers gets no deliveries."""


def _stream_arguments(settings: BrokerSettings) -> dict[str, Any]:
    return {
        "x-queue-type": "stream",
        "x-max-age": f"{settings.stream_max_age_s}s",
        "x-max-length-bytes": settings.stream_max_bytes,
        # Retention drops whole segments: with RabbitMQ's 500 MB the two bounds above would do nothing.
        "x-stream-max-segment-size-bytes": settings.stream_segment_bytes,
    }


def _queue_arguments(settings: BrokerSettings) -> dict[str, Any]:
    return {
        "x-max-length-bytes": settings.queue_max_bytes,
        "x-overflow": "drop-head",
        "x-message-ttl": settings.queue_ttl_s * 1000,
    }


def _go_on(_: object) -> None:
    """The broker agreed; pika sends the next method by itself."""
