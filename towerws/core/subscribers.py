"""The subscribers of the hub, the interface to their connections, and the hub's counters.

A subscriber is **live** or **behind**. A batch goes straight to a live subscriber. For a subscriber that is behind nothing is
queued: it keeps its place in the log, and the hub feeds it from history, one piece each time its socket has drained. Once it has
caught up, it is live again. "Behind" is one mechanism for three cases: a client that resumes, a socket whose buffer is full, and
a connection to the broker that was lost.
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
        """Deliveries of the topics may be lost, and the dialect has no notice for that."""

    def end(self, reason: CloseReason) -> None:
        """Close the connection."""


@dataclass(slots=True)
class HubCounters:
    """What happened since the start."""

    batches: int = 0
    deliveries_out: int = 0
    """Deliveries written to connections. A delivery counts once for each connection that got it."""
    bytes_out: int = 0
    """The bytes of their frames, without those that were replayed from history."""
    replayed: int = 0
    """Those of the deliveries that came from history."""
    replayed_bytes: int = 0
    fell_behind: int = 0
    caught_up: int = 0
    resumed: int = 0
    not_recovered: int = 0
    gaps: int = 0


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
        """By topic (routing key) the `seq` after which the subscriber gets its deliveries."""
        self.behind = False
        self.cursor = cursor
        """The last delivery that a subscriber that is behind has got. Has no meaning while it is live."""
        self.holes: Sequence[Hole] = ()
        """The holes of which a subscriber that is behind must still be told. The empty tuple is shared: few have any."""

    def fall_behind(self, cursor: Delivery) -> None:
        """Feed it from history from here on."""
        self.cursor, self.behind = cursor, True
