"""A turn, as the members of one dialect are due it: framed once, joined once for all who are due the same.

Members that listen to several of its topics are due their frames in the log's order over all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from towerws.core.deliveries import Delivery
from towerws.core.wire import Dialect

WRITE_OCTETS = 16 * 1024
"""What a write costs beside its octets, in octets: some 4 µs, in which the kernel copies so many (make bench, burst and steady)."""

M = TypeVar("M")


Share = tuple[bytes, int, int]
"""What members that are due the same topics are sent: the joined frames, how many they are, and what a write of them costs."""


class Turn(Generic[M]):
    """Who is due what of these deliveries. `rest` gives each member with the topics that it is due, as a set of bits: 0 for
    one that was due something, and is no more.
    """

    __slots__ = ("_due", "_frames", "_passed", "rest", "shares")

    def __init__(self, deliveries: Iterable[Delivery], dialect: Dialect, audience: Mapping[str, Mapping[M, None]]) -> None:
        """`audience` has the members that listen to a topic."""
        frames: dict[str, list[tuple[int, bytes]]] = {}  # topic -> its frames, each with its place in the turn
        for place, delivery in enumerate(deliveries):
            if (found := frames.get(delivery.topic)) is not None:
                found.append((place, dialect.frame(delivery)))
            elif delivery.topic in audience:
                frames[delivery.topic] = [(place, dialect.frame(delivery))]
        self._frames = list(frames.values())
        due = self._due = dict[M, int]()
        for number, topic in enumerate(frames):
            bit = 1 << number
            if due:
                for member in audience[topic]:
                    due[member] = due.get(member, 0) | bit
            else:
                due.update(dict.fromkeys(audience[topic], bit))
        self.rest: Iterator[tuple[M, int]] = iter(due.items())
        self._passed = iter(due)
        self.shares: dict[int, Share] = {}
        """Those that somebody has asked for, by set of topics."""

    def share(self, bits: int) -> Share:
        """What the members that are due these topics are sent: the very same bytes for all of them."""
        if (share := self.shares.get(bits)) is None:
            chosen = self._chosen(bits)
            data = b"".join([frame for _, frame in chosen])
            share = self.shares[bits] = data, len(chosen), WRITE_OCTETS + len(data)
        return share

    def pass_by(self, last: M) -> None:
        """All members up to this one have been seen to: they are due nothing any more."""
        for member in self._passed:
            self._due[member] = 0
            if member is last:
                return

    def take(self, member: M) -> Share | None:
        """What this member is still due. From then on it is due nothing."""
        if not (bits := self._due.get(member, 0)):
            return None
        self._due[member] = 0
        return self.share(bits)

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
