"""A histogram for the metrics: plain integers, so that an observation costs less than a microsecond."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds for times: 100 µs is a batch for a few clients, 10 s a timeout."""

BATCH = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Bounds for the deliveries of a batch. 1,000 is the default of `prefetch`."""


class Histogram:
    """Counts values by size. `bounds` are the upper bounds of its buckets, ascending. One more bucket has no bound."""

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
