"""The bounded buffer between the callers and the thread that publishes.

An event waits, then it is in flight, then it is removed. An event that the broker nacks is set aside, and waits again later. All events
count against one bound in bytes. Beyond the bound, the oldest events that are not in flight are dropped, because in a live stream the
newest events are worth most. After a lost connection all events in flight wait again, before all others and in their old order.

An event that waits and was never sent is a plain tuple of texts and numbers. Python's garbage collector skips such tuples. With
20,000 objects instead of tuples, a collection took 10 to 15 ms, and a call of `emit` had to wait for it.

Nothing here waits or locks: the caller holds the lock (towerws_producer.worker).
"""

from collections import deque
from typing import Callable, Deque, Dict, List, Optional, Tuple

from towerws_producer.errors import ProducerError

EVENT_BYTES = 420
"""Bytes that an event in flight takes in addition to its payload (CPython 3.11, by tracemalloc). One that was never sent takes 243."""

EVICT_PART = 256
"""When the bound is exceeded, one part in 256 of it is freed at once. 64 KiB of 16 MiB are about 80 events, and take 15 µs."""


class Publication:
    """A caller's wait for the confirm of an event. `resolve` is called once, with None for a confirmed event, otherwise with an error.

    `resolve` is None once it was called, or if the caller waits no longer.
    """

    __slots__ = ("error", "message_id", "resolve")

    def __init__(self, message_id: Optional[str], resolve: Optional[Callable[[Optional[ProducerError]], None]]) -> None:
        self.message_id = message_id
        self.resolve = resolve
        self.error: Optional[ProducerError] = None
        """The error of the last attempt, if the event is sent again."""


Entry = Tuple[str, bytes, int, int, Optional[Publication]]
"""An event that was never sent: topic, body, number, time in milliseconds since 1970, publication."""

Dropped = Tuple[str, Optional[Publication]]
"""What remains of a dropped event: its topic and its publication."""


class Event:
    """An event that was sent at least once, or is about to be."""

    __slots__ = ("body", "emitted_ms", "nacks", "number", "publication", "sends", "sent_at", "size", "topic")

    def __init__(self, topic: str, body: bytes, number: int, emitted_ms: int, publication: Optional[Publication]) -> None:
        self.topic = topic
        self.body = body
        self.number = number
        self.emitted_ms = emitted_ms
        self.publication = publication
        self.size = len(body) + EVENT_BYTES
        self.sends = 0
        self.nacks = 0
        self.sent_at = 0.0


class Watch:
    """Calls `done` when the events that were buffered at its start have been removed.

    `last` is the highest number of those events, and `left` how many of them remain.
    """

    def __init__(self, last: int, left: int, done: Callable[[], None]) -> None:
        self.last = last
        self.left = left
        self.done = done


