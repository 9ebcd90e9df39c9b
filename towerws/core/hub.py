"""The hub: which connection subscribed to which topics, and one write for each connection and batch.

A *batch* is the deliveries of one read from the broker. `publish` collects them, and `flush` writes them. Each connection gets
one write with all its deliveries, in the log's order over all its topics. Connections that get the same deliveries share the same
bytes. A delivery costs one look-up, and a connection costs one write.

What happens to a subscriber in each state ("gap" is a gap notice):

          | batch  | send buffer is full  | client resumes | send buffer has drained         | nothing left in history
  live    | write  | behind, await drain  | behind, feed   | -                               | -
  behind  | skip   | await drain          | behind, feed   | gap if history lost some, feed  | live
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter

from towerws.core.batch import PART_BYTES, Batch, Broadcast, route
from towerws.core.deliveries import Delivery
from towerws.core.errors import CloseReason
from towerws.core.history import History
from towerws.core.measurements import BATCH, Histogram
from towerws.core.plain_http import HistoryPage
from towerws.core.requests import Request
from towerws.core.subscribers import Hole, HubCounters, Peer, Subscriber
from towerws.core.wire import Change, Dialect, Gap

PIECE_BYTES = 64 * 1024
"""How much of history is written to a subscriber at once: a common size of a socket's send buffer."""

REPLAY_CACHE_BYTES = 4 * 1024 * 1024
"""Frames that were replayed to one subscriber are kept for the next: after an outage all clients ask for the same ones. The cache
takes a resume that missed 100 deliveries from 520 to 197 µs of CPU (make bench SCENARIO=resume, its connecting subtracted)."""

REPLAY_ENTRY_BYTES = 250
"""What a frame in the replay cache takes beyond its own bytes: its object, its key, and their place in the dictionary (CPython 3.11)."""


