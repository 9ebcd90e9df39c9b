"""Clients whose position can't be judged yet: they wait for a proof, never for a guess.

A position waits while history is being refilled, while nothing proves that the log is still the same one, and while it lies
beyond the newest delivery (the client comes from a daemon that is ahead). It is judged when the log has reached it, or when
a marker that was published after the client asked has been read: then the log is known not to reach it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final, Protocol

from towerws.core.deliveries import Delivery, parse_position

MAX_MARKERS: Final = 64
"""How many of our markers on their way are remembered. There are two at most, unless the broker swallows them."""


class Pending(enum.Enum):
    """No verdict yet."""

    PENDING = "pending"


PENDING: Final = Pending.PENDING

Judged = Delivery | None | Pending
"""Where a position is in history; None: it is unknown for sure; or no verdict yet."""


class Judge(Protocol):
    """See `Ingest.judge_position`."""

    def __call__(self, position: str, *, final: bool = False) -> Judged:
        """The verdict, as far as there is one."""


@dataclass(slots=True, eq=False)
class _Waiter:
    position: str
    number: int
    """How many markers had been sent when it asked."""
    call: Callable[[Delivery | None], None]
    final: bool = False


class PositionWaiters:
    """Calls each waiter once with what `judge` says of its position."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._waiters: dict[_Waiter, None] = {}
        self._by_offset: list[tuple[int, int, _Waiter]] = []
        self._added = 0
        self._sent = 0
        self._markers: dict[str, int] = {}
        self._came = -1

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, position: str, call: Callable[[Delivery | None], None]) -> Callable[[], None]:
        """Wait. What is returned takes it back."""
        match = parse_position(position)
        waiter = _Waiter(position, self._sent, call)
        self._waiters[waiter] = None
        self._added += 1
        heappush(self._by_offset, (int(match[1]) if match else 0, self._added, waiter))

        def forget() -> None:
            self._waiters.pop(waiter, None)
            if not self._waiters:
                self._by_offset.clear()

        return forget

    def marker_sent(self, text: str) -> None:
        """A marker is being published: when it comes back, it answers all who wait now."""
        self._sent += 1
        if not self._waiters:
            self._markers.clear()
        elif len(self._markers) >= MAX_MARKERS:
            del self._markers[next(iter(self._markers))]
        self._markers[text] = self._sent

    def marker_came(self, text: str) -> None:
        """A marker was read. Who it answers is judged at the next `judge`."""
        self._came = max(self._came, self._markers.pop(text, -1))

    def judge(self, upto: int | None = None) -> None:
        """Judge again: everybody, or those whose position is not behind this offset, and those whom a marker answers."""
        came, self._came = self._came, -1
        due: list[_Waiter] = []
        if upto is None or came >= 0:
            due = list(self._waiters)
        else:
            while self._by_offset and self._by_offset[0][0] <= upto:
                due.append(heappop(self._by_offset)[2])
        for waiter in due:
            if waiter not in self._waiters:
                continue
            waiter.final = waiter.final or waiter.number < came
            verdict = self._judge(waiter.position, final=waiter.final)
            if not isinstance(verdict, Pending):
                del self._waiters[waiter]
                waiter.call(verdict)
        if not self._waiters:
            self._by_offset.clear()
