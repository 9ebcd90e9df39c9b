"""The two decisions that the stream reader takes from what it read: is it the same log, and is the node's clock right."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from towerws.broker.reader import CLOCK_MARGIN_S, ReadProgress

CLOCK_MARKER_S: Final = CLOCK_MARGIN_S - 1
"""If our marker was older than this when the node was asked for the last ten seconds, the answer says nothing about its clock."""

CLOCK_CHECKS: Final = 3
"""How often the node is asked, each time with a younger marker. If the connection is too slow for all of them, everything is read."""


class Same(enum.Enum):
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

    def repeated(self, routing_key: str, body: bytes, offset: int) -> Same:
        """Judge a message at an offset that was read before, as the main consumer delivers it from the anchor on."""
        newest, anchor = self._sink.newest, self._progress.anchor
        same = self._sink.compare(routing_key, body, offset)
        if same is None and anchor is not None and offset == anchor[0]:
            same = body == anchor[1]
        if same is False:
            return Same.NO
        return Same.YES if newest is None or offset >= newest else Same.UNDECIDED

    def differs(self, routing_key: str, body: bytes, offset: int) -> bool:
        """Whether a message that the scout found differs from what was read at this offset."""
        return self._sink.compare(routing_key, body, offset) is False

    def from_oldest(self, routing_key: str, body: bytes, offset: int, *, is_proof: Callable[[bytes], bool]) -> Same:
        """Judge the next message after the oldest delivery that history holds, and move `shared` on.

        `is_proof` tells whether a body is our marker that was published after the consumer was accepted. So the log ends here.
        """
        newest = self._sink.newest
        same = self._sink.compare(routing_key, body, offset)
        if same:
            self.shared = offset
            return Same.YES if offset == newest else Same.UNDECIDED
        return Same.NO if same is False or newest is None or offset > newest or is_proof(body) else Same.UNDECIDED


class Clock(enum.Enum):
    """What the node's answer says about its clock."""

    RIGHT = "right"
    NOT_PROVEN = "not proven"
    ASK_AGAIN = "ask again"


class ClockCheck:
    """Judges the node's clock. The node was asked for the last ten seconds, just after our marker was read from the stream.

    If its clock is right, the marker is among them. If its clock is ahead, everything is older than that, and the node delivers what is
    written next.
    """

    def __init__(self) -> None:
        self.running = False
        self._checks = 0
        self._marker_offset = -1
        self._sent_at = self._asked_at = 0.0

    def reset(self) -> None:
        """Begin with a new connection or channel: nothing was asked yet."""
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

    def judge(self, offset: int) -> Clock:
        """Judge by the first offset that the node delivered."""
        self.running = False
        if offset <= self._marker_offset:
            return Clock.RIGHT
        if self._asked_at - self._sent_at <= CLOCK_MARKER_S or self._checks >= CLOCK_CHECKS:
            return Clock.NOT_PROVEN
        return Clock.ASK_AGAIN  # the marker itself was more than ten seconds old
