from __future__ import annotations

from twisted.internet.task import Clock

from towerws.status import INTERVAL_S, ReactorLag


def test_lateness_is_measured_until_it_is_stopped() -> None:
    """A timer in time counts as 0. A turn of the reactor that takes half a second shows as half a second."""
    clock = Clock()
    lag = ReactorLag(clock)
    lag.start()
    clock.advance(INTERVAL_S)
    clock.advance(INTERVAL_S + 0.5)
    figures = lag.histogram.figures()
    assert figures["sum"] == 0.5
    buckets = figures["buckets"]
    assert isinstance(buckets, dict)
    assert (buckets["0.0001"], buckets["0.25"], buckets["0.5"], buckets["+Inf"]) == (1, 1, 2, 2)
    lag.stop()
    lag.stop()
    assert clock.getDelayedCalls() == []
