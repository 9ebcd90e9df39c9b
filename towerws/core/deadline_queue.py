"""A queue of names by deadline. It has no clock: times are seconds of the caller's."""

from __future__ import annotations

import heapq

SLACK = 64
"""The heap is rebuilt once it is larger than twice the names and this. So a rebuild costs no more than the discards since the last."""


class DeadlineQueue:
    """Names, each with its earliest deadline. Popping costs what is popped."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # may also hold later deadlines of a name, which no longer count

    def __len__(self) -> int:
        return len(self._times)

    def add(self, name: str, at: float) -> None:
        """Set a name's deadline, unless it has an earlier one."""
        if at < self._times.get(name, float("inf")):
            self._times[name] = at
            heapq.heappush(self._heap, (at, name))

    def discard(self, name: str) -> None:
        """Remove a name. A second call does nothing."""
        self._times.pop(name, None)
        if len(self._heap) > 2 * len(self._times) + SLACK:
            self._heap = [(time, kept) for kept, time in self._times.items()]
            heapq.heapify(self._heap)

    def bring_forward(self, at: float) -> None:
        """Set every deadline that is later than this to this."""
        self._heap = [(min(time, at), name) for name, time in self._times.items()]
        heapq.heapify(self._heap)
        self._times = {name: time for time, name in self._heap}

    def late(self, now: float) -> float:
        """Return the seconds since the earliest deadline passed, or 0 if none has."""
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return max(0.0, now - self._heap[0][0]) if self._heap else 0.0

    def pop_due(self, now: float, limit: int) -> list[str]:
        """Remove and return the names whose deadline has passed, earliest first, at most `limit` of them."""
        popped: list[str] = []
        while self._heap and self._heap[0][0] <= now and len(popped) < limit:
            at, name = heapq.heappop(self._heap)
            if self._times.get(name) == at:
                del self._times[name]
                popped.append(name)
        return popped
