"""What is to be done when: names, each with the earliest time that was asked for it. No clock of its own."""

from __future__ import annotations

import heapq

SLACK = 64
"""How many entries of names that were discarded may stay beyond twice the names. A rebuild then costs what was discarded since."""


class DeadlineQueue:
    """Names with a time. Looking for what is due costs what is found."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # may hold, beside each name's time, later ones that count no more

    def __len__(self) -> int:
        return len(self._times)

    def add(self, name: str, at: float) -> None:
        """This name at this time, unless it has its turn before."""
        if at < self._times.get(name, float("inf")):
            self._times[name] = at
            heapq.heappush(self._heap, (at, name))

    def discard(self, name: str) -> None:
        """Forget a name. A second call does nothing."""
        self._times.pop(name, None)
        if len(self._heap) > 2 * len(self._times) + SLACK:
            self._heap = [(time, kept) for kept, time in self._times.items()]
            heapq.heapify(self._heap)

    def hasten(self, at: float) -> None:
        """Whatever is later than this is to be done by then."""
        self._heap = [(min(time, at), name) for name, time in self._times.items()]
        heapq.heapify(self._heap)
        self._times = {name: time for time, name in self._heap}

    def late(self, now: float) -> float:
        """For how long the earliest name has been due; 0 when none is."""
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return max(0.0, now - self._heap[0][0]) if self._heap else 0.0

    def pop_due(self, now: float, most: int) -> list[str]:
        """The names whose time has come, from the earliest on, not more than `most`. They are forgotten."""
        taken: list[str] = []
        while self._heap and self._heap[0][0] <= now and len(taken) < most:
            at, name = heapq.heappop(self._heap)
            if self._times.get(name) == at:
                del self._times[name]
                taken.append(name)
        return taken
