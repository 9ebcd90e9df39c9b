from __future__ import annotations

from typing import Any

from tests.kit.rows import each_row
from towerws.admin.samples import EVERY_S, KEPT, NAMES, Samples, breaker_is_open, percentile
from towerws.core.measurements import SECONDS, Histogram


def figures(**changed: Any) -> dict[str, Any]:
    """What `/status` has of the figures."""
    histogram = Histogram(SECONDS).figures()
    return {
        "connections": {"present": 3, "refused_for": {"origin": 1, "address": 1}},
        "hub": {"behind": 1, "topics": 2, "deliveries_out": 100, "bytes_out": 1000, "replayed_bytes": 0, "gaps": 0},
        "ingest": {"received": 10, "delivery_s": histogram},
        "process": {"reactor_lag_s": histogram},
        "history": {"span_s": 12.5, "bytes": 4096},
        "source": {"state": "consuming"},
        "auth": {"open": {"accepted": 3}},
        **changed,
    }


def test_rates_and_counts() -> None:
    """A sample has the present figures, rates per second, and what was counted since the sample before."""
    now = [figures()]
    samples = Samples(lambda: now[0], lambda: True)
    samples.tick(100.0)
    assert samples.since(-1) == []
    histogram = Histogram(SECONDS)
    for _ in range(100):
        histogram.observe(0.004)
    now[0] = figures(
        connections={"present": 4, "refused_for": {"origin": 3, "host": 1, "address": 1}},
        hub={"behind": 0, "topics": 2, "deliveries_out": 150, "bytes_out": 2000, "replayed_bytes": 500, "gaps": 2},
        ingest={"received": 20, "delivery_s": histogram.figures()},
    )
    samples.tick(100.0 + EVERY_S - 0.1)
    assert samples.since(-1) == []
    samples.tick(110.0)
    (sample,) = samples.since(-1)
    found = dict(zip(("at", *NAMES), sample, strict=True))
    assert found["at"] == 110.0
    assert (found["connections"], found["behind"], found["gaps"], found["refusals"]) == (4, 0, 2, 3)
    assert (found["events_in_per_s"], found["events_out_per_s"], found["bytes_out_per_s"]) == (1, 5, 150)
    assert found["delivery_p50_s"] == 0.00375
    assert found["loop_lag_p99_s"] is None
    assert (found["broker_lag_s"], found["api_calls_per_s"], found["ready"], found["breaker_open"]) == (None, 0, 1, 0)
    assert samples.since(110.0) == []


def test_ring() -> None:
    """The ring keeps a quarter of an hour."""
    samples = Samples(figures, lambda: False)
    for number in range(3 * KEPT):
        samples.tick(number * EVERY_S)
    kept = samples.since(-1)
    assert len(kept) == KEPT
    assert kept[0][0] == 2 * KEPT * EVERY_S
    assert EVERY_S * KEPT == 15 * 60


@each_row(
    "values,share,found",
    [
        ([], 0.5, None),
        ([0.00005], 0.5, 0.00005),
        ([0.002] * 4, 0.5, 0.00175),
        ([0.002] * 99 + [0.7], 0.99, 0.0025),
        ([99.0] * 10, 0.5, 10.0),
        ([0.002] * 10 + [99.0] * 90, 0.99, 10.0),
    ],
    ids=["none", "the first bucket", "within a bucket", "the share at a bound", "beyond the last bound", "most beyond it"],
)
def test_percentile(values: list[float], share: float, found: float | None) -> None:
    """The share of the values since the state before lies below the result. A value beyond the last bound counts as that bound."""
    histogram = Histogram(SECONDS)
    histogram.observe(3.0)
    before = histogram.figures()
    for value in values:
        histogram.observe(value)
    result = percentile(before, histogram.figures(), share)
    assert result == found or abs((result or 0) - (found or 0)) < 1e-9


@each_row(
    "calls,opened",
    [
        ({}, False),
        ({"breaker": "closed", "object_breaker": "closed", "passwords": {"breaker": "closed"}}, False),
        ({"breaker": "open"}, True),
        ({"breaker": "closed", "passwords": {"breaker": "probing"}}, True),
    ],
)
def test_breaker(calls: dict[str, object], opened: bool) -> None:
    """Any breaker that isn't closed counts."""
    assert breaker_is_open({"auth": {"tower": {"calls": calls}}}) is opened
