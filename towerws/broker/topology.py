"""Declares what towerws uses on the broker.

The events exchange is bound to a stream for all processes, or to a queue for each process. The control exchange is bound to a queue for
each process.

pika holds each method back until the one before it was answered. So each function here calls all its methods at once. The first refusal
closes the channel, and pika sends nothing after it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from typing import Any

from pika.channel import Channel

from towerws.broker.connection import BrokerConnection
from towerws.broker.failures import UNANSWERED, ConnectionFailure, from_channel
from towerws.core.errors import BrokerError
from towerws.core.settings import BrokerSettings

STREAMS_SINCE = (3, 9)
"""The first RabbitMQ with streams. An older one ignores `x-queue-type`, and makes a queue that the processes would share."""

_CONTROL_ARGUMENTS: Mapping[str, Any] = {
    "x-max-length": 10_000,
    "x-max-length-bytes": 1024**2,
    # The queue of a daemon that is stuck fills up. With reject-publish the daemon that publishes a revocation gets a nack then. With
    # drop-head an older revocation would be dropped silently.
    "x-overflow": "reject-publish",
    # RabbitMQ deletes an auto-delete queue when its last consumer ends. If the broker refuses the only consumer, this deletes it.
    "x-expires": 60_000,
}


class Mode(enum.Enum):
    """How deliveries are consumed."""

    STREAM = "stream"
    QUEUE = "queue"


def choose_mode(consume: str, server_properties: Mapping[str, Any]) -> Mode:
    """Return the mode for this broker. "auto" is the stream if the broker has streams.

    Raises `BrokerError` for "stream" on a broker without streams.
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
    """Declare exchange and stream on an open pika channel, and return the stream's name. With `passive` only check that they exist.

    `bind` binds the stream as well. Without it an existing binding is not checked: AMQP can't ask for it, and binding again would hide
    that it was missing. `callback` is called when the broker has agreed to all methods.
    """
    passive = settings.passive
    channel.exchange_declare(settings.exchange, "topic", passive=passive, durable=True, callback=_go_on)
    last = _go_on if callback is None else (lambda _: callback())
    bind = bind and not passive
    arguments = stream_arguments(settings)
    channel.queue_declare(settings.stream, passive=passive, durable=True, arguments=arguments, callback=_go_on if bind else last)
    if bind:
        channel.queue_bind(settings.stream, settings.exchange, "#", callback=last)
    return settings.stream


def declare_queue(channel: Channel, settings: BrokerSettings, named: Callable[[str], None]) -> str:
    """Declare the exchange and this process's queue, and bind it. With `passive` only check that the exchange exists.

    Returns "", which is AMQP's name for the queue declared last. `named` is called with the name that the broker gave the queue.
    """
    channel.exchange_declare(settings.exchange, "topic", passive=settings.passive, durable=True, callback=_go_on)
    # Exclusive and not durable: RabbitMQ 4.3 ends the connection for a transient queue that is not exclusive.
    channel.queue_declare(
        "", exclusive=True, auto_delete=True, arguments=queue_arguments(settings), callback=lambda frame: named(str(frame.method.queue))
    )
    channel.queue_bind("", settings.exchange, "#", callback=_go_on)
    return ""


def set_prefetch(channel: Channel, settings: BrokerSettings) -> None:
    """Limit the deliveries that the broker sends ahead of our acknowledgements. A stream refuses a consumer without that limit (406)."""
    channel.basic_qos(prefetch_count=settings.prefetch, callback=_go_on)


def rebind_queue(channel: Channel, settings: BrokerSettings, queue: str, callback: Callable[[], None]) -> None:
    """Declare the exchange and bind this process's queue to it again. `callback` is called when the broker agreed."""
    channel.exchange_declare(settings.exchange, "topic", passive=settings.passive, durable=True, callback=_go_on)
    channel.queue_bind(queue, settings.exchange, "#", callback=lambda _: callback())


