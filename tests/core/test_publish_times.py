from __future__ import annotations

import random
from typing import Any

import pytest

from towerws.core.histogram import SECONDS, Histogram
from towerws.core.publish_times import TOLERANCE_S, TOO_OLD_S, PublishedAt, PublishTimes

NOW = 1_800_000_000.25


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
