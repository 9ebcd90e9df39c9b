"""A turn, as the members of one dialect are due it: framed once, joined once for all who are due the same.

Members that listen to several of its topics are due their frames in the log's order over all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from towerws.core.deliveries import Delivery
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
