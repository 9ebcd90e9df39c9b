"""A batch: the deliveries of one read from the broker, routed to the subscribers and written to them.

`route` decides who gets what. `Broadcast` writes the batch, one part in each turn of the reactor. One message to ten thousand
connections takes the kernel 50 ms and more, and a batch may hold hundreds of messages. Handshakes, pings and the admin port never
wait for all of that. The unwritten rest is not queued per client. A subscriber gets its part before anything else happens to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from towerws.core.deliveries import Delivery
from towerws.core.subscribers import HubCounters, Subscriber
from towerws.core.wire import Dialect

WRITE_BYTES = 16 * 1024
"""The cost of one write besides copying its bytes, given in bytes. A write takes some 4 µs, in which the kernel could copy this many
(make bench, burst and steady)."""

PART_BYTES = 24 * 1024 * 1024
"""The most that is written in one turn of the reactor: 5 to 15 ms. Each write counts with its bytes and `WRITE_BYTES`."""

UNLIMITED = 1 << 60

S = TypeVar("S")

BatchPayload = tuple[bytes, int, int]
"""The bytes for all subscribers that get the same topics: the joined frames, how many frames they are, and the cost of one write."""


def route(deliveries: Iterable[Delivery], subscribers: Mapping[str, Mapping[S, None]], dialect: Dialect) -> Batch[S]:
    """Decide who gets what: each subscriber gets the deliveries of its topics.

    `subscribers` has those of one dialect, by topic. Each delivery with a subscriber is framed once for all of them.
    """
    frames: dict[str, list[tuple[int, bytes]]] = {}  # topic -> its frames, each with its place in the batch
    for place, delivery in enumerate(deliveries):
        if (found := frames.get(delivery.topic)) is not None:
            found.append((place, dialect.frame(delivery)))
        elif delivery.topic in subscribers:
            frames[delivery.topic] = [(place, dialect.frame(delivery))]
    masks: dict[S, int] = {}
    for number, topic in enumerate(frames):
        bit = 1 << number
        if masks:
            for subscriber in subscribers[topic]:
                masks[subscriber] = masks.get(subscriber, 0) | bit
        else:
            masks.update(dict.fromkeys(subscribers[topic], bit))
    return Batch(list(frames.values()), masks)


class Batch(Generic[S]):
    """A routed batch for the subscribers of one dialect.

    A subscriber's mask is the set of topics that it gets: bit `n` stands for the frames `frames[n]`. A mask of 0 means: already
    served. Subscribers with the same mask share the same joined bytes.
    """

    __slots__ = ("_frames", "_masks", "_served", "payloads", "unserved")

    def __init__(self, frames: list[list[tuple[int, bytes]]], masks: dict[S, int]) -> None:
        """`frames` has a list for each topic, and in it each frame with its place in the log's order over all topics."""
        self._frames = frames
        self._masks = masks
        self.unserved: Iterator[tuple[S, int]] = iter(masks.items())
        """The subscribers with their masks. The iterator goes on where the last part stopped."""
        self._served = iter(masks)  # the same order: `mark_served` follows `unserved` with it
        self.payloads: dict[int, BatchPayload] = {}
        """The payloads that were made so far, by mask."""

    def payload(self, mask: int) -> BatchPayload:
        """Return the frames of these topics, joined in the log's order: the very same bytes at each call."""
        if (payload := self.payloads.get(mask)) is None:
            chosen = self._chosen(mask)
            data = b"".join([frame for _, frame in chosen])
            payload = self.payloads[mask] = data, len(chosen), WRITE_BYTES + len(data)
        return payload

    def mark_served(self, last: S) -> None:
        """Mark as served the subscribers that `unserved` has given. `last` is the newest of them."""
        for subscriber in self._served:
            self._masks[subscriber] = 0
            if subscriber is last:
                return

    def pop(self, subscriber: S) -> BatchPayload | None:
        """Return what this subscriber still has to get, and mark it as served. Return None when nothing is left for it."""
        if not (mask := self._masks.get(subscriber, 0)):
            return None
        self._masks[subscriber] = 0
        return self.payload(mask)

    def _chosen(self, mask: int) -> list[tuple[int, bytes]]:
        if mask & (mask - 1) == 0:
            return self._frames[mask.bit_length() - 1]
        chosen: list[tuple[int, bytes]] = []
        while mask:
            low = mask & -mask
            chosen += self._frames[low.bit_length() - 1]
            mask ^= low
        chosen.sort()  # the places are distinct, so frames are never compared
        return chosen


