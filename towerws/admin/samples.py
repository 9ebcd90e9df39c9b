"""The last 15 minutes in figures, for the console: one sample each `EVERY_S`, in a ring of `KEPT` samples.

So a page shows the past as soon as it is opened. A sample has 18 numbers, so the whole ring takes about 120 KB.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final

EVERY_S: Final = 5.0
KEPT: Final = 180

Figures = Mapping[str, object]
Number = float | None

PRESENT: Final = {
    "connections": "connections.present",
    "behind": "hub.behind",
    "broker_lag_s": "source.markers.lag_s",
    "history_span_s": "history.span_s",
    "history_bytes": "history.bytes",
    "topics": "hub.topics",
}
"""Figures that a sample has unchanged, by their name in the sample."""

PER_SECOND: Final = {
    "events_in_per_s": ("ingest.received",),
    "events_out_per_s": ("hub.deliveries_out",),
    "bytes_out_per_s": ("hub.bytes_out", "hub.replayed_bytes"),
    "api_calls_per_s": ("auth.tower.calls.made", "auth.tower.calls.passwords.made"),
}
"""Counters of which a sample has the increase per second. Several counters are added."""

SINCE_LAST: Final = {
    "gaps": ("hub.gaps",),
    "refusals": ("connections.refused_for",),
    "api_failures": ("auth.tower.calls.failed", "auth.tower.calls.passwords.failed"),
}
"""Counters of which a sample has the increase since the last sample. A mapping counts as the sum of its values."""

PERCENTILES: Final = {
    "delivery_p50_s": ("ingest.delivery_s", 0.5),
    "delivery_p99_s": ("ingest.delivery_s", 0.99),
    "loop_lag_p99_s": ("process.reactor_lag_s", 0.99),
}
"""Histograms of which a sample has a percentile of the values since the last sample."""

BREAKERS: Final = {
    "session": "auth.tower.calls.breaker",
    "object": "auth.tower.calls.object_breaker",
    "password": "auth.tower.calls.passwords.breaker",
}
"""Paths of the states of the circuit breakers, by the calls that each of them protects."""

STATES: Final = ("ready", "breaker_open")

NAMES: Final = (*PRESENT, *PER_SECOND, *SINCE_LAST, *PERCENTILES, *STATES)
"""The names of a sample's numbers, in their order."""


def at(figures: object, path: str) -> object:
    """Return the figure at a path such as `source.markers.lag_s`. None if a part of the path is missing."""
    for key in path.split("."):
        if not isinstance(figures, Mapping):
            return None
        figures = figures.get(key)
    return figures


def percentile(before: Figures, after: Figures, share: float) -> Number:
    """Return a percentile of the values that a histogram counted between two of its states (`Histogram.figures`).

    `share` is 0.99 for the 99th percentile. Within a bucket, values count as evenly spread. A value beyond the last bound counts as that
    bound. None: the histogram counted no value.
    """
    old, new = before["buckets"], after["buckets"]
    assert isinstance(old, Mapping)
    assert isinstance(new, Mapping)
    counts = [(0.0, 0), *((float(bound), count - old[bound]) for bound, count in new.items())]
    wanted = share * counts[-1][1]
    if not wanted:
        return None
    for (low, below), (high, upto) in pairwise(counts):
        if upto >= wanted:
            return low if high == float("inf") else low + (high - low) * (wanted - below) / (upto - below)
    return counts[-2][0]


class Samples:
    """Takes samples of the figures that `status` returns. `ready` says whether events come."""

    def __init__(self, status: Callable[[], Figures], ready: Callable[[], bool]) -> None:
        self._status = status
        self._ready = ready
        self._before: tuple[float, Figures] | None = None
        self._ring: deque[tuple[Number, ...]] = deque(maxlen=KEPT)

    def tick(self, now: float) -> None:
        """Take a sample, unless the last one is less than `EVERY_S` old. `now` is in monotonic seconds."""
        if self._before is not None and now - self._before[0] < EVERY_S:
            return
        figures = self._status()
        if self._before is not None:
            self._ring.append((round(now, 2), *self._sample(figures, self._before[1], now - self._before[0])))
        self._before = now, figures

    def since(self, after: float) -> list[tuple[Number, ...]]:
        """Return the samples that were taken after this time, the oldest first: the time, then a number for each of `NAMES`."""
        return [sample for sample in self._ring if sample[0] is not None and sample[0] > after]

    def _sample(self, figures: Figures, before: Figures, elapsed_s: float) -> list[Number]:
        def grown(paths: Sequence[str]) -> float:
            return sum(_total(at(figures, path)) - _total(at(before, path)) for path in paths)

        numbers: list[Number] = [_number(at(figures, path)) for path in PRESENT.values()]
        numbers += [round(grown(paths) / elapsed_s, 3) for paths in PER_SECOND.values()]
        numbers += [grown(paths) for paths in SINCE_LAST.values()]
        for path, share in PERCENTILES.values():
            old, new = at(before, path), at(figures, path)
            found = percentile(old, new, share) if isinstance(old, Mapping) and isinstance(new, Mapping) else None
            numbers.append(None if found is None else round(found, 6))
        return [*numbers, float(self._ready()), float(breaker_is_open(figures))]


def breaker_is_open(figures: Figures) -> bool:
    """Return whether any circuit breaker holds calls to the API back."""
    return any(at(figures, path) not in {None, "closed"} for path in BREAKERS.values())


def _number(figure: object) -> Number:
    return float(figure) if isinstance(figure, int | float) else None


def _total(figure: object) -> float:
    if isinstance(figure, Mapping):
        return sum(map(_total, figure.values()))
    return _number(figure) or 0.0
