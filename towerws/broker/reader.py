"""What the stream reader and the queue reader share: how far was read, and what they tell the session."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from twisted.internet import interfaces

from towerws.broker.failures import ConnectionFailure, RetryPolicy
from towerws.broker.log_checks import CLOCK_MARGIN_S, RefillReach
from towerws.broker.topology import Mode
from towerws.core.sources import Sink, SourceState

RESTARTS: Final = 3
RESTARTS_S: Final = 60.0
"""A reader opens a new channel at most `RESTARTS` times within this time. Then the connection is given up."""

ANCHOR_REACH: Final = 50_000
"""Our newest marker is the anchor only if at most this many messages were read after it, since all of them are read again."""

NEAR_SKIPS: Final = 8
"""After an entry that can't be read, the first attempts each pass over one offset more, up to this many. Then the number doubles."""


class ReaderEvents(Protocol):
    """What a reader tells its session. After `reader_failed` or `close` it tells nothing."""

    def reader_state(self, state: SourceState, reason: str) -> None:
        """The reader is not live. `reason` says in a line what it waits for."""

    def reader_live(self) -> None:
        """Deliveries arrive as they are published."""

    def reader_restarted(self, failure: ConnectionFailure) -> None:
        """The broker closed the channel. The reader sets up a new one on the same connection."""

    def reader_failed(self, failure: ConnectionFailure) -> None:
        """The reader can't go on with this connection."""


class ChannelRestarts:
    """Limits how often a reader opens a new channel on the same connection."""

    def __init__(self, reactor: interfaces.IReactorTime) -> None:
        self.was_live = False
        """Whether the reader was live on this connection. Before that, the end of the channel ends the connection."""
        self._reactor = reactor
        self._times: deque[float] = deque(maxlen=RESTARTS)

    def refuse(self, failure: ConnectionFailure) -> ConnectionFailure | None:
        """Count a restart after `failure`. Returns None if the restart is allowed, else the failure with which the connection ends."""
        now = self._reactor.seconds()
        too_many = len(self._times) == RESTARTS and now - self._times[0] < RESTARTS_S
        if too_many:
            return replace(failure, retry=RetryPolicy.FAST)
        if not self.was_live:
            return failure
        self._times.append(now)
        return None


@dataclass(slots=True)
class UnreadableEntry:
    """An entry of the stream that AMQP 0-9-1 can't represent, if there is one where the reader goes on.

    RabbitMQ ends the connection (541) each time at the same place. 541 has other causes, too, all of which pass. So an entry counts
    as unreadable only if 541 came twice at the same place, and the broker served the end of the stream in between.
    """

    suspected: bool = False
    """Whether the broker ended the connection with 541 after the offset `after`."""
    after: int | None = None
    evidence: int | None = None
    """The offset of our marker that the broker delivered from the stream's end after that 541. If no marker can be published, it is that of
    a new message. None: the broker has delivered none."""
    skip: int = 0
    """How many offsets are passed over. If nothing was read before: how often the refill's interval is halved."""

    def connection_ended(self, read: int | None) -> bool:
        """The broker ended the connection with 541 when `read` was the newest offset. Returns whether to pass over more."""
        if self.suspected and self.after == read:
            return self.evidence is not None
        self.suspected, self.after, self.evidence, self.skip = True, read, None, 0
        return False

    def goes_on_after(self, read: int | None) -> None:
        """The reader goes on after the offset `read`. At another place than `after` nothing is suspected."""
        if read != self.after:
            self.suspected, self.after, self.evidence, self.skip = False, read, None, 0

    def pass_over(self, *, nothing_read: bool) -> None:
        """Pass over one offset more, after `NEAR_SKIPS` twice as many. `nothing_read`: halve the interval of the refill once more."""
        self.skip = self.skip + 1 if nothing_read or self.skip < NEAR_SKIPS else self.skip * 2


@dataclass(slots=True)
class ReadProgress:
    """How far a source has read, and its counts. It outlives channels and connections. `epoch` is for positions in queue mode."""

    sink: Sink
    epoch: str
    last_mode: Mode | None = None
    """What was consumed last. None before the first time."""
    interrupted: bool = False
    """Whether the queue is gone: events that are published until the next queue are lost."""
    queue_offset: int = 0
    read: int | None = None
    """The offset of the newest message that was read from the stream, good or bad. None: nothing was read."""
    anchor: tuple[int, bytes] | None = None
    """Offset and body of our newest marker that was read. No other log has that body."""
    hole: bool = False
    """Whether events before the next delivery were lost, and clients have not been told yet."""
    hole_open: bool = False
    """Whether that hole may still go on, because the binding is missing. A marker straight to the stream does not end such a hole."""
    by_interval: bool = False
    """Whether the refill began at an interval of the broker's clock, and it is not proven yet that this was early enough."""
    reach: RefillReach = field(default_factory=RefillReach)
    """What the refill has read of this machine's markers."""
    marker_problem: str | None = None
    """Why no marker can be published. None: one can be, or nothing is known."""
    markers_refused: bool = False
    """Whether that is because the user may not publish them. Then nothing can show that the binding is missing."""
    unreadable: UnreadableEntry = field(default_factory=UnreadableEntry)
    deliveries: int = 0
    received_bytes: int = 0
    poison_headers: int = 0
    sink_errors: int = 0
    acks: int = 0

    def lost(self) -> None:
        """Events before the next message were lost. Any message ends this hole, even a marker straight to the stream."""
        self.hole, self.hole_open = True, False

    def marker_published(self) -> None:
        """The broker took one of our markers."""
        self.marker_problem, self.markers_refused = None, False

    def refill_interval_s(self, refill_s: float) -> int:
        """How far back the refill begins, in seconds: half as far for each attempt that met an unreadable entry. 0: nothing is left."""
        return (math.ceil(refill_s) + CLOCK_MARGIN_S) >> self.unreadable.skip

    def start(self, refill_s: float) -> int | str:
        """Return where to begin, as RabbitMQ's `x-stream-offset`.

        The reader begins at the anchor. If nothing was read yet, it begins as far back as history reaches. If an entry there can't be
        read, it begins after that entry, at last at the stream's end.
        """
        skip = self.unreadable.skip
        if self.read is not None:
            return self.read + 1 + skip if skip else self._anchor_offset(self.read)
        if skip:
            if seconds := self.refill_interval_s(refill_s):
                return f"{seconds}s"
            return "next" if self.unreadable.evidence is None else self.unreadable.evidence
        return f"{self.refill_interval_s(refill_s)}s" if self.by_interval else "first"

    def _anchor_offset(self, read: int) -> int:
        if self.anchor is not None and read - self.anchor[0] <= ANCHOR_REACH:
            return self.anchor[0]
        newest = self.sink.newest
        return read if newest is None else newest
