from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from towerws.core.histogram import BATCH, SECONDS, Histogram


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
