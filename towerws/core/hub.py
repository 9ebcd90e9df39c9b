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
from towerws.core.members import Hole, HubCounters, Member, Peer
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
        self._holes: list[Hole] = []
        """Those that a client that resumes from before them is told of when it gets there."""
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
    def flushed_seq(self) -> int:
        """How far the log has gone out to everyone who is live."""
        return self._flushed.seq

    @property
    def position(self) -> str:
        """Where the log stands for everyone who is live; "" where nothing could be resumed from that.

        A storm of clients asks for the same one, and a stream's is a hash of the delivery: it is kept.
        """
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

    def subscribe(self, member: Member, request: Request, since: Delivery | None = None) -> Change:
        """Replace what a member listens to, and put it behind `since`, the place that it resumes from.

        What it listened to before and still does goes on without a gap and without a repetition: `since` counts for the topics
        that it joins. `since` must not be newer than what has gone out (`flushed_seq`). Nothing is written: once the answer
        is out, `feed` must be called for a member that is behind.
        """
        self._broadcast.settle(member)
        wanted = dict.fromkeys(request.topics)
        left = [topic for topic in member.topics if topic not in wanted]
        joined = [topic for topic in wanted if topic not in member.topics]
        self._unsubscribe(member, left)
        if since is not None:
            # Of the topics that it keeps it has had all up to where it stands.
            stands = member.cursor.seq if member.behind else self._flushed.seq
            for topic, seq in member.topics.items():
                member.topics[topic] = max(seq, stands)
            if not member.behind or since.seq < member.cursor.seq:
                member.fall_behind(since)
                self._holes = [hole for hole in self._holes if hole.end.seq > self._history.floor.seq]
                member.holes = [hole for hole in self._holes if hole.end.seq > since.seq]
            self.counters.resumed += 1
        elif request.since is not None:
            self.counters.not_recovered += 1
        audience = self._audiences[member.dialect]
        start = self._flushed.seq if since is None else since.seq
        for topic in joined:
            member.topics[topic] = start
            if (listeners := audience.get(topic)) is None:
                listeners = audience[topic] = {}
                self._listened[topic] = self._listened.get(topic, 0) + 1
            listeners[member] = None
        if not member.topics:
            member.holes = ()
        return Change(
            current=tuple(sorted(member.topics)),
            joined=tuple(sorted(joined)),
            left=tuple(sorted(left)),
            # Not where the log stands, for a member that is behind: it has not been told all that came before that.
            position=member.cursor.position if member.behind else self.position,
            recovered=None if request.since is None else since is not None,
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

    def feed(self, member: Member) -> int:
        """Give a member that is behind its next piece of history, or let it go live when there is none left. The bytes of the piece."""
        if not member.behind or member not in self.members:
            return 0
        if (lost := self._history.lost(member.cursor.seq, member.topics)) and not self._tell_lost(member, lost):
            return 0
        holes = member.holes
        piece = self._history.after(member.cursor.seq, member.topics, holes[0].start.seq if holes else self._flushed.seq, PIECE_OCTETS)
        if piece:
            data = b"".join([self._replay(member.dialect, delivery) for delivery in piece])
            sent = member.send(data)
            if sent:
                member.cursor = piece[-1]
                self.counters.deliveries_out += len(piece)
            member.peer.await_drain()
            return len(data) if sent else 0
        if holes:
            hole = holes[0]
            if self._tell_hole(member, hole):
                member.holes = holes[1:]
                if hole.end.seq > member.cursor.seq:
                    member.cursor = hole.end
                return self.feed(member)
            member.peer.await_drain()
        else:
            self._broadcast.forgo(member)  # it has been fed what it was due of it
            member.behind = False
            self.counters.caught_up += 1
        return 0

    def replay(self, since: Delivery, members: Iterable[Member]) -> None:
        """Feed these members from this place: nothing behind it has gone out to them."""
        for member in members:
            if member.topics and not member.behind:
                member.fall_behind(since)
                self.feed(member)

    def _tell_lost(self, member: Member, lost: list[str]) -> bool:
        """Tell a member that is behind what has fallen out of history. False: it must drain first, or it was closed instead.

        A hole that begins where history does is told with it: for the client both are one.
        """
        end, reason = self._history.floor, "history"
        holes = [hole for hole in member.holes if hole.end.seq > end.seq]
        if holes and holes[0].start.seq <= end.seq:
            lost, end, reason = list(member.topics), holes[0].end, holes[0].reason
            del holes[0]
        notice = member.dialect.gap(Gap(tuple(sorted(lost)), member.cursor.position, end.position, reason))
        if notice is not None and not member.send(text_frame(notice)):
            member.peer.await_drain()
            return False
        self.counters.gaps += 1
        if notice is None:
            member.peer.end(CloseReason.HISTORY)
            return False
        member.cursor, member.holes = end, holes or ()
        return True

    def _tell_hole(self, member: Member, hole: Hole) -> bool:
        """Tell a member of a hole in the log, where its dialect has a word for it. False: its buffer is full."""
        if not member.topics:
            return True
        notice = member.dialect.gap(Gap(tuple(sorted(member.topics)), hole.start.position, hole.end.position, hole.reason))
        if notice is None:
            return True
        if not member.send(text_frame(notice)):
            return False
        self.counters.gaps += 1
        return True

    def _replay(self, dialect: Dialect, delivery: Delivery) -> bytes:
        key = (dialect, delivery.seq)
        if (frame := self._replayed.get(key)) is None:
            if self._replayed_octets > REPLAYED_OCTETS:
                self._replayed.clear()
                self._replayed_octets = 0
            frame = self._replayed[key] = dialect.frame(delivery)
            self._replayed_octets += len(frame)
        return frame

    def gap(self, start: Delivery, end: Delivery, reason: str, members: Iterable[Member] | None = None, *, resumable: bool = False) -> None:
        """Tell every member that listens to anything: deliveries between two places of the log can't be had.

        A member that is behind is told when it has been fed what came before. `members`: tell these alone. `resumable`: a client
        that resumes from before it later is told in its place, too.
        """
        self._broadcast.finish()
        hole = Hole(start, end, reason)
        if resumable:
            self._holes.append(hole)
        for member in list(self.members if members is None else members):
            if not member.topics or member not in self.members:
                continue
            if member.behind:
                member.holes = [*member.holes, hole]
            elif not self._tell_hole(member, hole):
                member.fall_behind(self._flushed)  # it has had all that came before
                member.holes = [hole]
                self.counters.fell_behind += 1
                member.peer.await_drain()