def declare_control(channel: Channel, settings: BrokerSettings, consume: Callable[[], object], bound: Callable[[], None]) -> None:
    """Declare the control exchange and this connection's queue, consume it, and bind it. With `passive` only check the exchange.

    `consume` consumes the queue as "", which is AMQP's name for the queue declared last. `bound` is called when the broker has bound it.
    If the broker refuses the consumer, the queue isn't bound. Without a consumer it would fill up, and refuse every daemon's revocations.
    """
    channel.exchange_declare(settings.control, "fanout", passive=settings.passive, durable=True, callback=_go_on)
    channel.queue_declare("", exclusive=True, auto_delete=True, arguments=dict(_CONTROL_ARGUMENTS), callback=_go_on)
    consume()
    channel.queue_bind("", settings.control, "", callback=lambda _: bound())


def bind_control(channel: Channel, settings: BrokerSettings, bound: Callable[[], None]) -> None:
    """Declare the control exchange again (with `passive`: check that it exists), and bind the queue that this channel declared last.

    `bound` is called when the broker has done both. If both are in force already, nothing changes.
    """
    channel.exchange_declare(settings.control, "fanout", passive=settings.passive, durable=True, callback=_go_on)
    channel.queue_bind("", settings.control, "", callback=lambda _: bound())


def on_side_channel(
    connection: BrokerConnection,
    methods: Callable[[Channel, Callable[[], None]], object],
    done: Callable[[ConnectionFailure | None], None],
    before: Channel | None = None,
) -> Channel:
    """Open a channel, call `methods(channel, agreed)`, and close the channel. A refusal costs this channel only. Returns the channel.

    `methods` must call `agreed` when the broker has answered its last method. `done` gets None then, or why the broker refused. It is not
    called if the connection ends before that.

    `before` is the channel of the last attempt. While it waits for an answer, no other is opened, and `done` gets `UNANSWERED` at once.
    Otherwise a broker that doesn't answer would get one channel after the other, until the connection has no more.
    """
    if before is not None and not before.is_closed:
        done(UNANSWERED)
        return before
    finished = False

    def finish(failure: ConnectionFailure | None) -> None:
        nonlocal finished
        if finished or connection.dead:
            return
        finished = True
        connection.close_channel(channel)
        done(failure)

    def closed(_channel: object, reason: Exception) -> None:
        finish(from_channel(reason))

    def opened(channel: Channel) -> None:
        methods(channel, lambda: finish(None))

    channel = connection.open_channel(opened, _no_deliveries, max_body_bytes=0)
    channel.add_on_close_callback(closed)
    return channel


def stream_exists(connection: BrokerConnection, stream: str, done: Callable[[bool], None]) -> None:
    """Ask the broker whether `stream` exists, on a channel of its own. `done` is not called if the connection ends before the answer.

    `done(False)` needs a 404 with the text "no queue": a stream whose node is still starting gives a 404, too. After any other refusal
    `done` gets True: the consumer's channel will meet the refusal again, and report it.
    """

    def answered(failure: ConnectionFailure | None) -> None:
        done(failure is None or failure.code != 404 or "no queue" not in failure.text)

    on_side_channel(connection, lambda channel, agreed: channel.queue_declare(stream, passive=True, callback=lambda _: agreed()), answered)


def _no_deliveries(*_: object) -> None:
    """The delivery callback of a channel without consumers. It is never called."""


def stream_arguments(settings: BrokerSettings) -> dict[str, Any]:
    """Return the arguments with which the stream is declared."""
    return {
        "x-queue-type": "stream",
        "x-max-age": f"{settings.stream_max_age_s}s",
        "x-max-length-bytes": settings.stream_max_bytes,
        # Retention drops whole segments. With RabbitMQ's default of 500 MB the two limits above would have no effect.
        "x-stream-max-segment-size-bytes": settings.stream_segment_bytes,
    }


def queue_arguments(settings: BrokerSettings) -> dict[str, Any]:
    """Return the arguments with which a daemon's own queue is declared."""
    return {
        "x-max-length-bytes": settings.queue_max_bytes,
        "x-overflow": "drop-head",
        "x-message-ttl": settings.queue_ttl_s * 1000,
    }


def _go_on(_: object) -> None:
    """Does nothing: when the broker has agreed, pika sends the next method by itself."""
