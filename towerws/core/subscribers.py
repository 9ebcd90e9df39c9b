"""The subscribers of the hub, the interface to their connections, and the hub's counters.

A subscriber is **live** or **behind**. A batch goes straight to a live subscriber. The hub queues nothing for a subscriber that is
behind. The subscriber keeps its place in the log, and the hub feeds it from history, one piece each time its send buffer has drained.
Once it has caught up, it is live again. "Behind" is one mechanism for three cases: a client that resumes, a send buffer that is full,
and a connection to the broker that was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from towerws.core.deliveries import Delivery
from towerws.core.errors import CloseReason
from towerws.core.wire import Dialect


class Peer(Protocol):
    """A client's connection, as the hub sees it."""

    def send(self, data: bytes) -> bool:
        """Take whole frames. Return False, and take nothing, when the send buffer already holds more than its bound. Never raise."""

    def await_drain(self) -> None:
        """Call `Hub.feed` for this subscriber once its send buffer is empty, in a later turn of the reactor."""

    def note_hole(self) -> None:
        """Take note that deliveries of the topics may be lost. The hub calls this if the dialect has no notice to send."""

    def end(self, reason: CloseReason) -> None:
        """Close the connection."""


@dataclass(slots=True)
class HubCounters:
    """Counts what the hub did since the process started."""

    batches: int = 0
    deliveries_out: int = 0
    """Deliveries written to connections. A delivery counts once for each connection that got it."""
    bytes_out: int = 0
    """Bytes of frames written to live subscribers. `replayed_bytes` has those from history."""
    replayed: int = 0
    """Deliveries written from history. `deliveries_out` counts them, too."""
    replayed_bytes: int = 0
    fell_behind: int = 0
    """How often a full send buffer put a live subscriber behind."""
    caught_up: int = 0
    """How often a subscriber that was behind became live."""
    resumed: int = 0
    """Requests with a position from which the client resumed."""
    not_recovered: int = 0
    """Requests with a position from which the client could not resume."""
    gaps: int = 0
    """Gap notices, and connections that were closed because their dialect has no gap notice."""


class Hole(NamedTuple):
    """The deliveries between two places of the log are lost, for this reason."""

    start: Delivery
    end: Delivery
    reason: str


class Subscriber:
    """One connection in the hub. Only the hub changes it."""

    __slots__ = ("behind", "cursor", "dialect", "holes", "peer", "send", "topics")

    def __init__(self, peer: Peer, dialect: Dialect, cursor: Delivery) -> None:
        self.peer = peer
        self.send = peer.send
        self.dialect = dialect
        self.topics: dict[str, int] = {}
        """Maps each topic (routing key) to the `seq` after which the subscriber gets its deliveries."""
        self.behind = False
        self.cursor = cursor
        """The last delivery that a subscriber that is behind has got. Has no meaning while it is live."""
        self.holes: Sequence[Hole] = ()
        """The holes that a subscriber that is behind must still get a notice of. The empty tuple is shared: few have any."""

    def missed(self, hole: Hole) -> list[str]:
        """Return the topics with deliveries that may be lost in this hole: those that it joined before the hole's end."""
        start, end = hole.start.seq, hole.end.seq  # equal if no delivery of this process was lost
        return [topic for topic, joined in self.topics.items() if joined <= start or joined < end]

    def fall_behind(self, cursor: Delivery) -> None:
        """Put the subscriber behind: the hub feeds it what comes after `cursor` from history."""
        self.cursor, self.behind = cursor, True
