"""The hub: who is due what, and one write per connection and turn.

A *turn* is what one read from the broker brought. Its deliveries are noted by `publish` and go out together at `flush`: each
connection gets one write with everything it is due, in the log's order over all its topics, and connections that are due
the same share the same bytes. What costs per delivery is a look-up; what costs per connection is one write.

          | turn is due        | write refused        | resumes          | drained                    | nothing left to feed
  live    | write              | behind, wait         | behind, feed     | (never asked for)          | -
  behind  | skip               | wait                 | behind, feed     | feed; lost? notice, feed   | live
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from towerws.core.batch import PART_BYTES, Batch, Broadcast
from towerws.core.deliveries import Delivery
from towerws.core.errors import CloseReason
from towerws.core.frames import text_frame
from towerws.core.history import History
from towerws.core.requests import Request
from towerws.core.subscribers import Hole, HubCounters, Peer, Subscriber
from towerws.core.wire import Change, Dialect, Gap

PIECE_BYTES = 64 * 1024
"""How much of history is written to a reader at once: a common size of a socket's send buffer."""

REPLAYED_BYTES = 4 * 1024 * 1024
"""Frames made for one reader that is behind are kept for the next: after an outage all ask for the same. Takes a resume that
missed 100 deliveries from 520 to 197 µs of CPU (make bench SCENARIO=resume, its connecting subtracted)."""


