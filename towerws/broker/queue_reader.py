"""Reads this process's own queue on one open connection: for brokers without streams, or where the operator asks for it.

The queue is exclusive and ends with the connection. Its offsets are counted here, and each interruption is a gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pika.channel import Channel
from twisted.internet import interfaces

from towerws.broker.binding_watch import BindingWatch
from towerws.broker.connection import BrokerConnection
from towerws.broker.consumer import Consumer, Feed
from towerws.broker.deadline import Deadline
from towerws.broker.failures import ConnectionFailure, RetryPolicy
from towerws.broker.stream_reader import ReaderEvents
from towerws.broker.topology import Mode, declare_queue, on_side_channel, rebind_queue, set_prefetch
from towerws.core.markers import Marker
from towerws.core.settings import BrokerSettings

RESTARTS: Final = 3
RESTARTS_S: Final = 60.0


class QueueReader:
    """See the module. Tells its owner the same as a `StreamReader`."""

    def __init__(
        self,
        connection: BrokerConnection,
        settings: BrokerSettings,
        feed: Feed,
        watch: BindingWatch,
        reactor: interfaces.IReactorTime,
        events: ReaderEvents,
    ) -> None:
        self.marker_key = ""
        self._connection = connection
        self._settings = settings
        self._feed = feed
        self._watch = watch
        self._reactor = reactor
        self._events = events
        self._closed = False
        self._was_live = False
        self._consumer: Consumer | None = None
        self._deadline = Deadline(reactor)
        self._restarts: deque[float] = deque(maxlen=RESTARTS)

    # what the owner calls

    def begin(self) -> None:
        """Declare a queue and consume it; ends in `reader_live` or `reader_failed`, unless the connection dies or `close` is called."""

        def topology(channel: Channel) -> str:
            queue = declare_queue(channel, self._settings, self._named)
            set_prefetch(channel, self._settings)
            return queue

        self._consumer = Consumer(self._connection, Mode.QUEUE, topology, None, self._settings, self._feed, self._reactor, self)
        self._deadline.set(self._settings.attempt_s, self._unanswered)

    def end_read(self) -> None:
        """One read from the socket was handled."""
        if self._consumer is not None:
            self._consumer.end_read()

    def close(self) -> None:
        """Acknowledge and end the channel; nothing reaches the sink any more."""
        self._closed = True
        self._interrupted()
        self._deadline.clear()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def connection_lost(self, failure: ConnectionFailure) -> None:
        """The queue is gone with it."""

    # ConsumerEvents

    def consumer_ok(self) -> None:
        """Whatever was lost is told before the first delivery."""
        feed = self._feed
        self._deadline.clear()
        if feed.attached is not Mode.QUEUE:
            feed.sink.begin(feed.log)
        if feed.attached is not None and (feed.interrupted or feed.attached is not Mode.QUEUE):
            feed.sink.gap("broker")
        feed.attached, feed.interrupted = Mode.QUEUE, False
        feed.sink.caught_up()
        self._was_live = True
        self._events.reader_live()
        self._watch.start(self)

    def consumer_saw(self, consumer: Consumer, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Only a stream has offsets that may be out of step."""

    def consumer_marker(self, marker: Marker, routing_key: str, body: bytes, offset: int) -> None:
        """A marker was read."""
        self._watch.came(marker, routing_key, offset)

    def consumer_lost(self, failure: ConnectionFailure) -> None:
        """Again on a new channel; or give the connection up when that happens too often or was refused."""
        self._consumer = None
        self._deadline.clear()
        self._interrupted()
        now = self._reactor.seconds()
        worn_out = len(self._restarts) == RESTARTS and now - self._restarts[0] < RESTARTS_S
        if not self._was_live or worn_out:
            self.close()
            self._events.reader_failed(replace(failure, retry=RetryPolicy.FAST) if worn_out else failure)
            return
        self._restarts.append(now)
        self._events.reader_restarted(failure)
        self.begin()

    # Watched

    def rebind(self, done: Callable[[ConnectionFailure | None], None]) -> None:
        """Declare the exchange and bind the queue once more, on a channel of its own."""
        on_side_channel(self._connection, lambda channel, agreed: rebind_queue(channel, self._settings, self.marker_key, agreed), done)

    def marker_sent(self, text: str) -> None:
        """No position of a queue waits for a marker."""

    def tell_before_next(self) -> None:
        """Told when the marker comes."""

    def hole_closed(self) -> None:
        """What was published meanwhile is lost for this queue."""
        self._feed.sink.gap("broker")

    def deaf(self, reason: str) -> None:
        """Another connection may hear more."""
        self.close()
        self._events.reader_failed(ConnectionFailure(reason, RetryPolicy.FAST))

    # our own

    def _named(self, queue: str) -> None:
        self.marker_key = queue
        if self._consumer is not None:
            self._consumer.markers_to(queue)

    def _unanswered(self) -> None:
        self.close()
        self._events.reader_failed(ConnectionFailure(f"topology: no answer from the broker within {self._settings.attempt_s:g} s"))

    def _interrupted(self) -> None:
        """Deliveries stopped coming: they are lost from here on."""
        self._watch.stop()
        self._feed.interrupted = self._feed.attached is Mode.QUEUE
