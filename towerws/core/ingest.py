"""Intake: what a source feeds. It judges each message, keeps it in history, and hands it to the hub.

A message is forwarded if its payload is one JSON object in UTF-8 (`payload.py`), its routing key usable and its size within the
bound. What fails is counted by reason, the first of a burst is reported, and the next one arrives.

  state     | deliver                         | caught_up         | a client's position
  filling   | into history only               | flowing, tell all | waits, unless it can never be good
  flowing   | into history and to the hub     | flowing           | found; or waits for a proof; or unknown

A position that isn't held is unknown only when something that was read says so: the log is proven to be the one that
history holds, and it reaches beyond the position. Else the client waits, in `towerws.core.positions`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from towerws.core.deliveries import BEFORE, MARKER_TOPIC, Delivery, Fingerprint, Marker, parse_position
from towerws.core.errors import BadDelivery
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.payload import check_payload, is_plain_object
from towerws.core.positions import PENDING, Judged, PositionWaiters
from towerws.core.subscribers import Subscriber
from towerws.core.topics import WITHHELD, is_routing_key

BATCH_BYTES = 256 * 1024
"""A turn ends early beyond this, so that what one write leaves in a socket's buffer stays within the connection's bound."""

REPORT_EVERY_S = 60
"""A burst of messages that are bad for the same reason is reported once in this time; the counter tells how many there were."""


class Ingest:
    """The `Sink` of the daemon's source (see `towerws.core.sources.Sink` for what each call promises).

    `clock` gives monotonic seconds; `report` is called with the text of a bad delivery, at most once a minute per reason;
    `new_epoch` makes a random text that names a mark in the log; `key` is the key of positions in a stream.
    """

    def __init__(
        self,
        history: History,
        hub: Hub,
        *,
        max_payload_bytes: int,
        clock: Callable[[], float],
        report: Callable[[BadDelivery], None],
        new_epoch: Callable[[], str],
        key: bytes = b"",
    ) -> None:
        self._history = history
        self._hub = hub
        self._max_payload_bytes = max_payload_bytes
        self._clock = clock
        self._report = report
        self._new_epoch = new_epoch
        self._fingerprint = Fingerprint(key)
        self._epoch: str | Fingerprint = self._fingerprint
        self._now: float | None = None
        self._bytes_out = 0  # of the hub's counter, those that a turn has accounted for
        self._reported: dict[str, float] = {}
        self._cut: tuple[Delivery, bool] | None = None
        """Where the log was cut off, and whether something before that is left, until the first delivery behind it comes."""
        self._hole_told = -1
        """Up to where holes that markers tell of have been told."""
        self._told_early = False
        self._early: dict[str, frozenset[Subscriber]] = {}
        """While history is refilled, by marker of ours: who had subscribed before the broker confirmed it."""
        self._places: dict[str, Delivery] = {}
        """And where it stands in history."""
        self._waiters = PositionWaiters(self.judge_position)
        self._proven = False
        self.history_complete = False
        """Whether history has been refilled, so that positions can be judged and deliveries go out."""
        self.on_position_asked: Callable[[], None] = _nobody_asks
        self.received = 0
        self.duplicates = 0
        self.markers = 0
        self.bad: Counter[str] = Counter()
        """Deliveries skipped, by reason."""

    # what a session asks

    def judge_position(self, position: str, *, final: bool = False) -> Judged:
        """Where in history a client's position is, None when it is unknown for sure, else `PENDING`.

        `final`: a marker that was published after the client asked has been read, so the log does not reach further.
        """
        found = self._history.find(position)
        if found is not None:
            return found if self.history_complete and found.seq <= self._hub.flushed_seq else PENDING
        if not (match := parse_position(position)):
            return None
        if isinstance(self._epoch, str):  # a log of this process: what it does not hold, nobody will ever bring
            return None if self.history_complete else PENDING
        if not self._proven or not self.history_complete:
            return PENDING
        newest = self._history.newest
        if final or (newest is not None and int(match[1]) <= newest.offset):
            return None
        return PENDING

    def wait_for_position(self, position: str, call: Callable[[Delivery | None], None]) -> Callable[[], None]:
        """Call this once a position that was `PENDING` is judged. What is returned takes the request back."""
        forget = self._waiters.add(position, call)
        self.on_position_asked()
        return forget

    @property
    def waiting(self) -> int:
        """How many clients wait for their position to be judged."""
        return len(self._waiters)

    # Sink

    @property
    def newest(self) -> int | None:
        """The offset of the newest delivery."""
        return None if self._history.newest is None else self._history.newest.offset

    @property
    def oldest(self) -> int | None:
        """The offset of the oldest one that is known."""
        return None if self._history.oldest is None else self._history.oldest.offset

    def begin(self, log: str) -> None:
        """Deliveries will come from a log of this process."""
        self._epoch = log
        if not self._history.head.seq:
            self._history.begin(0, log)
        self._hub.flush()
        self._proven = True

    def proven(self, proven: bool) -> None:
        """Whether the log that is read is history's."""
        self._epoch = self._fingerprint
        self._proven = proven
        if proven:
            self._waiters.judge()
            if self._waiters:
                self.on_position_asked()

    def marker_sent(self, text: str) -> None:
        """Who asked until now can be answered when it arrives."""
        self._waiters.marker_sent(text)

    def marker_confirmed(self, text: str) -> None:
        """Who subscribes from now on misses nothing that comes behind it."""
        if not self.history_complete:
            self._early[text] = frozenset(subscriber for subscriber in self._hub.subscribers if subscriber.topics)

    def caught_up(self, *, replay: bool = False) -> None:
        """Let deliveries flow. A client that had subscribed before can't know what it missed, and is told so."""
        if self.history_complete:
            return
        self._hub.flush()
        self.history_complete = True
        if replay:
            self._hub.replay(self._history.floor, list(self._hub.subscribers))
        else:
            self._replay_early()
        self._early.clear()
        self._places.clear()
        self._waiters.judge()

    def _replay_early(self) -> None:
        """Clients that subscribed during the refill get what lies behind the newest marker that the broker had confirmed before that.

        A client that subscribed before the first one gets what lies behind that. What was published in the moment before may be missing,
        and it is told so.
        """
        left = [subscriber for subscriber in self._hub.subscribers if subscriber.topics]
        known = [(place, before) for text, before in reversed(self._early.items()) if (place := self._places.get(text)) is not None]
        first = known[-1][0] if known else self._history.head
        self._hub.gap(
            self._history.floor, first, "broker", [subscriber for subscriber in left if all(subscriber in before for _, before in known)]
        )
        for place, before in known:
            self._hub.replay(place, [subscriber for subscriber in left if subscriber not in before])
            left = [subscriber for subscriber in left if subscriber in before]
        if known:
            self._hub.replay(first, left)

    def deliver(self, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Judge, keep, hand on."""
        self.received += 1
        if (now := self._now) is None:
            now = self._now = self._clock()
        history = self._history
        if routing_key not in history or len(body) > self._max_payload_bytes or not is_plain_object(body):
            try:
                self.judge(routing_key, body)
            except BadDelivery as bad:
                self._skip(bad, now)
                return
        if message_id is not None and history.has_message(routing_key, message_id):
            self.duplicates += 1
            return
        delivery = history.append(routing_key, body, offset, self._epoch, message_id, now)
        if self.history_complete:
            self._hub.publish(delivery)
            if self._hub.batch_bytes > BATCH_BYTES:
                self._hub.flush()

    def marker(self, marker: Marker, body: bytes, offset: int, message_id: str | None) -> None:
        """Keep it, and tell of the hole that it tells of. Whom it answers is judged once the turn that it came in has gone out."""
        self.markers += 1
        kept = self._history.append(MARKER_TOPIC, body, offset, self._epoch, message_id, self._clock())
        self._waiters.marker_came(marker.text)
        if not self.history_complete and marker.text in self._early:
            self._places[marker.text] = kept
        # Two daemons that found the same hole tell of it in two markers: the second one begins before the first one's place.
        if marker.hole is None:
            return
        if marker.hole < self._hole_told:
            if self._told_early:  # before its end was known
                self._told_early = False
                self._history.barrier = kept
            return
        self._hole_told = offset
        self._hub.flush()
        start = self._history.at(marker.hole) or self._history.floor
        self._history.barrier = kept
        if self.history_complete:
            self._hub.gap(start, kept, "broker")

    def end_batch(self, written: Callable[[int], None]) -> None:
        """Write the turn to the connections, and let go of what is too old. `written` is told the bytes since the last turn."""
        self._now = None
        self._history.trim(self._clock())
        if self.history_complete:
            self._hub.flush(partial(self._batch_written, written))
            if self._waiters:
                newest = self.newest
                self._waiters.judge(upto=-1 if newest is None else newest)
        else:
            written(0)

    def gap(self, reason: str) -> None:
        """Mark the log: nobody resumes from before this, and everyone is told once."""
        self._hub.flush()
        start = self._history.head
        end = self._history.mark(max(start.offset, 0), self._new_epoch())
        self._hub.flush()
        if self.history_complete:
            self._hub.gap(start, end, reason)

    def compare(self, routing_key: str, body: bytes, offset: int) -> bool | None:
        """Whether history holds the very same at this offset."""
        held = self._history.at(offset)
        if held is None:
            return None
        return held.payload == body and held.topic in {routing_key, MARKER_TOPIC}

    def hole(self, routing_key: str, body: bytes, offset: int, message_id: str | None, reason: str) -> None:
        """Mark the place just before this delivery."""
        self._hub.flush()
        self._hole_told, self._told_early = offset, True
        start, shared = self._cut or (self._history.head, False)
        self._cut = None
        epoch = self._fingerprint(routing_key, message_id, body) + BEFORE
        # Where the log was cut off, what clients missed before that is still there for them: they may resume from before the hole.
        end = self._history.mark(offset, epoch, barrier=not shared)
        self._hub.flush()
        if self.history_complete:
            self._hub.gap(start, end, reason, resumable=shared)

    def rewind(self, offset: int | None) -> None:
        """Forget what the log lost."""
        self._hub.flush()
        history = self._history
        left = None if offset is None else history.rewind(offset)
        if left is not None:
            self._cut = left, True
            history.head = left
        else:
            self._cut = history.head, False
            history.mark(0, "")
            history.clear()
        self._hole_told = -1
        self._hub.flush()

    def restart(self) -> None:
        """History begins again."""
        self._history.mark(0, "")
        self._history.clear()
        self._hole_told = -1

    def _batch_written(self, written: Callable[[int], None]) -> None:
        before, self._bytes_out = self._bytes_out, self._hub.counters.bytes_out
        written(self._bytes_out - before)

    # how a delivery is judged

    def judge(self, routing_key: str, body: bytes) -> None:
        """Raise `BadDelivery` with the reason that fits best; the whole check, for whatever the short one did not pass."""
        if routing_key in WITHHELD:
            raise BadDelivery("withheld", f"{routing_key} is never forwarded")
        if not is_routing_key(routing_key):
            raise BadDelivery("routing_key", f"routing key {_shown(routing_key)} is not group.event")
        if len(body) > self._max_payload_bytes:
            raise BadDelivery("too_large", f"{len(body)} bytes on {routing_key}: more than max_payload_bytes = {self._max_payload_bytes}")
        check_payload(routing_key, body)

    def _skip(self, bad: BadDelivery, now: float) -> None:
        self.bad[bad.reason] += 1
        if bad.reason == "withheld":
            return  # expected: AWX sends them all day
        last = self._reported.get(bad.reason)
        if last is None or now - last >= REPORT_EVERY_S:
            self._reported[bad.reason] = now
            self._report(bad)


def _shown(routing_key: str) -> str:
    """The start of a name that came from outside, for a log line."""
    return repr(routing_key[:60]) + ("…" if len(routing_key) > 60 else "")


def _nobody_asks() -> None:
    """There is no source yet, or one whose positions need no proof."""
