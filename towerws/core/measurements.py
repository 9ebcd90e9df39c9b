"""What is measured while the daemon runs: a histogram for the metrics, and how long events take from their producers to the clients.

An observation costs less than a microsecond. The time from publishing to writing goes by the clocks of both machines. A message says when
it was published, in milliseconds (`timestamp_in_ms`) or in whole seconds (AMQP's `timestamp`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import floor
from typing import Final, Literal, NamedTuple

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds for times: 100 µs is a batch for a few clients, 10 s a timeout."""

BATCH = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Bounds for the deliveries of a batch. 1,000 is the default of `prefetch`."""

TOLERANCE_S: Final = 0.05
"""Clocks of machines that are synchronised over a network differ by less. A time this far in the future is no mistake."""

TOO_OLD_S: Final = 86_400.0
"""A time before this is taken for a mistake of the producer, such as 0. One such value would spoil the sum for ever."""

Resolution = Literal["millisecond", "second"]


class Histogram:
    """Counts values by size, in plain integers. `bounds` are the upper bounds of its buckets, ascending. One more bucket has no bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value. It belongs to the first bucket whose bound is not smaller."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def figures(self) -> dict[str, object]:
        """Return the sum of all values, and by bound how many values were at most that large. JSON-compatible."""
        bounds = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        return {"sum": round(self._sum, 6), "buckets": dict(zip(bounds, accumulate(self._counts), strict=True))}


class PublishedAt(NamedTuple):
    """When a message was published, in seconds since 1970 by the producer's clock."""

    seconds: float
    resolution: Resolution


class PublishTimes:
    """Measures the time from publishing to writing, separately for each resolution. Counts the times that can't be true."""

    def __init__(self) -> None:
        self._histograms: dict[Resolution, Histogram] = {"millisecond": Histogram(SECONDS), "second": Histogram(SECONDS)}
        self.future = 0
        """Times more than `TOLERANCE_S` after the present, by this machine's clock. Each counts as 0 s."""
        self.too_old = 0
        """Times more than `TOO_OLD_S` ago. They are in no histogram."""

    def observe(self, published: PublishedAt, now: float) -> None:
        """Count an event that is written `now`, in seconds since 1970.

        If the producer gave whole seconds, this counts the seconds that began in between. A single value may be off by up to a
        second. The mean of all values is not.
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
