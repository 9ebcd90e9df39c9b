"""A turn, as the members of one dialect are due it: framed once, joined once for all who are due the same.

Members that listen to several of its topics are due their frames in the log's order over all of them.

Writing a turn to its members, a part at a time.

One message to ten thousand connections takes the kernel 50 ms and more, and a turn may hold hundreds. So that handshakes,
pings and the admin port never wait for all of it, a part is written in one turn of the reactor and the rest in the next ones.
What is left is nobody's queue: each member is due its share of the very turn, and gets it before anything else that concerns it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from towerws.core.deliveries import Delivery
from towerws.core.subscribers import HubCounters, Subscriber
from towerws.core.wire import Dialect

WRITE_BYTES = 16 * 1024
"""What a write costs beside its bytes, in bytes: some 4 µs, in which the kernel copies so many (make bench, burst and steady)."""

M = TypeVar("M")


BatchPayload = tuple[bytes, int, int]
"""What members that are due the same topics are sent: the joined frames, how many they are, and what a write of them costs."""


class Batch(Generic[M]):
    """Who is due what of these deliveries. `rest` gives each member with the topics that it is due, as a set of bits: 0 for
    one that was due something, and is no more.
    """

    __slots__ = ("_due", "_frames", "_passed", "payloads", "rest")

    def __init__(self, deliveries: Iterable[Delivery], dialect: Dialect, by_topic: Mapping[str, Mapping[M, None]]) -> None:
        """`audience` has the members that listen to a topic."""
        frames: dict[str, list[tuple[int, bytes]]] = {}  # topic -> its frames, each with its place in the turn
        for place, delivery in enumerate(deliveries):
            if (found := frames.get(delivery.topic)) is not None:
                found.append((place, dialect.frame(delivery)))
            elif delivery.topic in by_topic:
                frames[delivery.topic] = [(place, dialect.frame(delivery))]
        self._frames = list(frames.values())
        due = self._due = dict[M, int]()
        for number, topic in enumerate(frames):
            bit = 1 << number
            if due:
                for subscriber in by_topic[topic]:
                    due[subscriber] = due.get(subscriber, 0) | bit
            else:
                due.update(dict.fromkeys(by_topic[topic], bit))
        self.rest: Iterator[tuple[M, int]] = iter(due.items())
        self._passed = iter(due)
        self.payloads: dict[int, BatchPayload] = {}
        """Those that somebody has asked for, by set of topics."""

    def payload(self, bits: int) -> BatchPayload:
        """What the members that are due these topics are sent: the very same bytes for all of them."""
        if (payload := self.payloads.get(bits)) is None:
            chosen = self._chosen(bits)
            data = b"".join([frame for _, frame in chosen])
            payload = self.payloads[bits] = data, len(chosen), WRITE_BYTES + len(data)
        return payload

    def pass_by(self, last: M) -> None:
        """All members up to this one have been seen to: they are due nothing any more."""
        for subscriber in self._passed:
            self._due[subscriber] = 0
            if subscriber is last:
                return

    def pop(self, subscriber: M) -> BatchPayload | None:
        """What this member is still due. From then on it is due nothing."""
        if not (bits := self._due.get(subscriber, 0)):
            return None
        self._due[subscriber] = 0
        return self.payload(bits)

    def _chosen(self, bits: int) -> list[tuple[int, bytes]]:
        if bits & (bits - 1) == 0:
            return self._frames[bits.bit_length() - 1]
        chosen: list[tuple[int, bytes]] = []
        while bits:
            low = bits & -bits
            chosen += self._frames[low.bit_length() - 1]
            bits ^= low
        chosen.sort()  # the places are distinct, so frames are never compared
        return chosen


PART_BYTES = 24 * 1024 * 1024
"""How much is written before others get a turn of the reactor, 5 to 15 ms. A write counts for `turn.WRITE_BYTES` more than its own."""

ALL = 1 << 60


class Broadcast:
    """`soon` runs a callable in another turn of the reactor; without it all is written at once, however long that takes."""

    def __init__(self, counters: HubCounters, soon: Callable[[Callable[[], None]], object] | None, part_bytes: int) -> None:
        self._counters = counters
        self._soon = soon
        self._part_bytes = part_bytes
        self._batches: list[Batch[Subscriber]] = []  # one for each dialect; the first may be partly written
        self._before: Delivery | None = None
        self._written: Callable[[], None] | None = None
        self._scheduled = False

    def begin(self, batches: list[Batch[Subscriber]], before: Delivery, written: Callable[[], None] | None) -> None:
        """Write these, behind what is left of those before. `before` is where members stand that have got nothing of them.

        `written` is called once all is written, before this returns where that is at once.
        """
        self.finish()
        self._batches, self._before, self._written = batches, before, written
        self._write_part()

    def finish(self) -> None:
        """Write now what is left."""
        for batch in self._batches:
            self._write(batch, ALL)
        self._batches = []
        self._tell_written()

    def flush_subscriber(self, subscriber: Subscriber) -> None:
        """Write to a member what it is due of what is left, before anything changes for it."""
        for batch in self._batches:
            if (payload := batch.pop(subscriber)) is None or subscriber.behind:
                continue
            data, deliveries, _ = payload
            if subscriber.send(data):
                self._counters.deliveries_out += deliveries
                self._counters.bytes_out += len(data)
            else:
                self._fall_behind(subscriber)

    def drop_subscriber(self, subscriber: Subscriber) -> None:
        """A member gets nothing of what is left."""
        for batch in self._batches:
            batch.pop(subscriber)

    def _write_part(self) -> None:
        allowed = ALL if self._soon is None else self._part_bytes
        while self._batches:
            allowed = self._write(self._batches[0], allowed)
            if allowed <= 0:
                self._go_on_soon()
                return
            del self._batches[0]
        self._tell_written()

    def _go_on_soon(self) -> None:
        if self._soon is not None and not self._scheduled:
            self._scheduled = True
            self._soon(self._go_on)

    def _go_on(self) -> None:
        self._scheduled = False
        self._write_part()

    def _write(self, batch: Batch[Subscriber], allowed: int) -> int:
        """Write to the next members; what is left of what was allowed, 0 or less where the turn may not be through."""
        payloads = batch.payloads
        written = size = deliveries = cost = same = 0
        data = b""
        for subscriber, bits in batch.rest:
            if not bits or subscriber.behind:
                continue
            if bits != same:  # neighbours are often due the same
                data, deliveries, cost = payloads.get(bits) or batch.payload(bits)
                same = bits
            if subscriber.send(data):
                written += deliveries
                size += len(data)
            else:
                self._fall_behind(subscriber)
            allowed -= cost
            if allowed <= 0:
                batch.pass_by(subscriber)
                break
        self._counters.deliveries_out += written
        self._counters.bytes_out += size
        return allowed

    def _fall_behind(self, subscriber: Subscriber) -> None:
        assert self._before is not None
        subscriber.fall_behind(self._before)
        self._counters.fell_behind += 1
        subscriber.peer.await_drain()

    def _tell_written(self) -> None:
        written, self._written = self._written, None
        if written is not None:
            written()
