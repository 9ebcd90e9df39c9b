"""The hub: who is due what, and one write per connection and turn.

A *turn* is what one read from the broker brought. Its deliveries are noted by `publish` and go out together at `flush`: each
connection gets one write with everything it is due, in the log's order over all its topics, and connections that are due
the same share the same bytes. What costs per delivery is a look-up; what costs per connection is one write.

          | turn is due        | write refused        | resumes          | drained                    | nothing left to feed
  live    | write              | behind, wait         | behind, feed     | (never asked for)          | -
  behind  | skip               | wait                 | behind, feed     | feed; lost? notice, feed   | live
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from towerws.core.broadcast import PART_OCTETS, Broadcast
from towerws.core.deliveries import Delivery
from towerws.core.errors import CloseReason
from towerws.core.frames import text_frame
from towerws.core.history import History
from towerws.core.members import HubCounters, Member, Peer
from towerws.core.requests import Request
from towerws.core.turn import Turn
from towerws.core.wire import Change, Dialect, Gap

PIECE_OCTETS = 64 * 1024
"""How much of history is written to a reader at once: a common size of a socket's send buffer."""

REPLAYED_OCTETS = 4 * 1024 * 1024
"""Frames made for one reader that is behind are kept for the next: after an outage all ask for the same. Takes a resume that
missed 100 deliveries from 520 to 197 µs of CPU (make bench SCENARIO=resume, its connecting subtracted)."""


