"""History: the recent deliveries, by topic and by position, within a bound in bytes and one in age.

The oldest delivery of all is always also the oldest of its topic, so dropping it costs two pops. A topic's deliveries are in
the order of `seq`; what a reader missed is found by bisection in each of its topics and merged, so a resume costs what was
missed, not the length of history.

`floor` is the newest delivery that was dropped: everything after it is held. `barrier` is the newest mark behind a hole in the
log: deliveries before it are still fed to readers that are behind, but nobody may resume from there, since something between
them and the mark can't be had.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from heapq import merge
from itertools import islice
from operator import attrgetter

from towerws.core.deliveries import BEFORE, Delivery, Fingerprint, parse_position

ENTRY_BYTES = 320
"""What a delivery weighs beyond its texts: the objects, its numbers, its places in the indexes (CPython 3.11, tracemalloc)."""

TOPIC_BYTES = 170
"""What a topic weighs while a delivery of it is held: its log, and its place among the topics."""

MESSAGE_ID_BYTES = 136
"""What a `message_id` weighs beyond its characters: the text's head, its pair with the topic, and their place in the index."""

READ_BYTES = 128
"""What a delivery weighs beside its payload when it is read: its frame, and in `towerws.v1` its position and names."""

MAX_FORMER_TOPICS = 10_000
"""For so many topics that are no longer held it is remembered how far they had come (about 2 MiB)."""

_seq = attrgetter("seq")
_GONE = Delivery(-1, "", b"", -1, "")


class _TopicLog:
    """One topic's deliveries, oldest first. Dropped ones are skipped by `first` and cut off once they are the larger half."""

    __slots__ = ("deliveries", "dropped", "first")

    def __init__(self, dropped: int) -> None:
        self.deliveries: list[Delivery] = []
        self.first = 0
        self.dropped = dropped  # seq of the newest delivery of this topic that was dropped

    def drop_oldest(self) -> bool:
        """Drop one; True when none is left."""
        self.dropped = self.deliveries[self.first].seq
        self.deliveries[self.first] = _GONE  # or its payload would stay until the list is cut
        self.first += 1
        if self.first == len(self.deliveries):
            return True
        if self.first > 32 and self.first * 2 > len(self.deliveries):
            del self.deliveries[: self.first]
            self.first = 0
        return False

    def after(self, seq: int) -> Iterator[Delivery]:
        """The held deliveries behind `seq`, oldest first."""
        start = bisect_right(self.deliveries, seq, lo=self.first, key=_seq)
        # By number, since an iterator (and so `islice`) would walk from the list's beginning.
        return map(self.deliveries.__getitem__, range(start, len(self.deliveries)))


