"""Intake: what a source feeds. It judges each message, keeps it in history, and hands it to the hub.

A message is forwarded if its payload is one JSON object in UTF-8 (`payload.py`), its routing key usable and its size within the
bound. What fails is counted by reason, the first of a burst is reported, and the next one arrives.

  state     | attach                  | deliver                         | caught_up          | gap
  filling   | filling                 | into history only               | flowing, tell all  | filling
  flowing   | check the first offset  | into history and to the hub     | flowing            | mark the log, tell all
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from towerws.core.errors import BadDelivery
from towerws.core.groups import WITHHELD
from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.payload import check_payload, is_plain_object
from towerws.core.topics import is_routing_key

TURN_OCTETS = 256 * 1024
"""A turn ends early beyond this, so that what one write leaves in a socket's buffer stays within the connection's bound."""

REPORT_EVERY_S = 60
"""A burst of messages that are bad for the same reason is reported once in this time; the counter tells how many there were."""


class Intake:
    """The `Sink` of the daemon's source (see `towerws.core.sources.Sink` for what each call promises).

    `clock` gives monotonic seconds; `report` is called with the text of a bad delivery, at most once a minute per reason;
    `new_tag` makes a random text that names a mark in the log.
    """

    def __init__(
        self,
        history: History,
        hub: Hub,
        *,
        max_payload_octets: int,
        clock: Callable[[], float],
        report: Callable[[BadDelivery], None],
        new_tag: Callable[[], str],
    ) -> None:
        self._history = history
        self._hub = hub
        self._max_payload_octets = max_payload_octets
        self._clock = clock
        self._report = report
        self._new_tag = new_tag
        self._tag: str | None = None
        self._attached = False
        self._expect: int | None = None
        self._now: float | None = None
        self._octets_out = 0  # of the hub's counter, those that a turn has accounted for
        self._reported: dict[str, float] = {}
        self._waiting: list[Callable[[], None]] = []
        self.flowing = False
        """Whether history has been refilled, so that positions can be judged and deliveries go out."""
        self.received = 0
        self.duplicates = 0
        self.bad: Counter[str] = Counter()
        """Deliveries skipped, by reason."""

    def when_flowing(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call this once deliveries flow; what is returned takes the request back."""
        self._waiting.append(call)

        def forget() -> None:
            if call in self._waiting:
                self._waiting.remove(call)

        return forget

    # Sink

    def resume_from(self) -> int | None:
        """The newest delivery's offset; None while there is none."""
        offset = self._history.head.offset
        return None if offset < 0 else offset

    def attach(self, log: str | None, expect: int | None) -> None:
        """Deliveries will come now."""
        if log is not None and not self._attached:
            self._history.begin(0, log)
            self._hub.flush()
        self._attached = True
        self._tag = log
        self._expect = expect

    def caught_up(self) -> None:
        """Let deliveries flow. Whoever was let in before can't know what it missed, and is told so."""
        if self.flowing:
            return
        start = self._history.floor
        self._hub.flush()
        self.flowing = True
        self._hub.gap(start, self._history.head, "broker")
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def deliver(self, routing_key: str, body: bytes, offset: int, message_id: str | None) -> None:
        """Judge, keep, hand on."""
        self.received += 1
        if (now := self._now) is None:
            now = self._now = self._clock()
        history = self._history
        if (self._expect is not None or offset <= history.head.offset) and self._is_head_again(routing_key, body, offset):
            return
        if routing_key not in history or len(body) > self._max_payload_octets or not is_plain_object(body):
            try:
                self.judge(routing_key, body)
            except BadDelivery as bad:
                self._skip(bad, now)
                return
        if message_id is not None and history.has_message(message_id):
            self.duplicates += 1
            return
        delivery = history.append(routing_key, body, offset, self._tag, message_id, now)
        if self.flowing:
            self._hub.publish(delivery)
            if self._hub.turn_octets > TURN_OCTETS:
                self._hub.flush()

    def end_turn(self, written: Callable[[int], None]) -> None:
        """Write the turn to the connections, and let go of what is too old. `written` is told the octets since the last turn."""
        self._now = None
        self._history.trim(self._clock())
        if self.flowing:
            self._hub.flush(partial(self._turn_written, written))
        else:
            written(0)

    def gap(self, reason: str) -> None:
        """Mark the log: nobody resumes from before this, and everyone is told once."""
        self._hub.flush()
        start = self._history.head
        end = self._history.mark(start.offset, self._new_tag())
        self._hub.flush()
        if self.flowing:
            self._hub.gap(start, end, reason)

    def _turn_written(self, written: Callable[[int], None]) -> None:
        before, self._octets_out = self._octets_out, self._hub.counters.octets_out
        written(self._octets_out - before)

    # how a delivery is judged

    def _is_head_again(self, routing_key: str, body: bytes, offset: int) -> bool:
        """Check the first delivery after a link was lost; True when it is the head once more, as it should be."""
        head, asked = self._history.head, self._expect is not None
        self._expect = None
        if asked and offset == head.offset and (not head.topic or (routing_key == head.topic and body == head.payload)):
            return True
        if offset <= head.offset:  # the stream was deleted and made anew: its offsets mean something else now
            self._hub.flush()
            self._history.mark(-1, self._new_tag())
            self._history.clear()
            if self.flowing:
                self._hub.gap(head, self._history.head, "broker")
            self._hub.flush()
        else:  # what should have come first is no longer there
            self.gap("broker")
        return False

    def judge(self, routing_key: str, body: bytes) -> None:
        """Raise `BadDelivery` with the reason that fits best; the whole check, for whatever the short one did not pass."""
        if routing_key in WITHHELD:
            raise BadDelivery("withheld", f"{routing_key} is never forwarded")
        if not is_routing_key(routing_key):
            raise BadDelivery("routing_key", f"routing key {_shown(routing_key)} is not group.event")
        if len(body) > self._max_payload_octets:
            raise BadDelivery(
                "too_large", f"{len(body)} octets on {routing_key}: more than max_payload_octets = {self._max_payload_octets}"
            )
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