class Broadcast:
    """Writes batches to their subscribers, one part in each turn of the reactor.

    `call_soon` runs a callable in the next turn of the reactor. Without it everything is written at once, however long that takes.
    """

    def __init__(self, counters: HubCounters, call_soon: Callable[[Callable[[], None]], object] | None, part_bytes: int) -> None:
        self._counters = counters
        self._call_soon = call_soon
        self._part_bytes = part_bytes
        self._batches: list[Batch[Subscriber]] = []  # one for each dialect; the first may be partly written
        self._before: Delivery | None = None
        self._on_written: list[Callable[[], None]] = []
        self._scheduled = False

    def begin(self, batches: list[Batch[Subscriber]], before: Delivery, on_written: Callable[[], None] | None) -> None:
        """Write the rest of the last batches now, and then the first part of these.

        `before` is the last delivery before these batches: a subscriber whose send buffer is full falls behind there. `on_written`
        is called once everything is written. If the first part is everything, that is before this method returns.
        """
        self.finish()
        self._batches, self._before = batches, before
        if on_written is not None:
            self._on_written.append(on_written)
        self._write_part()

    def when_written(self, on_written: Callable[[], None]) -> None:
        """Call `on_written` once everything is written: now if nothing is left, else after the last part."""
        self._on_written.append(on_written)
        if not self._batches:
            self._report_written()

    def finish(self) -> None:
        """Write everything that is left, now."""
        for batch in self._batches:
            self._write(batch, UNLIMITED)
        self._batches = []
        self._report_written()

    def flush_subscriber(self, subscriber: Subscriber) -> None:
        """Write to this subscriber what is left for it, before anything about it changes."""
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
        """Write nothing more to this subscriber."""
        for batch in self._batches:
            batch.pop(subscriber)

    def _write_part(self) -> None:
        budget = UNLIMITED if self._call_soon is None else self._part_bytes
        while self._batches:
            budget = self._write(self._batches[0], budget)
            if budget <= 0:
                self._schedule_next_part()
                return
            del self._batches[0]
        self._report_written()

    def _schedule_next_part(self) -> None:
        if self._call_soon is not None and not self._scheduled:
            self._scheduled = True
            self._call_soon(self._write_next_part)

    def _write_next_part(self) -> None:
        self._scheduled = False
        self._write_part()

    def _write(self, batch: Batch[Subscriber], budget: int) -> int:
        """Write to the next subscribers until the budget is spent. Return the rest of it: 0 or less if subscribers may be left."""
        payloads = batch.payloads
        written = size = deliveries = cost = last_mask = 0
        data = b""
        for subscriber, mask in batch.unserved:
            if not mask or subscriber.behind:
                continue
            if mask != last_mask:  # saves a look-up: neighbours often get the same
                data, deliveries, cost = payloads.get(mask) or batch.payload(mask)
                last_mask = mask
            if subscriber.send(data):
                written += deliveries
                size += len(data)
            else:
                self._fall_behind(subscriber)
            budget -= cost
            if budget <= 0:
                batch.mark_served(subscriber)
                break
        self._counters.deliveries_out += written
        self._counters.bytes_out += size
        return budget

    def _fall_behind(self, subscriber: Subscriber) -> None:
        assert self._before is not None
        subscriber.fall_behind(self._before)
        self._counters.fell_behind += 1
        subscriber.peer.await_drain()

    def _report_written(self) -> None:
        on_written, self._on_written = self._on_written, []
        for each in on_written:
            each()
