"""Measures how late the reactor runs its timers: the time for which one turn of it keeps all other work waiting."""

from __future__ import annotations

from typing import Any

from towerws.core.histogram import SECONDS, Histogram

INTERVAL_S = 0.25
"""Time between two samples. Four timers a second cost some 50 µs of CPU. A stall that is longer than this is always seen."""


class ReactorLag:
    """Keeps a timer, and a histogram of the seconds by which it was late."""

    def __init__(self, reactor: Any) -> None:
        self.histogram = Histogram(SECONDS)
        self._reactor = reactor
        self._timer: Any = None
        self._due = 0.0

    def start(self) -> None:
        """Take a sample every `INTERVAL_S` seconds from now on."""
        self._due = self._reactor.seconds() + INTERVAL_S
        self._timer = self._reactor.callLater(INTERVAL_S, self._sample)

    def stop(self) -> None:
        """Take no more samples. A second call does nothing."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _sample(self) -> None:
        self.histogram.observe(max(0.0, self._reactor.seconds() - self._due))
        self.start()