class Hub:
    """Holds all subscribers with their topics, and writes each batch to them."""

    def __init__(
        self, history: History, call_soon: Callable[[Callable[[], None]], object] | None = None, *, part_bytes: int = PART_BYTES
    ) -> None:
        """`call_soon` runs a callable in the next turn of the reactor. Without it a batch is written at once, however large it is."""
        self.history = history
        self._by_topic: dict[Dialect, dict[str, dict[Subscriber, None]]] = {}
        self._topic_uses: dict[str, int] = {}  # topic -> the number of dialects in which it has a subscriber
        self._batch: list[Delivery] = []
        self._flushed = history.head
        self._position: tuple[Delivery, str] | None = None
        self._replay_cache: dict[tuple[Dialect, int], bytes] = {}  # by dialect and seq
        self._replay_cache_bytes = 0
        self._holes: list[Hole] = []
        """The holes that a client may resume from before. The client gets the gap notice once it has been fed up to the hole."""
        self.subscribers: dict[Subscriber, None] = {}
        self.counters = HubCounters()
        self.batch_sizes = Histogram(BATCH)
        """The deliveries of a batch that have a subscriber."""
        self._broadcast = Broadcast(self.counters, call_soon, part_bytes)
        self.batch_bytes = 0
        """The payload bytes in the batch so far."""

    @property
    def topics(self) -> int:
        """The number of topics that have a subscriber."""
        return len(self._topic_uses)

    def subscriber_count(self, topic: str) -> int:
        """Return the number of subscribers of a topic."""
        return sum(len(by_topic.get(topic, ())) for by_topic in self._by_topic.values())

    @property
    def flushed(self) -> Delivery:
        """The last delivery or mark that was flushed to the live subscribers."""
        return self._flushed

    @property
    def position(self) -> str:
        """The position of the last flushed delivery or mark, or "" if no client can resume from there.

        The position is cached. In a stream it is a hash of the delivery, and during a storm many clients need the same one.
        """
        if self._position is None or self._position[0] is not self._flushed:
            self._position = self._flushed, self._flushed.position
        return self._position[1]

    def join(self, peer: Peer, dialect: Dialect) -> Subscriber:
        """Add a connection, without topics."""
        subscriber = Subscriber(peer, dialect, self._flushed)
        self._by_topic.setdefault(dialect, {})
        self.subscribers[subscriber] = None
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Remove a connection. The cost depends on its own topics only. A second call does nothing."""
        self._broadcast.drop_subscriber(subscriber)
        self.subscribers.pop(subscriber, None)
        self._unsubscribe(subscriber, list(subscriber.topics))

    def _unsubscribe(self, subscriber: Subscriber, topics: Iterable[str]) -> None:
        by_topic = self._by_topic[subscriber.dialect]
        for topic in topics:
            del subscriber.topics[topic]
            subscribers = by_topic[topic]
            del subscribers[subscriber]
            if not subscribers:
                del by_topic[topic]
                self._topic_uses[topic] -= 1
                if not self._topic_uses[topic]:
                    del self._topic_uses[topic]

    def _join_topics(self, subscriber: Subscriber, topics: Mapping[str, int]) -> None:
        """Add topics. Each has the `seq` after which the subscriber gets its deliveries."""
        subscriber.topics.update(topics)
        by_topic = self._by_topic[subscriber.dialect]
        for topic in topics:
            if (subscribers := by_topic.get(topic)) is None:
                subscribers = by_topic[topic] = {}
                self._topic_uses[topic] = self._topic_uses.get(topic, 0) + 1
            subscribers[subscriber] = None

    def subscribe(self, subscriber: Subscriber, request: Request, since: Delivery | None = None) -> Change:
        """Replace the subscriber's topics with those of the request, and return what changed.

        With `since`, the place from which it resumes, the subscriber is behind afterwards. `since` counts only for the topics that
        it joins: topics that it keeps go on without a gap and without a repetition. `since` must not be newer than `flushed`.

        The new topics' deliveries are not written here. After it has sent the answer, the caller must call `feed` for a subscriber that
        is behind.
        """
        self._broadcast.flush_subscriber(subscriber)
        wanted = dict.fromkeys(request.topics)
        left = [topic for topic in subscriber.topics if topic not in wanted]
        joined = [topic for topic in wanted if topic not in subscriber.topics]
        if left:
            self._unsubscribe(subscriber, left)
        if since is not None:
            # The topics that it keeps have been delivered up to this place.
            delivered = subscriber.cursor.seq if subscriber.behind else self._flushed.seq
            for topic, seq in subscriber.topics.items():
                subscriber.topics[topic] = max(seq, delivered)
            if not subscriber.behind or since.seq < subscriber.cursor.seq:
                subscriber.fall_behind(since)
                subscriber.holes = [hole for hole in self._holes if hole.end.seq > since.seq]
            self.counters.resumed += 1
        elif request.since is not None:
            self.counters.not_recovered += 1
        start = self._flushed.seq if since is None else since.seq
        self._join_topics(subscriber, dict.fromkeys(joined, start))
        if not subscriber.topics:
            subscriber.holes = ()
        current = tuple(sorted(subscriber.topics))
        return Change(
            current=current,
            joined=current if len(joined) == len(current) else tuple(sorted(joined)),
            left=tuple(sorted(left)),
            # A subscriber that is behind has not got everything up to the hub's position.
            position=subscriber.cursor.position if subscriber.behind else self.position,
            recovered=None if request.since is None else since is not None,
        )

    def flush_to_position(self, subscriber: Subscriber) -> str:
        """Write to the subscriber its rest of the batch. Return the position up to which it has got everything."""
        self._broadcast.flush_subscriber(subscriber)
        return subscriber.cursor.position if subscriber.behind else self.position

    def flush_to_place(self, subscriber: Subscriber) -> tuple[str, dict[str, str]]:
        """Write to the subscriber its rest of the batch. Return its position, and the topics that it joined while behind.

        Each of these topics maps to the position after which the subscriber gets its deliveries. The position is empty if history does
        not hold that place any more, and has lost deliveries of the topic after it.
        """
        position = self.flush_to_position(subscriber)
        if not subscriber.behind:
            return position, {}
        cursor, history, later = subscriber.cursor, self.history, {}
        lost = history.lost(cursor.seq, subscriber.topics)
        for topic, seq in subscriber.topics.items():
            if seq > cursor.seq and (joined := history.upto(seq) or history.floor).seq > cursor.seq:
                later[topic] = "" if joined.seq > seq and topic in lost else joined.position
        return position, later

    def adopt(self, subscriber: Subscriber, since: Delivery, topics: Mapping[str, int]) -> None:
        """Subscribe a connection of another process, which has got everything up to `since`.

        `topics` maps each topic to the `seq` after which the subscriber gets its deliveries. The subscriber must have just joined.
        It is behind afterwards, and the caller must call `feed`.
        """
        self._join_topics(subscriber, topics)
        subscriber.fall_behind(since)
        if self._holes and topics:
            subscriber.holes = [hole for hole in self._holes if hole.end.seq > since.seq]

    # The hot path: `publish` for each delivery, `flush` for each batch.

    def publish(self, delivery: Delivery) -> None:
        """Add a delivery to the batch. A delivery without a subscriber costs one look-up, however many topics there are."""
        if delivery.topic in self._topic_uses:
            self._batch.append(delivery)
            self.batch_bytes += len(delivery.payload)

    def flush(self, on_written: Callable[[], None] | None = None) -> None:
        """End the batch: write to each live subscriber its deliveries, in the log's order.

        `on_written` is called once all is written. A large batch is written in several turns of the reactor, a small one before
        this method returns. The next batch never overtakes: the rest of this one is written before it.

        After a flush without `on_written` nothing is left to write of any earlier batch. With it, an empty batch leaves that rest to the
        next turns of the reactor. A large event is flushed before its read ends, and the end of the read must not write all the rest.
        """
        before, self._flushed = self._flushed, self.history.head
        if on_written is not None and not self._batch:
            self._broadcast.when_written(on_written)
            return
        batches: list[Batch[Subscriber]] = []
        if self._batch:
            batches = [route(self._batch, by_topic, dialect) for dialect, by_topic in self._by_topic.items() if by_topic]
            self.batch_sizes.observe(len(self._batch))
            self._batch.clear()
            self.batch_bytes = 0
            self.counters.batches += 1
        self._broadcast.begin(batches, before, on_written)

    # Subscribers that are behind.

    def feed(self, subscriber: Subscriber) -> int:
        """Write the next piece of history to a subscriber that is behind, or make it live when nothing is left.

        Return the bytes that were written.
        """
        if not subscriber.behind or subscriber not in self.subscribers:
            return 0
        if (lost := self.history.lost(subscriber.cursor.seq, subscriber.topics)) and not self._notify_lost(subscriber, lost):
            return 0
        holes = subscriber.holes
        piece = self.history.after(
            subscriber.cursor.seq, subscriber.topics, holes[0].start.seq if holes else self._flushed.seq, PIECE_BYTES
        )
        if piece:
            data = b"".join([self._replay_frame(subscriber.dialect, delivery) for delivery in piece])
            sent = subscriber.send(data)
            if sent:
                subscriber.cursor = piece[-1]
                self.counters.deliveries_out += len(piece)
                self.counters.replayed += len(piece)
                self.counters.replayed_bytes += len(data)
            subscriber.peer.await_drain()
            return len(data) if sent else 0
        if holes:
            hole = holes[0]
            if self._notify_hole(subscriber, hole):
                subscriber.holes = holes[1:]
                if hole.end.seq > subscriber.cursor.seq:
                    subscriber.cursor = hole.end
                return self.feed(subscriber)
            subscriber.peer.await_drain()
        else:
            self._broadcast.drop_subscriber(subscriber)  # history has given it the unwritten batch, too
            subscriber.behind = False
            self.counters.caught_up += 1
        return 0

    def read(self, topics: Iterable[str], since: Delivery | None, limit: int, max_bytes: int) -> HistoryPage:
        """Return a page: the next deliveries of these topics after `since`, or from the oldest one that is held (None).

        A page has at most `limit` deliveries and `max_bytes`. A delivery larger than `max_bytes` has a page of its own. A hole in
        the log ends the page.
        """
        history = self.history
        start = max(history.floor, history.barrier, key=attrgetter("seq")) if since is None else since
        hole = next((hole for hole in self._holes if hole.end.seq > start.seq), None)
        upto = self._flushed.seq if hole is None else hole.start.seq
        wanted = dict.fromkeys(topics, start.seq)
        found = history.after(start.seq, wanted, upto, max_bytes)[:limit]
        if found and history.after(found[-1].seq, wanted, upto, 0):
            return HistoryPage(found, found[-1].position, None, complete=False)
        if hole is None:
            return HistoryPage(found, self.position, None, complete=True)
        gap = Gap(tuple(sorted(wanted)), hole.start.position, hole.end.position, hole.reason)
        return HistoryPage(found, hole.end.position, gap, complete=False)

    def replay(self, since: Delivery, subscribers: Iterable[Subscriber], holes: Sequence[Hole] = ()) -> None:
        """Feed these subscribers from `since`. They must not have got anything after it.

        They get a notice of each of `holes` that ends after `since`. Subscribers without a topic, or already behind, are left out.
        """
        ahead = [hole._replace(start=max(since, hole.start, key=attrgetter("seq"))) for hole in holes if hole.end.seq > since.seq]
        for subscriber in subscribers:
            if subscriber.topics and not subscriber.behind:
                subscriber.fall_behind(since)
                subscriber.holes = ahead
                self.feed(subscriber)

    def gap(
        self, start: Delivery, end: Delivery, reason: str, subscribers: Iterable[Subscriber] | None = None, *, resumable: bool = False
    ) -> None:
        """Tell every subscriber with a topic that the deliveries between two places of the log are lost.

        A subscriber that is behind gets the notice once it has been fed up to the gap. With `subscribers` only these get it.
        `resumable`: a client may later resume from before the gap, and gets the notice then.
        """
        self._broadcast.finish()
        hole = Hole(start, end, reason)
        if resumable:
            self._holes = [*(each for each in self._holes if each.end.seq > self.history.floor.seq), hole]
        for subscriber in list(self.subscribers if subscribers is None else subscribers):
            if not subscriber.topics or subscriber not in self.subscribers:
                continue
            if subscriber.behind:
                subscriber.holes = [*subscriber.holes, hole]
            elif not self._notify_hole(subscriber, hole):
                # The subscriber's position must not skip a gap that it hasn't been told of. `start` is right only if nothing after
                # the gap was sent.
                subscriber.fall_behind(start if end.seq == self._flushed.seq else self._flushed)
                subscriber.holes = [hole]
                self.counters.fell_behind += 1
                subscriber.peer.await_drain()

    def _notify_lost(self, subscriber: Subscriber, lost: list[str]) -> bool:
        """Tell a subscriber that is behind which topics lost deliveries from history.

        Return False if its send buffer must drain first, or if it was closed because its dialect has no notice. The same notice
        covers the holes that begin before history's oldest delivery: for the client all of that is one gap.
        """
        end, reason = self.history.floor, "history"
        passed = [hole for hole in subscriber.holes if hole.start.seq <= end.seq]
        holes = subscriber.holes[len(passed) :]
        if missed := {topic for hole in passed for topic in subscriber.missed(hole)}:
            lost, reason = [*missed.union(lost)], passed[-1].reason
            end = max(end, passed[-1].end, key=attrgetter("seq"))
        notice = subscriber.dialect.gap(Gap(tuple(sorted(lost)), subscriber.cursor.position, end.position, reason))
        if notice is not None and not subscriber.send(subscriber.dialect.wrap(notice)):
            subscriber.peer.await_drain()
            return False
        self.counters.gaps += 1
        if notice is None:
            subscriber.peer.end(CloseReason.HISTORY)
            return False
        subscriber.cursor, subscriber.holes = end, holes or ()
        return True

    def _notify_hole(self, subscriber: Subscriber, hole: Hole) -> bool:
        """Send a subscriber the notice of a hole, or call its peer's `note_hole` if the dialect has no notice.

        The notice names the topics that it joined before the hole. Without one, nothing is sent. Return False if its send buffer is full.
        """
        if not (topics := subscriber.missed(hole)):
            return True
        notice = subscriber.dialect.gap(Gap(tuple(sorted(topics)), hole.start.position, hole.end.position, hole.reason))
        if notice is None:
            subscriber.peer.note_hole()
            return True
        if not subscriber.send(subscriber.dialect.wrap(notice)):
            return False
        self.counters.gaps += 1
        return True

    def _replay_frame(self, dialect: Dialect, delivery: Delivery) -> bytes:
        key = (dialect, delivery.seq)
        if (frame := self._replay_cache.get(key)) is None:
            if self._replay_cache_bytes > REPLAY_CACHE_BYTES:
                self._replay_cache.clear()
                self._replay_cache_bytes = 0
            frame = self._replay_cache[key] = dialect.frame(delivery)
            self._replay_cache_bytes += len(frame) + REPLAY_ENTRY_BYTES
        return frame