class History:
    """The recent deliveries of one log. Times are seconds of whatever clock the caller uses throughout."""

    def __init__(self, max_bytes: int, max_age_s: float) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._topics: dict[str, _TopicLog] = {}
        self._former_topics: OrderedDict[str, int] = OrderedDict()  # topic without a log -> its `dropped`, smallest first
        self._forgotten = -1  # largest `dropped` that was put out of there
        self._offsets: dict[int, Delivery] = {}
        self._message_ids: dict[tuple[str, str], Delivery] = {}
        self._log: deque[Delivery] = deque()
        self._seq = 0
        self.weight_bytes = 0
        """What is held, with each delivery's own weight."""
        self.head = self.floor = self.barrier = Delivery(0, "", b"", -1, "")
        self.newest: Delivery | None = None
        """The delivery that was appended last, also when it is no longer held."""

    def begin(self, offset: int, epoch: str) -> None:
        """Say where the log stands before the first delivery: from this position everything can be had."""
        self.head = self.floor = self.barrier = Delivery(0, "", b"", offset, epoch)

    def __len__(self) -> int:
        return len(self._log)

    def __contains__(self, topic: str) -> bool:
        """Whether a delivery of this topic is held."""
        return topic in self._topics

    def has_message(self, topic: str, message_id: str) -> bool:
        """Whether a delivery of this topic with this `message_id` is held: a producer sent it again."""
        return (topic, message_id) in self._message_ids

    def at(self, offset: int) -> Delivery | None:
        """The delivery with this offset, if it is held or was appended last."""
        newest = self.newest
        return newest if newest is not None and newest.offset == offset else self._offsets.get(offset)

    def recent_topics(self, deliveries: int) -> list[str]:
        """The topics of the newest so many deliveries, the newest first, each once."""
        return list(dict.fromkeys(delivery.topic for delivery in islice(reversed(self._log), deliveries)))

    @property
    def oldest(self) -> Delivery | None:
        """The oldest delivery that can still be compared with: the oldest that is held, else the last that was appended."""
        return self._log[0] if self._log else self.newest

    def append(self, topic: str, payload: bytes, offset: int, epoch: str | Fingerprint, message_id: str | None, now: float) -> Delivery:
        """Take in the newest delivery. Its offset must be larger than that of each delivery that is held."""
        self._seq += 1
        delivery = Delivery(self._seq, topic, payload, offset, epoch, message_id, now)
        if (log := self._topics.get(topic)) is None:
            log = self._topics[topic] = _TopicLog(self._former_topics.pop(topic, self._forgotten))
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
        """Drop what is older than the age bound."""
        horizon = now - self._max_age_s
        while self._log and self._log[0].arrived < horizon:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._log.popleft()
        if self._topics[oldest.topic].drop_oldest():
            del self._topics[oldest.topic]
            self.weight_bytes -= TOPIC_BYTES
            self._former_topics[oldest.topic] = oldest.seq
            if len(self._former_topics) > MAX_FORMER_TOPICS:
                # The largest, not the last: `_drop_newest` brings in topics out of their order.
                self._forgotten = max(self._forgotten, self._former_topics.popitem(last=False)[1])
        self._forget(oldest)
        self.floor = oldest

    def _drop_newest(self) -> None:
        newest = self._log.pop()
        log = self._topics[newest.topic]
        log.deliveries.pop()
        if log.first == len(log.deliveries):
            del self._topics[newest.topic]
            self.weight_bytes -= TOPIC_BYTES
            if log.dropped > self._forgotten:
                self._former_topics[newest.topic] = log.dropped
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
        """Put a mark behind the head. With `barrier` no position before it can be resumed from any more.

        `epoch` must be used only once for this offset.
        """
        self._seq += 1
        self.head = Delivery(self._seq, "", b"", offset, epoch)
        if barrier:
            self.barrier = self.head
        return self.head

    def rewind(self, offset: int) -> Delivery | None:
        """Forget the deliveries behind this offset: the log lost them, and goes on with others. The newest one left, if any is held."""
        while self._log and self._log[-1].offset > offset:
            self._drop_newest()
        self.newest = self._log[-1] if self._log else None
        return self.newest

    def clear(self) -> None:
        """Forget every delivery, because the log they are from is gone and its offsets mean something else now."""
        while self._log:
            self._drop_oldest()
        self.newest = None
        self.floor = self.head

    def find(self, position: str) -> Delivery | None:
        """The delivery or mark that `position` names, if everything after it is held; else None, whatever the text is."""
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
        """The place just before the delivery that `position` names, which is the end of a gap that another daemon told of."""
        delivery = self._offsets.get(offset)
        if delivery is None or delivery.position + BEFORE != position:
            return None
        return Delivery(delivery.seq - 1, "", b"", offset, position.partition("-")[2])

    def after(self, seq: int, topics: Mapping[str, int], upto: int, max_bytes: int) -> list[Delivery]:
        """The next deliveries for a reader that is behind: those it is due, oldest first.

        A reader at `seq` is due, of each of its topics, what lies behind `seq` and behind the number given for the topic, but
        nothing behind `upto`. The list ends where `max_bytes` are reached (each with `READ_BYTES`), and is not empty while
        anything is due.
        """
        logs = self._topics
        due = [log.after(max(seq, joined)) for topic, joined in topics.items() if (log := logs.get(topic)) and log.deliveries[-1].seq > seq]
        found: list[Delivery] = []
        size = 0
        for delivery in due[0] if len(due) == 1 else merge(*due, key=_seq):
            if delivery.seq > upto:
                break
            size += len(delivery.payload) + READ_BYTES
            if size > max_bytes and found:
                break
            found.append(delivery)
        return found

    def lost(self, seq: int, topics: Mapping[str, int]) -> list[str]:
        """Those of a reader's topics of which something behind `seq` was dropped already.

        Exact while no more than `MAX_FORMER_TOPICS` topics have been dropped altogether; beyond that a topic may be named that
        lost nothing, never the other way round.
        """
        if seq >= self.floor.seq:
            return []
        lost = []
        for topic, joined in topics.items():
            log = self._topics.get(topic)
            dropped = self._former_topics.get(topic, self._forgotten) if log is None else log.dropped
            if dropped > max(seq, joined):
                lost.append(topic)
        return lost
