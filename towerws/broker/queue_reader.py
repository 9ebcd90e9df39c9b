"""Reads this process's own queue on one open connection, for brokers without streams or with `consume = "queue"`.

The queue is exclusive and ends with the connection. So its offsets are counted here, and each interruption is a gap.
"""

from __future__ import annotations

from collections.abc import Callable

from pika.channel import Channel
from twisted.internet import interfaces

from towerws.broker.binding_watch import BindingWatch
from towerws.broker.connection import BrokerConnection
from towerws.broker.consumer import Consumer
from towerws.broker.failures import ConnectionFailure, RetryPolicy
from towerws.broker.reader import ChannelRestarts, ReaderEvents, ReadProgress
from towerws.broker.topology import Mode, declare_queue, on_side_channel, rebind_queue, set_prefetch
from towerws.core.deliveries import Marker
from towerws.core.settings import BrokerSettings
from towerws.outgoing import Deadline


class QueueReader:
    """Reads the queue on `connection` into the sink of `progress`. It has the same methods as a `StreamReader`."""

    def __init__(
        self,
        connection: BrokerConnection,
        settings: BrokerSettings,
        progress: ReadProgress,
        watch: BindingWatch,
        reactor: interfaces.IReactorTime,
        events: ReaderEvents,
    ) -> None:
        self.marker_key = ""
        self.shares_log = False
        self._connection = connection
        self._settings = settings
        self._progress = progress
        self._watch = watch
        self._reactor = reactor
        self._events = events
        self._consumer: Consumer | None = None
        self._rebinding: Channel | None = None
        """The channel of the last `rebind`."""
        self._deadline = Deadline(reactor)
        self._restarts = ChannelRestarts(reactor)

    # the session calls these

    def begin(self) -> None:
        """Declare a queue and consume it. `reader_live` or `reader_failed` follows, unless the connection ends or `close` is called."""

        def declare(channel: Channel) -> str:
            queue = declare_queue(channel, self._settings, self._named)
            set_prefetch(channel, self._settings)
            return queue

        self._consumer = Consumer(self._connection, Mode.QUEUE, declare, None, self._settings, self._progress, self._reactor, self)
        self._deadline.set(self._settings.attempt_s, self._unanswered)

    def end_read(self) -> None:
        """One read from the socket was handled."""
        if self._consumer is not None:
            self._consumer.end_read()

    def close(self) -> None:
        """Acknowledge what was read, and close the channel. Nothing reaches the sink after that."""
        self._interrupted()
        self._deadline.clear()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def connection_failed(self, failure: ConnectionFailure) -> None:
        """The connection ended, and the queue with it. The session calls `close` next."""

    # ConsumerEvents

    def consumer_ok(self) -> None:
        """The broker accepted the consumer. Clients are told of a gap before the first delivery, if anything was lost."""
        progress = self._progress
        self._deadline.clear()
        if progress.last_mode is not Mode.QUEUE:
            progress.sink.begin(progress.epoch)
        if progress.last_mode is not None and (progress.interrupted or progress.last_mode is not Mode.QUEUE):
            progress.sink.gap("broker")
        progress.last_mode, progress.interrupted = Mode.QUEUE, False
        progress.sink.caught_up()
        self._restarts.was_live = True
        self._events.reader_live()
        self._watch.start(self)

    def consumer_unexpected(self, consumer: Consumer, tag: int, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Never called: only a stream's offsets can be out of step."""

    def consumer_marker(self, marker: Marker, routing_key: str, body: bytes, offset: int) -> None:
        """A marker was read."""
        self._watch.marker_arrived(marker, routing_key, offset)

    def consumer_failed(self, failure: ConnectionFailure) -> None:
        """The broker closed the channel: open a new one, or give the connection up."""
        self._consumer = None
        self._deadline.clear()
        self._interrupted()
        final = self._restarts.refuse(failure)
        if final is not None:
            self._fail(final)
            return
        self._events.reader_restarted(failure)
        self.begin()

    # Watched

    def rebind(self, done: Callable[[ConnectionFailure | None], None]) -> None:
        """Declare the exchange and bind the queue again, on a channel of its own. `done` gets None, or why the broker refused."""
        self._rebinding = on_side_channel(
            self._connection, lambda channel, agreed: rebind_queue(channel, self._settings, self.marker_key, agreed), done, self._rebinding
        )

    @property
    def deliveries(self) -> int:
        """How many messages were read so far."""
        return self._progress.deliveries

    @property
    def reading_since(self) -> float | None:
        """Since when the connection reads without a pause. None: it pauses."""
        return self._connection.reading_since

    def attach_again(self, reason: str) -> None:
        """Give this connection up, and the queue with it: a consumer that may help gets a new queue.

        What the present queue holds is lost, and clients are told. Without a consumer it is lost anyway, after `queue_ttl_s`.
        """
        self.no_markers(reason)

    def marker_sent(self, text: str) -> None:
        """Nothing to do: no client waits for a marker of a queue."""

    def gap_before_next(self) -> None:
        """Nothing to do: `binding_restored` tells of the gap."""

    def binding_restored(self) -> None:
        """Tell clients of a gap: what was published while the queue was not bound is lost."""
        self._progress.sink.gap("broker")

    def no_markers(self, reason: str) -> None:
        """Give this connection up. Another one may get markers."""
        self._fail(ConnectionFailure(reason, RetryPolicy.FAST))

    # our own

    def _named(self, queue: str) -> None:
        self.marker_key = queue
        if self._consumer is not None:
            self._consumer.set_marker_key(queue)

    def _unanswered(self) -> None:
        self._fail(ConnectionFailure(f"topology: no answer from the broker within {self._settings.attempt_s:g} s"))

    def _interrupted(self) -> None:
        """Deliveries have stopped: events that are published until the next consumer are lost."""
        self._watch.stop()
        self._progress.interrupted = self._progress.last_mode is Mode.QUEUE

    def _fail(self, failure: ConnectionFailure) -> None:
        self.close()
        self._events.reader_failed(failure)
