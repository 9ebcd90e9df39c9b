"""History: the recent deliveries, by topic and by position, bounded in bytes and in age. Also the console's searches in it.

The oldest delivery of all is also the oldest of its topic, so dropping it costs two pops. Each topic's deliveries are in the order
of `seq`. A reader's missed deliveries are found by bisection in each of its topics and then merged. So a resume costs what was
missed, not the length of history.

`floor` is the newest dropped delivery: everything after it is held. `barrier` is the newest mark after a hole in the log. Readers
that are behind are still fed the deliveries before the barrier. But no client may resume from there, because deliveries between
that place and the mark are lost.

Each search has a bound in deliveries and in bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict, deque
from collections.abc import Container, Iterator, Mapping
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from towerws.core.deliveries import BEFORE, Delivery, Fingerprint, parse_position
from towerws.core.topics import WITHHELD

ENTRY_BYTES = 320
"""A delivery's memory without its texts: the objects, the numbers, the entries in the indexes (CPython 3.11, tracemalloc)."""

TOPIC_BYTES = 170
"""A topic's memory while a delivery of it is held: its log, and the entry in the index of topics."""

MESSAGE_ID_BYTES = 136
"""The memory of a `message_id` without its characters: the string's head, the pair with its topic, and their index entry."""

FRAME_OVERHEAD_BYTES = 128
"""Roughly what a delivery's frame takes beyond its payload: the frame's head, and in `towerws.v1` the position and the names."""

MAX_EVICTED_TOPICS = 10_000
"""For this many evicted topics we remember the last dropped `seq` (about 2 MiB)."""

_seq = attrgetter("seq")
_GONE = Delivery(-1, "", b"", -1, "")

MAX_FOUND_EVENTS = 200
"""The most events in one answer."""

MAX_SEARCHED = 5000
"""The most deliveries that one search reads, the newest ones: 2.2 ms with 1,000 bytes each."""

MAX_SEARCHED_BYTES = 16 * 1024 * 1024
"""A search ends once it has read this many bytes of payloads: 5.6 ms."""

MAX_FOUND_TOPICS = 200


class _TopicLog:
    """One topic's deliveries, oldest first. `first` is the index of the oldest one that is held.

    Dropped deliveries leave `_GONE` before it. These are cut off once they are the larger half of the list.
    """

    __slots__ = ("deliveries", "dropped", "first")

    def __init__(self, dropped: int) -> None:
        self.deliveries: list[Delivery] = []
        self.first = 0
        self.dropped = dropped  # the seq of the newest dropped delivery of this topic

    def drop_oldest(self) -> bool:
        """Drop the oldest delivery. Return True when none is left."""
        self.dropped = self.deliveries[self.first].seq
        self.deliveries[self.first] = _GONE  # frees the payload before the list is cut
        self.first += 1
        if self.first == len(self.deliveries):
            return True
        if self.first > 32 and self.first * 2 > len(self.deliveries):
            del self.deliveries[: self.first]
            self.first = 0
        return False

    def after(self, seq: int) -> Iterator[Delivery]:
        """Return the held deliveries after `seq`, oldest first."""
        start = bisect_right(self.deliveries, seq, lo=self.first, key=_seq)
        # By index: `islice` would walk from the list's beginning.
        return map(self.deliveries.__getitem__, range(start, len(self.deliveries)))


