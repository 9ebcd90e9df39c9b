"""How long events take from their producers to the clients' sockets, by the clocks of both machines.

A message says when it was published, in milliseconds (`timestamp_in_ms`) or in whole seconds (AMQP's `timestamp`).
"""

from __future__ import annotations

from math import floor
from typing import Final, Literal, NamedTuple

from towerws.core.histogram import SECONDS, Histogram

TOLERANCE_S: Final = 0.05
"""Clocks of machines that are synchronised over a network differ by less. A time this far in the future is no mistake."""

TOO_OLD_S: Final = 86_400.0
"""A time before this is taken for a mistake of the producer, such as 0. One such value would spoil the sum for ever."""

Resolution = Literal["millisecond", "second"]


class PublishedAt(NamedTuple):
    """When a message was published, in seconds since 1970 by the producer's clock."""

    seconds: float
    resolution: Resolution


class PublishTimes:
    """Measures the time from publishing to writing, apart for each resolution, and counts the times that can't be true."""

    def __init__(self) -> None:
        self._histograms: dict[Resolution, Histogram] = {"millisecond": Histogram(SECONDS), "second": Histogram(SECONDS)}
        self.future = 0
        """Times more than `TOLERANCE_S` after the present, by this machine's clock. Each counts as 0 s."""
        self.too_old = 0
        """Times more than `TOO_OLD_S` ago. They are in no histogram."""

    def observe(self, published: PublishedAt, now: float) -> None:
        """Count an event that is written `now`, in seconds since 1970.

        With whole seconds, seconds are counted that began in between. A single value is off by up to a second, their mean is not.
        """
        seconds, resolution = published
        elapsed_s = now - seconds
        if elapsed_s > TOO_OLD_S:
            self.too_old += 1
            return
        if elapsed_s < -TOLERANCE_S:
            self.future += 1
        if resolution == "second":
            elapsed_s = floor(now) - seconds
        self._histograms[resolution].observe(max(0.0, elapsed_s))

    def figures(self) -> dict[str, object]:
        """Return the histograms by resolution, and the counters."""
        return {
            **{name: histogram.figures() for name, histogram in self._histograms.items()},
            "future": self.future,
            "too_old": self.too_old,
        }
