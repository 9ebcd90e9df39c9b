from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towerws.core.measurements import BATCH, SECONDS, TOLERANCE_S, TOO_OLD_S, Histogram, PublishedAt, PublishTimes

NOW = 1_800_000_000.25


def test_a_value_belongs_to_the_first_bucket_that_holds_it() -> None:
    """A bound belongs to its own bucket, as in Prometheus (`le`). A larger value than all bounds is counted, too."""
    histogram = Histogram((1.0, 2.5))
    for value in (0.0, 1.0, 1.1, 2.5, 2.6, 1000.0):
        histogram.observe(value)
    assert histogram.figures() == {"sum": 1007.2, "buckets": {"1": 2, "2.5": 4, "+Inf": 6}}


def test_an_empty_histogram() -> None:
    """All buckets are there from the start, so that a rate has a first value."""
    assert Histogram((1.0,)).figures() == {"sum": 0.0, "buckets": {"1": 0, "+Inf": 0}}


@given(st.lists(st.floats(0, 20)), st.sampled_from([BATCH, SECONDS]))
def test_against_a_plain_count(values: list[float], bounds: tuple[float, ...]) -> None:
    """For any values, each bucket has the number of values up to its bound. The figures are JSON."""
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    figures = json.loads(json.dumps(histogram.figures()))
    assert figures["buckets"] == {
        **{f"{bound:g}": sum(value <= bound for value in values) for bound in bounds},
        "+Inf": len(values),
    }


def observed(published: PublishedAt, now: float = NOW) -> dict[str, Any]:
    """The figures after one event."""
    times = PublishTimes()
    times.observe(published, now)
    return times.figures()


def test_each_resolution_has_its_own_histogram() -> None:
    """A time in milliseconds never mixes with whole seconds."""
    fine = observed(PublishedAt(NOW - 0.004, "millisecond"))
    assert (fine["millisecond"]["sum"], fine["millisecond"]["buckets"]["0.005"], fine["millisecond"]["buckets"]["0.0025"]) == (0.004, 1, 0)
    assert fine["second"] == Histogram(SECONDS).figures()
    coarse = observed(PublishedAt(1_799_999_998.0, "second"))
    assert (coarse["second"]["sum"], coarse["second"]["buckets"]["+Inf"], coarse["millisecond"]["buckets"]["+Inf"]) == (2.0, 1, 0)


@pytest.mark.parametrize("elapsed_s", [0.05, 0.4, 1.7])
def test_the_mean_of_whole_seconds_is_right(elapsed_s: float) -> None:
    """One value is off by up to a second. The mean over events at any moment of a second is the time itself."""
    choice, times, events = random.Random(1), PublishTimes(), 20_000
    for _ in range(events):
        at = NOW + choice.uniform(0, 100)
        times.observe(PublishedAt(float(int(at)), "second"), at + elapsed_s)
    figures: Any = times.figures()
    assert figures["future"] == 0
    assert figures["second"]["sum"] / events == pytest.approx(elapsed_s, abs=0.02)


@pytest.mark.parametrize(
    ("published", "future", "too_old", "counted"),
    [
        (PublishedAt(NOW + TOLERANCE_S / 2, "millisecond"), 0, 0, 1),
        (PublishedAt(NOW + 2 * TOLERANCE_S, "millisecond"), 1, 0, 1),
        (PublishedAt(NOW // 1 + 1, "second"), 1, 0, 1),
        (PublishedAt(NOW * 1000, "second"), 1, 0, 1),
        (PublishedAt(float(2**64), "second"), 1, 0, 1),
        (PublishedAt(NOW - TOO_OLD_S, "millisecond"), 0, 0, 1),
        (PublishedAt(NOW - TOO_OLD_S - 1, "millisecond"), 0, 1, 0),
        (PublishedAt(0.0, "second"), 0, 1, 0),
        (PublishedAt(-(2.0**60), "millisecond"), 0, 1, 0),
    ],
)
def test_times_that_can_not_be_true(published: PublishedAt, future: int, too_old: int, counted: int) -> None:
    """A time in the future counts as 0, and apart if it is no small difference of two clocks.

    One of another age is in no histogram: it would spoil the sum for ever.
    """
    figures = observed(published)
    assert (figures["future"], figures["too_old"], figures[published.resolution]["buckets"]["+Inf"]) == (future, too_old, counted)
    if published.seconds > NOW:
        assert figures[published.resolution]["sum"] == 0
