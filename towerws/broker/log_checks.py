"""Judges what the stream reader read: whether it is the same log, the node's clock is right, and the refill began early enough."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from towerws.core.deliveries import Marker

if TYPE_CHECKING:
    from towerws.broker.reader import ReadProgress

CLOCK_MARGIN_S: Final = 10
"""The refill begins this much earlier than needed. So the node's clock may be this far ahead of the clock of the stream's leader."""

CLOCK_MARKER_S: Final = CLOCK_MARGIN_S - 1
"""If our marker was older than this when the node was asked for the last ten seconds, the answer says nothing about its clock."""

CLOCK_CHECKS: Final = 3
"""How often the node is asked, each time with a younger marker. If the connection is too slow for all of them, everything is read."""


MIN_STEP: Final = 1000
"""A refill that has to begin earlier begins at least this many offsets earlier. After that it begins twice as far back each time."""

MAX_DAEMONS: Final = 1000
"""One refill looks at the markers of at most this many daemons."""

FIRST_OFFSETS: Final = 2
"""If a refill's first message has at most this offset, it is the first of the stream: a stream begins with an internal entry."""


class SameLog(enum.Enum):
    """Whether the stream is the log that was read before."""

    YES = "yes"
    NO = "no"
    UNDECIDED = "undecided"


class LogComparison:
    """Compares what the stream delivers with what was read from it before."""

    def __init__(self, progress: ReadProgress) -> None:
        self._progress = progress
        self._sink = progress.sink
        self.shared: int | None = None
        """The newest offset at which both logs hold the same delivery. None: there is none."""

    def judge_from_anchor(self, routing_key: str, body: bytes, offset: int) -> SameLog:
        """Judge a message of the main consumer, which reads again from the anchor on. The offset was read before."""
        newest, anchor = self._sink.newest, self._progress.anchor
        same = self._sink.compare(routing_key, body, offset)
        if same is None and anchor is not None and offset == anchor[0]:
            same = body == anchor[1]
        if same is False:
            return SameLog.NO
        return SameLog.YES if newest is None or offset >= newest else SameLog.UNDECIDED

    def differs(self, routing_key: str, body: bytes, offset: int) -> bool:
        """Whether a message that the scout found differs from what was read at this offset."""
        return self._sink.compare(routing_key, body, offset) is False

    def judge_from_oldest(self, routing_key: str, body: bytes, offset: int, *, is_proof: Callable[[bytes], bool]) -> SameLog:
        """Judge the next message after the oldest delivery that history holds, and move `shared` on.

        `is_proof(body)` tells whether it is our marker that was published after the broker accepted the consumer. If such a marker comes
        before the newest delivery, the log ends too early: it is not the same.
        """
        newest = self._sink.newest
        same = self._sink.compare(routing_key, body, offset)
        if same:
            self.shared = offset
            return SameLog.YES if offset == newest else SameLog.UNDECIDED
        return SameLog.NO if same is False or newest is None or offset > newest or is_proof(body) else SameLog.UNDECIDED


class ClockVerdict(enum.Enum):
    """What the node's answer says about its clock."""

    RIGHT = "right"
    NOT_PROVEN = "not proven"
    ASK_AGAIN = "ask again"


class ClockCheck:
    """Judges the node's clock. The node was asked for the last ten seconds, just after our marker was read from the stream.

    If its clock is right, the marker is among the messages of the last ten seconds. If its clock is ahead, all messages seem older, and
    the node delivers the next message that is written.
    """

    def __init__(self) -> None:
        self.running = False
        self._checks = 0
        self._marker_offset = -1
        self._sent_at = self._asked_at = 0.0

    def reset(self) -> None:
        """Forget the checks: on a new connection or channel nothing was asked yet."""
        self.running = False
        self._checks = 0

    def begin(self, marker_offset: int, sent_at: float) -> None:
        """Ask the node. Our marker is at `marker_offset`, and was published at `sent_at` (monotonic seconds)."""
        self.running = True
        self._checks += 1
        self._marker_offset, self._sent_at, self._asked_at = marker_offset, sent_at, 0.0

    def asked(self, now: float) -> None:
        """The node accepted the consumer at `now` (monotonic seconds)."""
        self._asked_at = now

    def judge(self, offset: int) -> ClockVerdict:
        """Judge by the first offset that the node delivered."""
        self.running = False
        if offset <= self._marker_offset:
            return ClockVerdict.RIGHT
        if self._asked_at - self._sent_at <= CLOCK_MARKER_S or self._checks >= CLOCK_CHECKS:
            return ClockVerdict.NOT_PROVEN
        return ClockVerdict.ASK_AGAIN  # the marker itself was more than ten seconds old


class RefillReach:
    """Judges whether a refill by an interval of the broker's clock began early enough.

    If the broker's clock was set forward, messages look older than they are, and the interval leaves them out. The markers of the
    daemons on this machine show it: each says when its daemon published the one before, by the time since the machine's start. If a
    marker is young enough for history, and was not read, then the refill began too late.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self, start: int | None = None) -> None:
        """A refill begins: by the interval, or at the offset `start`."""
        self._start = start
        self._first: int | None = None
        self._from_oldest = False
        self._daemons: set[str] = set()
        self._left_out_s = math.inf
        """The age of the youngest marker that was left out."""

    def begins(self, offset: int) -> None:
        """The refill's first message has this offset. If the refill asked for an earlier one, this is the oldest that the stream holds."""
        self._first = offset
        self._from_oldest = self._start is not None and offset > self._start + 2  # internal entries take offsets, too

    def marker(self, marker: Marker, machine: str, uptime_s: float) -> None:
        """A marker was read. `machine` and `uptime_s` are ours, now. Only the first marker of each daemon counts."""
        if marker.machine != machine or not machine or marker.daemon in self._daemons or len(self._daemons) >= MAX_DAEMONS:
            return
        self._daemons.add(marker.daemon)
        # A time in the future comes from a process with a clock of its own, and proves nothing.
        if marker.previous_s is not None and marker.previous_s <= uptime_s:
            self._left_out_s = min(self._left_out_s, uptime_s - marker.previous_s)

    def earlier_start(self, refill_s: float, oldest: int | None, newest: int) -> int | None:
        """Return the offset at which the refill has to begin instead. None: nothing shows that it began too late.

        `refill_s` is how far back history reaches. `oldest` is the oldest offset that history still holds. If history dropped the first
        messages of this refill, an earlier start would not help. `newest` is the offset of the newest marker that was read.
        """
        first = self._first
        if first is None or self._from_oldest or self._left_out_s >= refill_s or first <= FIRST_OFFSETS:
            return None
        if oldest is None or oldest - first > MIN_STEP:
            return None
        return max(0, first - max(MIN_STEP, newest - first))
