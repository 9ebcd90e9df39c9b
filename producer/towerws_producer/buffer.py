"""The bounded buffer between the callers and the thread that publishes.

An event is waiting, then in flight, then gone. Both kinds count against one bound in bytes. What exceeds the bound makes the
oldest waiting events go: of a live stream the newest ones are worth most. After a lost connection everything in flight waits
again, in front and in its old order.

Nothing here waits or locks: the caller holds the lock (towerws_producer.worker).
"""

from collections import OrderedDict, deque
from typing import Callable, Deque, List, Optional

from towerws_producer.errors import ProducerError

EVENT_BYTES = 400
"""What an event occupies beside its payload (CPython 3.11: the object, its strings, its places in the containers)."""

EVICT_PART = 32
"""Which part of the bound is freed at once when it is met."""

Resolve = Callable[[Optional[ProducerError]], None]
"""Told once what became of an event: None when it was confirmed."""


class Event:
    """One event on its way."""

    __slots__ = ("body", "message_id", "resolve", "sends", "sent_at", "seq", "size", "timestamp", "topic")

    def __init__(self, topic: str, body: bytes, seq: int, message_id: Optional[str], timestamp: int, resolve: Optional[Resolve]) -> None:
        self.topic = topic
        self.body = body
        self.seq = seq
        self.message_id = message_id
        self.timestamp = timestamp
        self.resolve = resolve
        self.size = len(body) + EVENT_BYTES
        self.sends = 0
        self.sent_at = 0.0


class Buffer:
    """Events that wait and events in flight, within `max_bytes` together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: Deque[Event] = deque()
        self._in_flight: OrderedDict[int, Event] = OrderedDict()
        self.bytes = 0
        self.bytes_in_flight = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    @property
    def in_flight(self) -> int:
        """How many events were sent and not yet confirmed."""
        return len(self._in_flight)

    @property
    def waiting(self) -> int:
        """How many events were not sent, or have to be sent again."""
        return len(self._waiting)

    @property
    def oldest(self) -> Optional[Event]:
        """The event that has been here longest."""
        if self._in_flight:
            return next(iter(self._in_flight.values()))
        return self._waiting[0] if self._waiting else None

    def add(self, event: Event) -> List[Event]:
        """Take an event. Returns those that had to go for it; when everything else is in flight, that is the event itself."""
        self._waiting.append(event)
        self.bytes += event.size
        if self.bytes <= self._max_bytes:
            return []
        # A piece at once: an outage costs each caller the same little, and not a removal for each event.
        keep = self._max_bytes - self._max_bytes // EVICT_PART
        gone = []
        while self.bytes > keep and self._waiting:
            victim = self._waiting.popleft()
            self.bytes -= victim.size
            gone.append(victim)
        return gone

    def take(self, max_events: int, max_in_flight: int, max_bytes_in_flight: int) -> List[Event]:
        """Move the oldest waiting events into flight: as many as the bounds allow, but one event may always fly."""
        taken: List[Event] = []
        while self._waiting and len(taken) < max_events and len(self._in_flight) < max_in_flight:
            event = self._waiting[0]
            if self._in_flight and self.bytes_in_flight + event.size > max_bytes_in_flight:
                break
            self._waiting.popleft()
            self._in_flight[event.seq] = event
            self.bytes_in_flight += event.size
            taken.append(event)
        return taken

    def done(self, event: Event) -> bool:
        """Let go of an event in flight. False when it is no longer here."""
        if self._in_flight.pop(event.seq, None) is None:
            return False
        self.bytes -= event.size
        self.bytes_in_flight -= event.size
        return True

    def recall(self) -> List[Event]:
        """Have everything in flight wait again. Returns those events, oldest first."""
        recalled = list(self._in_flight.values())
        self._in_flight.clear()
        self.bytes_in_flight = 0
        self._waiting.extendleft(reversed(recalled))
        return recalled

    def with_resolve(self) -> List[Event]:
        """The events that somebody waits for."""
        return [event for event in [*self._in_flight.values(), *self._waiting] if event.resolve is not None]

    def remove_waiting(self, events: List[Event]) -> None:
        """Let go of these events wherever they wait."""
        gone = {event.seq for event in events}
        kept = [event for event in self._waiting if event.seq not in gone]
        self.bytes -= sum(event.size for event in self._waiting if event.seq in gone)
        self._waiting = deque(kept)

    def clear(self) -> List[Event]:
        """Let go of everything. Returns it, oldest first."""
        gone = [*self._in_flight.values(), *self._waiting]
        self._in_flight.clear()
        self._waiting.clear()
        self.bytes = self.bytes_in_flight = 0
        return gone
