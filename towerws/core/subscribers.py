"""Who is in the hub: members, the way to their clients, and what is counted of them.

A member is **live** (a turn goes straight out) or **behind** (nothing is queued for it: it keeps its place in the log and is
fed from history, a piece each time its socket has drained, until it has caught up). Behind is one mechanism for three cases:
a client that resumes, a socket that is full, and a broker link that was down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from towerws.core.deliveries import Delivery
from towerws.core.errors import CloseReason
from towerws.core.wire import Dialect


class Peer(Protocol):
    """The way to a client, as the hub sees it."""

    def send(self, data: bytes) -> bool:
        """Take whole frames; False, and nothing taken, when more is waiting in its buffer than is allowed. Never raises."""

    def await_drain(self) -> None:
        """Call `Hub.feed` for this member once what was sent has left the buffer, in another turn of the reactor."""

    def end(self, reason: CloseReason) -> None:
        """Close the connection."""


@dataclass(slots=True)
class HubCounters:
    """What happened since the start."""

    batches: int = 0
    deliveries_out: int = 0
    """Deliveries written to connections: one for each connection that got it."""
    bytes_out: int = 0
    """The bytes of their frames, those of turns; what is replayed from history is not among them."""
    fell_behind: int = 0
    caught_up: int = 0
    resumed: int = 0
    not_recovered: int = 0
    gaps: int = 0


class Hole(NamedTuple):
    """Deliveries between two places of the log that can't be had, and why."""

    start: Delivery
    end: Delivery
    reason: str


class Subscriber:
    """One connection in the hub. The hub alone changes it."""

    __slots__ = ("behind", "cursor", "dialect", "holes", "peer", "send", "topics")

    def __init__(self, peer: Peer, dialect: Dialect, cursor: Delivery) -> None:
        self.peer = peer
        self.send = peer.send
        self.dialect = dialect
        self.topics: dict[str, int] = {}
        """Topic to the `seq` behind which its deliveries are due."""
        self.behind = False
        self.cursor = cursor
        """Where a member that is behind stands; means nothing while it is live."""
        self.holes: Sequence[Hole] = ()
        """Those that a member that is behind has still to be told of. Empty and shared, but for the few that have any."""

    def fall_behind(self, cursor: Delivery) -> None:
        """From here on it is fed from history."""
        self.cursor, self.behind = cursor, True
