"""Clients whose position can't be judged yet: they wait for a proof.

A position waits in three cases. History is being refilled. Nothing proves yet that the log is still the same one. Or the position
lies after the newest delivery, because the client comes from a daemon that is ahead.

A position is judged when the log has reached it, or when a marker has been read that was published after the client asked. That
marker proves that the log does not reach the position.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final, Protocol

from towerws.core.deliveries import Delivery, parse_position

MAX_UNREAD_MARKERS: Final = 64
"""The most unread markers of this daemon that are remembered. There are at most two, unless the broker loses them."""

SPARE_ENTRIES: Final = 64
"""The heap may have this many entries more than twice the number of waiting clients. Then entries of clients that wait no more
are removed."""


class Pending(enum.Enum):
    """No verdict yet."""

    PENDING = "pending"


PENDING: Final = Pending.PENDING

Judged = Delivery | None | Pending
"""A position's place in history, None if it is surely unknown, or no verdict yet."""


class Judge(Protocol):
    """See `Ingest.judge_position`."""

    def __call__(self, position: str, *, final: bool = False) -> Judged:
        """Return the verdict, as far as there is one."""


@dataclass(slots=True, eq=False)
class _Waiter:
    position: str
    markers_before: int
    """The number of markers that had been sent when the client asked."""
    callback: Callable[[Delivery | None], None]
    final: bool = False
    """Whether a marker that was sent later has been read."""


class PositionWaiters:
    """Calls each waiting client's callback once with the verdict of `judge` on its position."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._waiters: dict[_Waiter, None] = {}
        self._by_offset: list[tuple[int, int, _Waiter]] = []  # a heap: offset, a number that settles ties
        self._added = 0
        self._markers_sent = 0
        self._unread_markers: dict[str, int] = {}  # text -> the marker's number, counted from 1
        self._newest_read = -1  # the number of the newest marker that was read since the last `judge`; -1: none

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, position: str, callback: Callable[[Delivery | None], None]) -> Callable[[], None]:
        """Wait for the verdict on a position. Return a function that cancels this."""
        match = parse_position(position)
        waiter = _Waiter(position, self._markers_sent, callback)
        self._waiters[waiter] = None
        self._added += 1
        heappush(self._by_offset, (int(match[1]) if match else 0, self._added, waiter))
        if len(self._by_offset) > 2 * len(self._waiters) + SPARE_ENTRIES:  # most are of clients that wait no more
            self._by_offset = [entry for entry in self._by_offset if entry[2] in self._waiters]
            heapify(self._by_offset)

        def cancel() -> None:
            self._waiters.pop(waiter, None)
            if not self._waiters:
                self._by_offset.clear()

        return cancel

    def marker_sent(self, text: str) -> None:
        """Remember a marker that is being published. Once it is read, all positions that wait now can be judged."""
        self._markers_sent += 1
        if not self._waiters:
            self._unread_markers.clear()
        elif len(self._unread_markers) >= MAX_UNREAD_MARKERS:
            del self._unread_markers[next(iter(self._unread_markers))]
        self._unread_markers[text] = self._markers_sent

    def marker_received(self, text: str) -> None:
        """Note that a marker was read. The next `judge` judges the positions that waited when it was sent."""
        self._newest_read = max(self._newest_read, self._unread_markers.pop(text, -1))

    def judge(self, upto: int | None = None) -> None:
        """Judge again the positions up to this offset (None: all of them).

        If a marker of this daemon was read since the last call, all of them are judged.
        """
        newest_read, self._newest_read = self._newest_read, -1
        candidates: list[_Waiter] = []
        if upto is None or newest_read >= 0:
            candidates = list(self._waiters)
        else:
            while self._by_offset and self._by_offset[0][0] <= upto:
                candidates.append(heappop(self._by_offset)[2])
        for waiter in candidates:
            if waiter not in self._waiters:
                continue
            waiter.final = waiter.final or waiter.markers_before < newest_read
            verdict = self._judge(waiter.position, final=waiter.final)
            if not isinstance(verdict, Pending):
                del self._waiters[waiter]
                waiter.callback(verdict)
        if not self._waiters:
            self._by_offset.clear()
