"""A channel for a few methods beside those that consume: what fails there costs that channel only."""

from __future__ import annotations

from collections.abc import Callable

from pika import exceptions as pika_exceptions
from pika.channel import Channel

from towerws.broker.connection import BrokerConnection
from towerws.broker.failures import ConnectionFailure, from_broker


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
        if isinstance(reason, pika_exceptions.ChannelClosedByBroker):
            finish(from_broker(reason.reply_code, reason.reply_text))
        else:
            finish(ConnectionFailure(f"channel closed: {type(reason).__name__}"))

    def opened(channel: Channel) -> None:
        methods(channel, lambda: finish(None))

    channel = connection.open_channel(opened, _nothing_comes)
    channel.add_on_close_callback(closed)


def _nothing_comes(*_: object) -> None:
    """A channel without consumers gets no deliveries."""