class History:
    """The recent deliveries of one log. All times are seconds of one clock of the caller's choice."""

    def __init__(self, max_bytes: int, max_age_s: float) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._topics: dict[str, _TopicLog] = {}
        self.topics: Container[str] = self._topics.keys()
        """The topics of which a delivery is held. A view, which the hot path asks for each message."""
        self._evicted_topics: OrderedDict[str, int] = OrderedDict()  # topic without a log -> its `dropped`, smallest first
        self._max_forgotten = -1  # the largest `dropped` that was removed from there
        self._offsets: dict[int, Delivery] = {}
        self._message_ids: dict[tuple[str, str], Delivery] = {}
        self._log: deque[Delivery] = deque()
        self._seq = 0
        self.weight_bytes = 0
        """The memory of everything that is held, in bytes."""
        self.head = self.floor = self.barrier = Delivery(0, "", b"", -1, "")
        self.newest: Delivery | None = None
        """The last appended delivery, even if it is no longer held."""

    def begin(self, offset: int, epoch: str) -> None:
        """Set the position before the first delivery. A client that resumes from there gets everything."""
        self.head = self.floor = self.barrier = Delivery(0, "", b"", offset, epoch)

    def __len__(self) -> int:
        return len(self._log)

    def has_message(self, topic: str, message_id: str) -> bool:
        """Return whether a delivery of this topic with this `message_id` is held. Then a producer has sent it again."""
        return (topic, message_id) in self._message_ids

    def at(self, offset: int) -> Delivery | None:
        """Return the delivery with this offset, if it is held or was appended last."""
        newest = self.newest
        return newest if newest is not None and newest.offset == offset else self._offsets.get(offset)

    def entries(self) -> list[Delivery]:
        """Return everything that is held, oldest first."""
        return list(self._log)

    def upto(self, seq: int) -> Delivery | None:
        """Return the newest held delivery whose `seq` is not larger than this one."""
        place = bisect_right(self._log, seq, key=_seq)
        return self._log[place - 1] if place else None

    def recent_topics(self, deliveries: int) -> list[str]:
        """Return the topics of this many newest deliveries, newest first and each once."""
        return list(dict.fromkeys(delivery.topic for delivery in islice(reversed(self._log), deliveries)))

    def newest_first(self) -> Iterator[Delivery]:
        """Return the held deliveries and markers, newest first. Nothing may be appended while they are read."""
        return reversed(self._log)

    def newest_of(self, topic: str) -> Delivery | None:
        """Return the newest held delivery of a topic."""
        log = self._topics.get(topic)
        return None if log is None else log.deliveries[-1]

    @property
    def oldest(self) -> Delivery | None:
        """The oldest delivery to compare with: the oldest one held, or else the last appended one."""
        return self._log[0] if self._log else self.newest

    def append(self, topic: str, payload: bytes, offset: int, epoch: str | Fingerprint, message_id: str | None, now: float) -> Delivery:
        """Append the newest delivery, and return it. Drop old ones beyond the bound. `offset` must be larger than each that is held."""
        self._seq += 1
        delivery = Delivery(self._seq, topic, payload, offset, epoch, message_id, now)
        if (log := self._topics.get(topic)) is None:
            log = self._topics[topic] = _TopicLog(self._evicted_topics.pop(topic, self._max_forgotten))
            self.weight_bytes += TOPIC_BYTES
        log.deliveries.append(delivery)
        self._log.append(delivery)
        self._offsets[offset] = delivery
        size = len(payload) + len(topic) + ENTRY_BYTES  # as in `_forget`: a function for both costs 90 ns a delivery
        if message_id is not None:
            self._message_ids[topic, message_id] = delivery
            size += len(message_id) + MESSAGE_ID_BYTES
        self.head = self.newest = delivery
        self.weight_bytes += size
        while self.weight_bytes > self._max_bytes:
            self._drop_oldest()
        return delivery

    def trim(self, now: float) -> None:
        """Drop the deliveries that are older than the age bound."""
        horizon = now - self._max_age_s
        while self._log and self._log[0].arrived < horizon:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._log.popleft()
        if self._topics[oldest.topic].drop_oldest():
            del self._topics[oldest.topic]
            self.weight_bytes -= TOPIC_BYTES
            self._evicted_topics[oldest.topic] = oldest.seq
            if len(self._evicted_topics) > MAX_EVICTED_TOPICS:
                # `max`, because `_drop_newest` adds topics out of order.
                self._max_forgotten = max(self._max_forgotten, self._evicted_topics.popitem(last=False)[1])
        self._forget(oldest)
        self.floor = oldest

    def _drop_newest(self) -> None:
        newest = self._log.pop()
        log = self._topics[newest.topic]
        log.deliveries.pop()
        if log.first == len(log.deliveries):
            del self._topics[newest.topic]
            self.weight_bytes -= TOPIC_BYTES
            if log.dropped > self._max_forgotten:
                self._evicted_topics[newest.topic] = log.dropped
        self._forget(newest)

    def _forget(self, delivery: Delivery) -> None:
        if self._offsets.get(delivery.offset) is delivery:
            del self._offsets[delivery.offset]
        size = len(delivery.payload) + len(delivery.topic) + ENTRY_BYTES
        if delivery.message_id is not None:
            size += len(delivery.message_id) + MESSAGE_ID_BYTES
            key = delivery.topic, delivery.message_id
            if self._message_ids.get(key) is delivery:
                del self._message_ids[key]
        self.weight_bytes -= size

    def mark(self, offset: int, epoch: str, *, barrier: bool = True) -> Delivery:
        """Put a mark after the head, and return it. With `barrier` clients can't resume from any position before it.

        `epoch` must be used only once for this offset. If it is empty, clients can't resume from the mark either.
        """
        self._seq += 1
        self.head = Delivery(self._seq, "", b"", offset, epoch)
        if barrier:
            self.barrier = self.head
        return self.head

    def rewind(self, offset: int) -> Delivery | None:
        """Drop the deliveries after this offset: the log lost them and goes on with others. Return the newest one left, or None."""
        while self._log and self._log[-1].offset > offset:
            self._drop_newest()
        self.newest = self._log[-1] if self._log else None
        return self.newest

    def clear(self) -> None:
        """Drop every delivery: their log is gone, and its offsets will be used again."""
        while self._log:
            self._drop_oldest()
        self.newest = None
        self.floor = self.head

    def find(self, position: str) -> Delivery | None:
        """Return the delivery or mark at `position`, if everything after it is held. Return None for any other text."""
        if not (match := parse_position(position)):
            return None
        found: Delivery | None
        if position == self.barrier.position:
            found = self.barrier
        elif position.endswith(BEFORE):
            found = self._before(int(match[1]), position)
        else:
            offset = int(match[1])
            found = self._offsets.get(offset, self.floor)
            if found.position != position:
                return None
        if found is None or found.seq < self.barrier.seq or found.seq < self.floor.seq:
            return None
        return found

    def _before(self, offset: int, position: str) -> Delivery | None:
        """Return the place just before the delivery at `position`: the end of a gap that another daemon reported."""
        delivery = self._offsets.get(offset)
        if delivery is None or delivery.position + BEFORE != position:
            return None
        return Delivery(delivery.seq - 1, "", b"", offset, position.partition("-")[2])

    def after(self, seq: int, topics: Mapping[str, int], upto: int, max_bytes: int) -> list[Delivery]:
        """Return the next deliveries for a reader that is behind, oldest first.

        `topics` maps the reader's topics to the `seq` after which it gets their deliveries. The reader is at `seq`, and gets nothing
        after `upto`. The list ends at `max_bytes`, each delivery counted with its payload and `FRAME_OVERHEAD_BYTES`. The list is
        empty only if nothing is left: a delivery that is larger than `max_bytes` comes alone.
        """
        logs = self._topics
        unread = [
            log.after(max(seq, joined)) for topic, joined in topics.items() if (log := logs.get(topic)) and log.deliveries[-1].seq > seq
        ]
        found: list[Delivery] = []
        size = 0
        for delivery in unread[0] if len(unread) == 1 else merge(*unread, key=_seq):
            if delivery.seq > upto:
                break
            size += len(delivery.payload) + FRAME_OVERHEAD_BYTES
            if size > max_bytes and found:
                break
            found.append(delivery)
        return found

    def lost(self, seq: int, topics: Mapping[str, int]) -> list[str]:
        """Return the reader's topics of which a delivery after `seq` was dropped already.

        `topics` is the same as for `after`. The answer is exact until `MAX_EVICTED_TOPICS` topics have been evicted. After that it
        may name a topic that lost nothing, but it never leaves out a topic that lost a delivery.
        """
        if seq >= self.floor.seq:
            return []
        lost = []
        for topic, joined in topics.items():
            log = self._topics.get(topic)
            dropped = self._evicted_topics.get(topic, self._max_forgotten) if log is None else log.dropped
            if dropped > max(seq, joined):
                lost.append(topic)
        return lost