class Buffer:
    """Events that wait and events in flight, within `max_bytes` together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._again: Deque[Event] = deque()  # these are sent before `_waiting`
        self._waiting: Deque[Entry] = deque()
        self._in_flight: Dict[int, Event] = {}
        self._set_aside: Deque[Event] = deque()
        self._watches: List[Watch] = []
        self.bytes = 0
        self.bytes_in_flight = 0

    def __len__(self) -> int:
        return len(self._again) + len(self._waiting) + len(self._in_flight) + len(self._set_aside)

    @property
    def in_flight(self) -> int:
        """The number of events that were sent and not yet confirmed."""
        return len(self._in_flight)

    @property
    def waiting(self) -> int:
        """The number of events that can be sent now."""
        return len(self._again) + len(self._waiting)

    @property
    def set_aside(self) -> int:
        """The number of nacked events that wait for `release`."""
        return len(self._set_aside)

    def add(self, entry: Entry) -> List[Dropped]:
        """Add an event. Returns the events that were dropped to make room. If the events in flight leave no room, that is the new event."""
        size = len(entry[1]) + EVENT_BYTES
        if self.bytes_in_flight + size > self._max_bytes:
            return [(entry[0], entry[4])]
        self._waiting.append(entry)
        self.bytes += size
        if self.bytes <= self._max_bytes:
            return []
        # Free many at once, so that in an outage few calls of `emit` have to remove events.
        keep = self._max_bytes - self._max_bytes // EVICT_PART
        gone: List[Dropped] = []
        while self.bytes > keep:
            older = self._set_aside or self._again
            if older:
                event = older.popleft()
                gone.append(self._gone(event.topic, event.body, event.number, event.publication))
            elif len(self._waiting) > 1:
                topic, body, number, _, publication = self._waiting.popleft()
                gone.append(self._gone(topic, body, number, publication))
            else:
                break
        return gone

    def take(self, max_events: int, max_in_flight: int, max_bytes_in_flight: int) -> List[Event]:
        """Move the oldest waiting events into flight, as many as the bounds allow. One event is always allowed."""
        taken: List[Event] = []
        while self.waiting and len(taken) < max_events and len(self._in_flight) < max_in_flight:
            body = self._again[0].body if self._again else self._waiting[0][1]
            size = len(body) + EVENT_BYTES
            if self._in_flight and self.bytes_in_flight + size > max_bytes_in_flight:
                break
            event = self._again.popleft() if self._again else Event(*self._waiting.popleft())
            self._in_flight[event.number] = event
            self.bytes_in_flight += size
            taken.append(event)
        return taken

    def done(self, event: Event) -> bool:
        """Remove an event in flight. False if it is not in flight."""
        if self._in_flight.pop(event.number, None) is None:
            return False
        self.bytes_in_flight -= event.size
        self._gone(event.topic, event.body, event.number, event.publication)
        return True

    def put_back(self, event: Event) -> None:
        """Let an event in flight wait again, in front of all others."""
        if self._in_flight.pop(event.number, None) is not None:
            self.bytes_in_flight -= event.size
            self._again.appendleft(event)

    def put_aside(self, event: Event) -> bool:
        """Keep an event in flight for `release`. False if it is not in flight."""
        if self._in_flight.pop(event.number, None) is None:
            return False
        self.bytes_in_flight -= event.size
        self._set_aside.append(event)
        return True

    def release(self, most: int) -> None:
        """Let up to `most` of the set-aside events wait again, in front. The order in which they were set aside is kept."""
        released = [self._set_aside.popleft() for _ in range(min(most, len(self._set_aside)))]
        self._again.extendleft(reversed(released))

    def recall(self) -> List[Event]:
        """Let all events that were sent wait again, also nacked ones. Returns the events that were in flight, oldest first."""
        recalled = sorted(self._in_flight.values(), key=_number)
        everything = sorted([*recalled, *self._set_aside, *self._again], key=_number)
        self._in_flight.clear()
        self._set_aside.clear()
        self.bytes_in_flight = 0
        self._again = deque(everything)
        return recalled

    def remove_published(self) -> List[Dropped]:
        """Remove the events that wait to be sent and whose callers wait for a confirm. Returns them."""
        gone: List[Dropped] = []
        kept: Deque[Entry] = deque()
        for events in (self._again, self._set_aside):
            for event in [event for event in events if event.publication is not None and event.publication.resolve is not None]:
                events.remove(event)
                gone.append(self._gone(event.topic, event.body, event.number, event.publication))
        for entry in self._waiting:
            topic, body, number, _, publication = entry
            if publication is None or publication.resolve is None:
                kept.append(entry)
            else:
                gone.append(self._gone(topic, body, number, publication))
        self._waiting = kept
        return gone

    def remove_again(self, event: Event) -> None:
        """Remove an event that waits to be sent again."""
        self._again.remove(event)
        self._gone(event.topic, event.body, event.number, event.publication)

    def clear(self) -> List[Dropped]:
        """Remove all events. Returns them, oldest first."""
        self.recall()
        gone = [self._gone(event.topic, event.body, event.number, event.publication) for event in self._again]
        gone += [self._gone(topic, body, number, publication) for topic, body, number, _, publication in self._waiting]
        self._again.clear()
        self._waiting.clear()
        return gone

    def watch(self, last: int, done: Callable[[], None]) -> Optional[Watch]:
        """Call `done` once all current events, whose numbers go up to `last`, have been removed. Returns None if there are no events."""
        if not len(self):
            return None
        watch = Watch(last, len(self), done)
        self._watches.append(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Cancel the watch."""
        self._watches.remove(watch)

    def _gone(self, topic: str, body: bytes, number: int, publication: Optional[Publication]) -> Dropped:
        self.bytes -= len(body) + EVENT_BYTES
        for watch in self._watches:
            if number <= watch.last:
                watch.left -= 1
                if not watch.left:
                    watch.done()
        return topic, publication


def _number(event: Event) -> int:
    return event.number
