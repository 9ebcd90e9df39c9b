"""Ingest: checks each message from the broker, keeps it in history, and hands it to the hub.

A message is forwarded if its payload is one JSON object in UTF-8 (`towerws.core.payload`), its routing key is a topic, and its
size is within the bound. A bad message is skipped and counted by its reason. The first one of a burst is reported.

  state     | deliver                         | caught_up            | a client's position
  filling   | into history only               | complete, feed all   | waits, unless it can never be held
  complete  | into history and to the hub     | complete             | found, or waits for a proof, or unknown

A position that history doesn't hold is unknown only with a proof: history holds the log that is read now, and that log reaches beyond
the position. Without the proof the client waits (`towerws.core.positions`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from math import inf
from operator import attrgetter

from towerws.core.deliveries import BEFORE, MARKER_TOPIC, Delivery, Fingerprint, Marker, parse_position
from towerws.core.errors import BadDelivery
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.measurements import SECONDS, Histogram, PublishedAt, PublishTimes
from towerws.core.payload import check_payload, is_plain_object
from towerws.core.positions import PENDING, Judged, PositionWaiters
from towerws.core.subscribers import Hole, Subscriber
from towerws.core.topics import WITHHELD, is_routing_key

BATCH_BYTES = 256 * 1024
"""A batch with more payload bytes than this is flushed early, so that one write leaves no more in a send buffer than its bound."""

MAX_REFILL_MARKERS = 1000
"""The most markers of this daemon that a refill remembers. A reader that connects again and again publishes twelve a minute."""

REPORT_EVERY_S = 60
"""Messages that are bad for the same reason are reported once in this time. The counter `bad` has their number."""


class Ingest:
    """The `Sink` of the daemon's source. `towerws.core.sources.Sink` documents what each of its methods promises.

    `clock` returns monotonic seconds, and `wall_clock` seconds since 1970. `report` gets a bad delivery, at most once in
    `REPORT_EVERY_S` for each reason. `new_epoch` returns a random text that names a mark in the log. `key` is the key of a stream's
    positions.
    """

    def __init__(
        self,
        history: History,
        hub: Hub,
        *,
        max_payload_bytes: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        report: Callable[[BadDelivery], None],
        new_epoch: Callable[[], str],
        key: bytes = b"",
    ) -> None:
        self._history = history
        self._hub = hub
        self.max_payload_bytes = max_payload_bytes
        self._clock = clock
        self._wall_clock = wall_clock
        self._report = report
        self._new_epoch = new_epoch
        self._fingerprint = Fingerprint(key)
        self._epoch: str | Fingerprint = self._fingerprint
        self._now: float | None = None
        self._bytes_out = 0  # the hub's counter at the end of the last batch
        self._reported: dict[str, float] = {}
        self._cut: tuple[Delivery, bool] | None = None
        """Set between `rewind` and `hole`: where the log was cut off, and whether deliveries before that are still held."""
        self._unbound_told_to = -1
        """The offset up to which clients know of a hole from a missing binding. Another marker may report the same hole again.
        -1 once a marker has proven the binding after that."""
        self._unbound_end_open = False
        """Whether the marker with the end of that hole is still to come. Clients know of the hole from `hole` until then."""
        self._told_to = history.head
        """The end of the last hole of any kind that clients know of."""
        self._refill_holes: list[Hole] = []
        """The holes that were found during the refill. A client that is fed from before a hole gets a notice of it."""
        self._marker_numbers: dict[str, int] = {}
        """During the refill: the markers of this daemon that the broker confirmed, oldest first. Maps each text to the marker's number."""
        self._subscribed_before: dict[Subscriber, int] = {}
        """During the refill: maps each subscriber to the number of the first marker that was confirmed after it had subscribed."""
        self._marker_places: dict[str, Delivery] = {}
        """During the refill: maps the text of each of these markers that was read to its place in history."""
        self._waiters = PositionWaiters(self.judge_position)
        self._proven = False
        self.history_complete = False
        """Whether the refill has ended. Before that no position is judged, and no delivery goes to the hub."""
        self.on_position_asked: Callable[[], None] = lambda: None
        self.on_joinable: Callable[[], None] = lambda: None
        """Set by the service. Called when clients that subscribe after this call miss nothing. It may be called more than once."""
        self.delivery_s = Histogram(SECONDS)
        """From the first message of a read to the last write of its batch. No other message of the read waited longer."""
        self.write_s = Histogram(SECONDS)
        """From the end of a read to the last write of its batch."""
        self.publish_times = PublishTimes()
        """From publishing the first message of a read to the last write of its batch."""
        self.received = 0
        self.duplicates = 0
        self.markers = 0
        self.bad: Counter[str] = Counter()
        """Deliveries skipped, by reason."""

    # For the sessions.

    def judge_position(self, position: str, *, final: bool = False) -> Judged:
        """Return a position's place in history, None if it is surely unknown, or `PENDING` while that can't be proven.

        `final`: a marker that was published after the client asked has been read. Then the log does not reach a position after it.
        """
        found = self._history.find(position)
        if found is not None:
            return found if self.history_complete and found.seq <= self._hub.flushed.seq else PENDING
        if not (match := parse_position(position)):
            return None
        if isinstance(self._epoch, str):  # a log of this process: a position that it does not hold will never come
            return None if self.history_complete else PENDING
        if not self._proven or not self.history_complete:
            return PENDING
        newest = self._history.newest
        if final or (newest is not None and int(match[1]) <= newest.offset):
            return None
        return PENDING

    def wait_for_position(self, position: str, callback: Callable[[Delivery | None], None]) -> Callable[[], None]:
        """Call `callback` once a position that was `PENDING` is judged. Return a function that cancels this."""
        cancel = self._waiters.add(position, callback)
        self.on_position_asked()
        return cancel

    @property
    def waiting(self) -> int:
        """The number of clients that wait for their position to be judged."""
        return len(self._waiters)

    # `Sink`, for the source. The hot path: `deliver` for each message, `end_batch` for each read.

    def deliver(self, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Check a message, keep it in history, and hand it to the hub."""
        self.received += 1
        if (now := self._now) is None:
            now = self._now = self._clock()
        history = self._history
        if routing_key not in history.topics or len(body) > self.max_payload_bytes or not is_plain_object(body):
            try:
                self.check(routing_key, body)
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

    def end_batch(self, on_written: Callable[[int], None], published: PublishedAt | None = None) -> None:
        """Flush the batch, and drop what is too old. `on_written` gets the number of bytes that were written since the last batch.

        `published` says when the batch's first message was published.
        """
        read_at, self._now = self._now, None
        now = self._clock()
        self._history.trim(now)
        if self.history_complete:
            self._hub.flush(partial(self._report_written, on_written, read_at, now, published))
            if self._waiters:
                newest = self.newest
                self._waiters.judge(upto=-1 if newest is None else newest)
        else:
            on_written(0)

    def _report_written(
        self, on_written: Callable[[int], None], read_at: float | None, flushed_at: float, published: PublishedAt | None
    ) -> None:
        before, self._bytes_out = self._bytes_out, self._hub.counters.bytes_out
        if read_at is not None and self._bytes_out != before:
            now = self._clock()
            self.write_s.observe(now - flushed_at)
            self.delivery_s.observe(now - read_at)
            if published is not None:
                self.publish_times.observe(published, self._wall_clock())
        on_written(self._bytes_out - before)

    @property
    def newest(self) -> int | None:
        """The offset of the newest delivery, None before the first."""
        return None if self._history.newest is None else self._history.newest.offset

    @property
    def oldest(self) -> int | None:
        """The offset of the oldest delivery that `compare` knows, or None."""
        return None if self._history.oldest is None else self._history.oldest.offset

    def begin(self, epoch: str) -> None:
        """Expect deliveries of a log of this process. Its positions have this epoch."""
        self._epoch = epoch
        if not self._history.head.seq:
            self._history.begin(0, epoch)
        self._hub.flush()
        self._proven = True

    def continue_log(self, epoch: str, floor: int) -> None:
        """Go on with the log of another process. `floor`: the offset after which its history begins. Call it before the first delivery."""
        self._epoch = epoch
        self._history.begin(floor, epoch)
        self._hub.flush()

    def proven(self, proven: bool) -> None:
        """Set whether the log that is read now is the one that history holds."""
        self._epoch = self._fingerprint
        self._proven = proven
        if proven:
            self._waiters.judge()
            if self._waiters:
                self.on_position_asked()

    def marker_sent(self, text: str) -> None:
        """Remember which clients wait now: this marker answers them when it arrives."""
        self._waiters.marker_sent(text)

    def marker_confirmed(self, text: str) -> None:
        """During the refill: remember which clients have subscribed by now.

        A client that subscribes later needs only the deliveries after this marker.
        """
        if not self.history_complete:
            numbers, before = self._marker_numbers, self._subscribed_before
            numbers[text] = number = 1 + next(reversed(numbers.values()), 0)
            if len(numbers) > MAX_REFILL_MARKERS:
                oldest = next(iter(numbers))
                del numbers[oldest]
                self._marker_places.pop(oldest, None)
            self._subscribed_before = {
                subscriber: before.get(subscriber, number) for subscriber in self._hub.subscribers if subscriber.topics
            }
            self.on_joinable()

    def caught_up(self, *, replay: bool = False) -> None:
        """End the refill: hand later deliveries to the hub, and feed the clients that have subscribed during the refill.

        `replay`: feed them everything that is held, instead of what follows the markers.
        """
        if self.history_complete:
            return
        self._hub.flush()
        self.history_complete = True
        if replay:
            self._hub.replay(self._history.floor, list(self._hub.subscribers), self._refill_holes)
        else:
            self._replay_after_markers()
        self._marker_numbers.clear()
        self._subscribed_before.clear()
        self._marker_places.clear()
        self._refill_holes.clear()
        self._waiters.judge()
        self.on_joinable()

    def _replay_after_markers(self) -> None:
        """Feed each client that subscribed during the refill from the newest marker that was confirmed before it subscribed.

        A client that subscribed before the first marker is fed from that one. It may have missed deliveries before the marker, and
        gets a gap notice.
        """
        left = [subscriber for subscriber in self._hub.subscribers if subscriber.topics]
        # From the newest marker to the oldest: its place and its number.
        read_markers = [
            (place, number)
            for text, number in reversed(self._marker_numbers.items())
            if (place := self._marker_places.get(text)) is not None
        ]
        first, oldest = read_markers[-1] if read_markers else (self._history.head, inf)
        before = {subscriber: self._subscribed_before.get(subscriber, inf) for subscriber in left}  # inf: after all of them
        self._hub.gap(self._history.floor, first, "broker", [subscriber for subscriber in left if before[subscriber] <= oldest])
        for place, number in read_markers:
            self._hub.replay(place, [subscriber for subscriber in left if before[subscriber] > number], self._refill_holes)
            left = [subscriber for subscriber in left if before[subscriber] <= number]
        if read_markers:
            self._hub.replay(first, left, self._refill_holes)

    def marker(self, marker: Marker, body: bytes, offset: int, message_id: str | None, *, through_exchange: bool) -> None:
        """Keep a marker in history, and tell clients of the hole that it reports.

        The positions that the marker settles are judged at the end of the batch.
        """
        self.markers += 1
        kept = self._history.append(MARKER_TOPIC, body, offset, self._epoch, message_id, self._clock())
        self._waiters.marker_received(marker.text)
        if not self.history_complete and marker.text in self._marker_numbers:
            self._marker_places[marker.text] = kept
        if isinstance(self._epoch, str):
            return  # a log of this process: the source itself tells of its holes, and another daemon's offsets mean nothing here
        if marker.hole is None:
            if through_exchange and not self._unbound_end_open:
                self._unbound_told_to = -1  # the binding was there: a hole that is reported after this is another one
            return
        # Two daemons that found the same hole report it in two markers. The second marker's hole begins before the first marker's
        # place. The hole of a daemon that lags or has just started may begin there, too, and still be another one. But then a marker
        # without a hole came in between, and has reset `_unbound_told_to`.
        if marker.hole < self._unbound_told_to:
            if self._unbound_end_open:
                self._unbound_end_open = False
                self._history.barrier = kept
            return
        self._unbound_told_to, self._unbound_end_open = offset, False
        self._hub.flush()
        # Clients may know already of a hole of another kind that ends after `marker.hole`.
        start = max(self._history.at(marker.hole) or self._history.floor, self._told_to, key=attrgetter("seq"))
        self._history.barrier = self._told_to = kept
        self._tell(start, kept, "broker")

    def gap(self, reason: str) -> None:
        """Put a mark into history, and tell every client of the gap. Clients may resume from the mark, but from no place before it."""
        self._hub.flush()
        start = self._history.head
        end = self._history.mark(max(start.offset, 0), self._new_epoch())
        self._hub.flush()
        self._tell(start, end, reason)

    def compare(self, routing_key: str, body: bytes, offset: int) -> bool | None:
        """Return whether history holds this very message at this offset, or None if it holds nothing there."""
        held = self._history.at(offset)
        if held is None:
            return None
        return held.payload == body and held.topic in {routing_key, MARKER_TOPIC}

    def hole(
        self, routing_key: str, body: bytes, offset: int, message_id: str | None, reason: str, *, marker_follows: bool = False
    ) -> None:
        """Put a mark just before this delivery, which comes next, and tell every client of the gap before it."""
        self._hub.flush()
        if marker_follows:
            self._unbound_told_to, self._unbound_end_open = offset, True
        start, shared = self._cut or (self._history.head, False)
        self._cut = None
        epoch = self._fingerprint(routing_key, message_id, body) + BEFORE
        # If `rewind` kept the deliveries before the cut, clients may resume from before the hole.
        end = self._told_to = self._history.mark(offset, epoch, barrier=not shared)
        self._hub.flush()
        self._tell(start, end, reason, resumable=shared)

    def rewind(self, offset: int | None) -> None:
        """Forget the deliveries that the log lost: those after this offset, or all of them."""
        self._hub.flush()
        history = self._history
        left = None if offset is None else history.rewind(offset)
        self._refill_holes = [hole for hole in self._refill_holes if left is not None and hole.end.seq <= left.seq]
        if left is not None:
            self._cut = left, True
            history.head = left
        else:
            self._cut = history.head, False
            history.mark(0, "")
            history.clear()
        self._unbound_told_to = -1
        self._hub.flush()

    def restart(self) -> None:
        """Forget everything: the refill starts over."""
        self._history.mark(0, "")
        self._history.clear()
        self._unbound_told_to = -1
        self._refill_holes.clear()

    def _tell(self, start: Delivery, end: Delivery, reason: str, *, resumable: bool = False) -> None:
        """Tell every client of a gap. During the refill no client has got anything: keep the hole for `caught_up`."""
        if self.history_complete:
            self._hub.gap(start, end, reason, resumable=resumable)
        else:
            self._refill_holes.append(Hole(start, end, reason))

    # The check of a message.

    def check(self, routing_key: str, body: bytes) -> None:
        """Raise `BadDelivery` for a message that can't be forwarded, with the reason that fits best.

        This is the whole check. `deliver` calls it only for messages that fail its short check.
        """
        if routing_key in WITHHELD:
            raise BadDelivery("withheld", f"{routing_key} is never forwarded")
        if not is_routing_key(routing_key):
            raise BadDelivery("routing_key", f"routing key {_shown(routing_key)} is not group.event")
        if len(body) > self.max_payload_bytes:
            raise BadDelivery("too_large", f"{len(body)} bytes on {routing_key}: more than max_payload_bytes = {self.max_payload_bytes}")
        check_payload(routing_key, body)

    def _skip(self, bad: BadDelivery, now: float) -> None:
        self.bad[bad.reason] += 1
        if bad.reason == "withheld":
            return  # no fault: AWX sends these all the time
        last = self._reported.get(bad.reason)
        if last is None or now - last >= REPORT_EVERY_S:
            self._reported[bad.reason] = now
            self._report(bad)


def _shown(routing_key: str) -> str:
    """Return the start of a name from outside, quoted for a log line."""
    return repr(routing_key[:60]) + ("…" if len(routing_key) > 60 else "")