class Hub:
    """All members, what each listens to, and the way of a turn to them."""

    def __init__(
        self, history: History, soon: Callable[[Callable[[], None]], object] | None = None, *, part_octets: int = PART_OCTETS
    ) -> None:
        """`soon` runs a callable in another turn of the reactor; without it a turn is written at once, however long that takes."""
        self._history = history
        self._audiences: dict[Dialect, dict[str, dict[Member, None]]] = {}
        self._listened: dict[str, int] = {}  # topic -> in how many dialects somebody listens to it
        self._turn: list[Delivery] = []
        self._flushed = history.head
        self._position: tuple[Delivery, str] | None = None
        self._replayed: dict[tuple[Dialect, int], bytes] = {}  # by dialect and seq
        self._replayed_octets = 0
        self.members: dict[Member, None] = {}
        self.counters = HubCounters()
        self._broadcast = Broadcast(self.counters, soon, part_octets)
        self.turn_octets = 0
        """Payload octets noted for the turn so far."""

    @property
    def topics(self) -> int:
        """How many topics somebody listens to."""
        return len(self._listened)

    @property
    def position(self) -> str:
        """Where the log stands for everyone who is live. A storm of clients asks for the same one: a stream's is a hash of the delivery."""
        if self._position is None or self._position[0] is not self._flushed:
            self._position = self._flushed, self._flushed.position
        return self._position[1]

    def join(self, peer: Peer, dialect: Dialect) -> Member:
        """Add a connection; it listens to nothing yet."""
        member = Member(peer, dialect, self._flushed)
        self._audiences.setdefault(dialect, {})
        self.members[member] = None
        return member

    def leave(self, member: Member) -> None:
        """Remove a connection. Costs what it listened to; a second call does nothing."""
        self._broadcast.forgo(member)
        self.members.pop(member, None)
        self._unsubscribe(member, list(member.topics))

    def _unsubscribe(self, member: Member, topics: Iterable[str]) -> None:
        audience = self._audiences[member.dialect]
        for topic in topics:
            del member.topics[topic]
            listeners = audience[topic]
            del listeners[member]
            if not listeners:
                del audience[topic]
                self._listened[topic] -= 1
                if not self._listened[topic]:
                    del self._listened[topic]

    def subscribe(self, member: Member, request: Request) -> Change:
        """Replace what a member listens to, and put it behind the position it resumes from, if that is still held.

        What it listened to before and still does goes on without a gap. Nothing is written: once the answer is out,
        `feed` must be called for a member that is behind.
        """
        self._broadcast.settle(member)
        wanted = dict.fromkeys(request.topics, self._flushed.seq)
        left = [topic for topic in member.topics if topic not in wanted]
        joined = [topic for topic in wanted if topic not in member.topics]
        self._unsubscribe(member, left)
        audience = self._audiences[member.dialect]
        for topic in joined:
            member.topics[topic] = wanted[topic]
            if (listeners := audience.get(topic)) is None:
                listeners = audience[topic] = {}
                self._listened[topic] = self._listened.get(topic, 0) + 1
            listeners[member] = None
        since = None if request.since is None else self._history.find(request.since)
        if since is not None and since.seq > self._flushed.seq:
            since = None  # history is still being refilled: what lies behind this position will not go out
        if since is not None:
            member.topics.update(dict.fromkeys(member.topics, since.seq))
            member.fall_behind(since)
            self.counters.resumed += 1
        elif request.since is not None:
            self.counters.not_recovered += 1
        return Change(
            current=tuple(sorted(member.topics)),
            joined=tuple(sorted(joined)),
            left=tuple(sorted(left)),
            # Not where the log stands, for a member that is behind: it has not been told all that came before that.
            position=member.cursor.position if member.behind else self.position,
            recovered=since is not None,
        )

    def publish(self, delivery: Delivery) -> None:
        """Note a delivery for this turn. One that nobody listens to costs this look-up, however many topics there are."""
        if delivery.topic in self._listened:
            self._turn.append(delivery)
            self.turn_octets += len(delivery.payload)

    def flush(self, written: Callable[[], None] | None = None) -> None:
        """End the turn: one write to each live member that is due anything, in the log's order.

        `written` is called once all is written: now, or, where that would keep everybody else waiting, in a later turn of the
        reactor. The next turn overtakes nothing: what is left of this one is written before it.
        """
        before, self._flushed = self._flushed, self._history.head
        turns: list[Turn[Member]] = []
        if self._turn:
            turns = [Turn(self._turn, dialect, audience) for dialect, audience in self._audiences.items() if audience]
            self._turn.clear()
            self.turn_octets = 0
            self.counters.turns += 1
        self._broadcast.begin(turns, before, written)

    @property
    def seq(self) -> int:
        """The place of the newest delivery that went out."""
        return self._flushed.seq

    def feed(self, member: Member) -> int:
        """Give a member that is behind its next piece of history, or let it go live when there is none left. The bytes of the piece."""
        if not member.behind or member not in self.members:
            return 0
        if lost := self._history.lost(member.cursor.seq, member.topics):
            floor = self._history.floor
            notice = member.dialect.gap(Gap(tuple(sorted(lost)), member.cursor.position, floor.position, "history"))
            if notice is not None and not member.send(text_frame(notice)):
                member.peer.await_drain()
                return 0
            self.counters.gaps += 1
            if notice is None:
                member.peer.end(CloseReason.HISTORY)
                return 0
            member.cursor = floor
        piece = self._history.after(member.cursor.seq, member.topics, self._flushed.seq, PIECE_OCTETS)
        if not piece:
            self._broadcast.forgo(member)  # it has been fed what it was due of it
            member.behind = False
            self.counters.caught_up += 1
            return 0
        data = b"".join([self._replay(member.dialect, delivery) for delivery in piece])
        sent = member.send(data)
        if sent:
            member.cursor = piece[-1]
            self.counters.deliveries_out += len(piece)
        member.peer.await_drain()
        return len(data) if sent else 0

    def _replay(self, dialect: Dialect, delivery: Delivery) -> bytes:
        key = (dialect, delivery.seq)
        if (frame := self._replayed.get(key)) is None:
            if self._replayed_octets > REPLAYED_OCTETS:
                self._replayed.clear()
                self._replayed_octets = 0
            frame = self._replayed[key] = dialect.frame(delivery)
            self._replayed_octets += len(frame)
        return frame

    def gap(self, start: Delivery, end: Delivery, reason: str) -> None:
        """Tell every member that listens to anything: deliveries between two places of the log can't be had.

        One that had also fallen out of history is told of both at once, from where it stands.
        """
        self._broadcast.finish()
        for member in list(self.members):
            if not member.topics:
                continue
            lost = member.behind and self._history.lost(member.cursor.seq, member.topics)
            begin = member.cursor if lost else start
            notice = member.dialect.gap(Gap(tuple(sorted(member.topics)), begin.position, end.position, reason))
            if notice is None:
                continue
            self.counters.gaps += 1
            if not member.send(text_frame(notice)):
                member.peer.end(CloseReason.OVERLOAD)
            elif lost:
                member.cursor = self._history.floor