class Hub:
    """All members, what each listens to, and the way of a turn to them."""

    def __init__(
        self, history: History, soon: Callable[[Callable[[], None]], object] | None = None, *, part_bytes: int = PART_BYTES
    ) -> None:
        """`soon` runs a callable in another turn of the reactor; without it a turn is written at once, however long that takes."""
        self._history = history
        self._subscribers: dict[Dialect, dict[str, dict[Subscriber, None]]] = {}
        self._listened: dict[str, int] = {}  # topic -> in how many dialects somebody listens to it
        self._batch: list[Delivery] = []
        self._flushed = history.head
        self._position: tuple[Delivery, str] | None = None
        self._replayed: dict[tuple[Dialect, int], bytes] = {}  # by dialect and seq
        self._replayed_bytes = 0
        self._holes: list[Hole] = []
        """Those that a client that resumes from before them is told of when it gets there."""
        self.subscribers: dict[Subscriber, None] = {}
        self.counters = HubCounters()
        self._broadcast = Broadcast(self.counters, soon, part_bytes)
        self.batch_bytes = 0
        """Payload bytes noted for the turn so far."""

    @property
    def topics(self) -> int:
        """How many topics somebody listens to."""
        return len(self._listened)

    @property
    def flushed_seq(self) -> int:
        """How far the log has gone out to everyone who is live."""
        return self._flushed.seq

    @property
    def position(self) -> str:
        """Where the log stands for everyone who is live; "" where nothing could be resumed from that.

        A storm of clients asks for the same one, and a stream's is a hash of the delivery: it is kept.
        """
        if self._position is None or self._position[0] is not self._flushed:
            self._position = self._flushed, self._flushed.position
        return self._position[1]

    def join(self, peer: Peer, dialect: Dialect) -> Subscriber:
        """Add a connection; it listens to nothing yet."""
        subscriber = Subscriber(peer, dialect, self._flushed)
        self._subscribers.setdefault(dialect, {})
        self.subscribers[subscriber] = None
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Remove a connection. Costs what it listened to; a second call does nothing."""
        self._broadcast.drop_subscriber(subscriber)
        self.subscribers.pop(subscriber, None)
        self._unsubscribe(subscriber, list(subscriber.topics))

    def _unsubscribe(self, subscriber: Subscriber, topics: Iterable[str]) -> None:
        by_topic = self._subscribers[subscriber.dialect]
        for topic in topics:
            del subscriber.topics[topic]
            listeners = by_topic[topic]
            del listeners[subscriber]
            if not listeners:
                del by_topic[topic]
                self._listened[topic] -= 1
                if not self._listened[topic]:
                    del self._listened[topic]

    def subscribe(self, subscriber: Subscriber, request: Request, since: Delivery | None = None) -> Change:
        """Replace what a member listens to, and put it behind `since`, the place that it resumes from.

        What it listened to before and still does goes on without a gap and without a repetition: `since` counts for the topics
        that it joins. `since` must not be newer than what has gone out (`flushed_seq`). Nothing is written: once the answer
        is out, `feed` must be called for a member that is behind.
        """
        self._broadcast.flush_subscriber(subscriber)
        wanted = dict.fromkeys(request.topics)
        left = [topic for topic in subscriber.topics if topic not in wanted]
        joined = [topic for topic in wanted if topic not in subscriber.topics]
        self._unsubscribe(subscriber, left)
        if since is not None:
            # Of the topics that it keeps it has had all up to where it stands.
            stands = subscriber.cursor.seq if subscriber.behind else self._flushed.seq
            for topic, seq in subscriber.topics.items():
                subscriber.topics[topic] = max(seq, stands)
            if not subscriber.behind or since.seq < subscriber.cursor.seq:
                subscriber.fall_behind(since)
                self._holes = [hole for hole in self._holes if hole.end.seq > self._history.floor.seq]
                subscriber.holes = [hole for hole in self._holes if hole.end.seq > since.seq]
            self.counters.resumed += 1
        elif request.since is not None:
            self.counters.not_recovered += 1
        by_topic = self._subscribers[subscriber.dialect]
        start = self._flushed.seq if since is None else since.seq
        for topic in joined:
            subscriber.topics[topic] = start
            if (listeners := by_topic.get(topic)) is None:
                listeners = by_topic[topic] = {}
                self._listened[topic] = self._listened.get(topic, 0) + 1
            listeners[subscriber] = None
        if not subscriber.topics:
            subscriber.holes = ()
        return Change(
            current=tuple(sorted(subscriber.topics)),
            joined=tuple(sorted(joined)),
            left=tuple(sorted(left)),
            # Not where the log stands, for a member that is behind: it has not been told all that came before that.
            position=subscriber.cursor.position if subscriber.behind else self.position,
            recovered=None if request.since is None else since is not None,
        )

    def publish(self, delivery: Delivery) -> None:
        """Note a delivery for this turn. One that nobody listens to costs this look-up, however many topics there are."""
        if delivery.topic in self._listened:
            self._batch.append(delivery)
            self.batch_bytes += len(delivery.payload)

    def flush(self, written: Callable[[], None] | None = None) -> None:
        """End the turn: one write to each live member that is due anything, in the log's order.

        `written` is called once all is written: now, or, where that would keep everybody else waiting, in a later turn of the
        reactor. The next turn overtakes nothing: what is left of this one is written before it.
        """
        before, self._flushed = self._flushed, self._history.head
        batches: list[Batch[Subscriber]] = []
        if self._batch:
            batches = [Batch(self._batch, dialect, by_topic) for dialect, by_topic in self._subscribers.items() if by_topic]
            self._batch.clear()
            self.batch_bytes = 0
            self.counters.batches += 1
        self._broadcast.begin(batches, before, written)

    def feed(self, subscriber: Subscriber) -> int:
        """Give a member that is behind its next piece of history, or let it go live when there is none left. The bytes of the piece."""
        if not subscriber.behind or subscriber not in self.subscribers:
            return 0
        if (lost := self._history.lost(subscriber.cursor.seq, subscriber.topics)) and not self._tell_lost(subscriber, lost):
            return 0
        holes = subscriber.holes
        piece = self._history.after(
            subscriber.cursor.seq, subscriber.topics, holes[0].start.seq if holes else self._flushed.seq, PIECE_BYTES
        )
        if piece:
            data = b"".join([self._replay(subscriber.dialect, delivery) for delivery in piece])
            sent = subscriber.send(data)
            if sent:
                subscriber.cursor = piece[-1]
                self.counters.deliveries_out += len(piece)
            subscriber.peer.await_drain()
            return len(data) if sent else 0
        if holes:
            hole = holes[0]
            if self._tell_hole(subscriber, hole):
                subscriber.holes = holes[1:]
                if hole.end.seq > subscriber.cursor.seq:
                    subscriber.cursor = hole.end
                return self.feed(subscriber)
            subscriber.peer.await_drain()
        else:
            self._broadcast.drop_subscriber(subscriber)  # it has been fed what it was due of it
            subscriber.behind = False
            self.counters.caught_up += 1
        return 0

    def replay(self, since: Delivery, subscribers: Iterable[Subscriber]) -> None:
        """Feed these members from this place: nothing behind it has gone out to them."""
        for subscriber in subscribers:
            if subscriber.topics and not subscriber.behind:
                subscriber.fall_behind(since)
                self.feed(subscriber)

    def _tell_lost(self, subscriber: Subscriber, lost: list[str]) -> bool:
        """Tell a member that is behind what has fallen out of history. False: it must drain first, or it was closed instead.

        A hole that begins where history does is told with it: for the client both are one.
        """
        end, reason = self._history.floor, "history"
        holes = [hole for hole in subscriber.holes if hole.end.seq > end.seq]
        if holes and holes[0].start.seq <= end.seq:
            lost, end, reason = list(subscriber.topics), holes[0].end, holes[0].reason
            del holes[0]
        notice = subscriber.dialect.gap(Gap(tuple(sorted(lost)), subscriber.cursor.position, end.position, reason))
        if notice is not None and not subscriber.send(text_frame(notice)):
            subscriber.peer.await_drain()
            return False
        self.counters.gaps += 1
        if notice is None:
            subscriber.peer.end(CloseReason.HISTORY)
            return False
        subscriber.cursor, subscriber.holes = end, holes or ()
        return True

    def _tell_hole(self, subscriber: Subscriber, hole: Hole) -> bool:
        """Tell a member of a hole in the log, where its dialect has a word for it. False: its buffer is full."""
        if not subscriber.topics:
            return True
        notice = subscriber.dialect.gap(Gap(tuple(sorted(subscriber.topics)), hole.start.position, hole.end.position, hole.reason))
        if notice is None:
            return True
        if not subscriber.send(text_frame(notice)):
            return False
        self.counters.gaps += 1
        return True

    def _replay(self, dialect: Dialect, delivery: Delivery) -> bytes:
        key = (dialect, delivery.seq)
        if (frame := self._replayed.get(key)) is None:
            if self._replayed_bytes > REPLAYED_BYTES:
                self._replayed.clear()
                self._replayed_bytes = 0
            frame = self._replayed[key] = dialect.frame(delivery)
            self._replayed_bytes += len(frame)
        return frame

    def gap(
        self, start: Delivery, end: Delivery, reason: str, subscribers: Iterable[Subscriber] | None = None, *, resumable: bool = False
    ) -> None:
        """Tell every member that listens to anything: deliveries between two places of the log can't be had.

        A member that is behind is told when it has been fed what came before. `members`: tell these alone. `resumable`: a client
        that resumes from before it later is told in its place, too.
        """
        self._broadcast.finish()
        hole = Hole(start, end, reason)
        if resumable:
            self._holes.append(hole)
        for subscriber in list(self.subscribers if subscribers is None else subscribers):
            if not subscriber.topics or subscriber not in self.subscribers:
                continue
            if subscriber.behind:
                subscriber.holes = [*subscriber.holes, hole]
            elif not self._tell_hole(subscriber, hole):
                subscriber.fall_behind(self._flushed)  # it has had all that came before
                subscriber.holes = [hole]
                self.counters.fell_behind += 1
                subscriber.peer.await_drain()