class Found(NamedTuple):
    """The result of a search, the newest event first."""

    events: list[Delivery]
    complete: bool
    """Whether these are all events that were asked for and are still held. Otherwise older ones were left out."""


def find_events(history: History, *, after: int = -1, group: str = "", text: str = "") -> Found:
    """Return the newest events whose `seq` is larger than `after`, of this group (empty: of all groups).

    The topic or the payload must contain `text`, in the same spelling and case.
    """
    wanted = text.encode()
    events: list[Delivery] = []
    size = 0
    for count, delivery in enumerate(history.newest_first()):
        if delivery.seq <= after:
            break
        if count >= MAX_SEARCHED or len(events) >= MAX_FOUND_EVENTS or size >= MAX_SEARCHED_BYTES:
            return Found(events, complete=False)
        topic = delivery.topic
        if topic in WITHHELD or (group and topic.partition(".")[0] != group):
            continue
        if wanted and text not in topic:
            size += len(delivery.payload)
            if wanted not in delivery.payload:
                continue
        events.append(delivery)
    return Found(events, complete=True)


def count_topics(history: History) -> list[tuple[str, int, Delivery]]:
    """Return the topics of the newest `MAX_SEARCHED` deliveries, at most `MAX_FOUND_TOPICS`.

    Each comes with the number of its events there, and the newest one. The topic with the newest event is first.
    """
    counts: Counter[str] = Counter()
    newest: dict[str, Delivery] = {}
    for delivery in islice(history.newest_first(), MAX_SEARCHED):
        if delivery.topic not in WITHHELD:
            counts[delivery.topic] += 1
            newest.setdefault(delivery.topic, delivery)
    return [(topic, counts[topic], delivery) for topic, delivery in list(newest.items())[:MAX_FOUND_TOPICS]]
