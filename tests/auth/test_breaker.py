from __future__ import annotations

from towerws.auth.breaker import Breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    """Five failures in a row open it, four do not, and a success in between starts the count anew."""
    breaker = Breaker(5, 5)
    for _ in range(4):
        assert not breaker.failed(100)
    assert not breaker.succeeded()
    for _ in range(4):
        assert not breaker.failed(100)
    assert breaker.admit(100)
    assert not breaker.is_open(100)
    assert breaker.failed(100)
    assert breaker.is_open(100)
    assert not breaker.admit(104.9)


def test_one_probe_per_period_until_one_succeeds() -> None:
    """While open, one call in five seconds is admitted; its success closes the breaker, and says so once."""
    breaker = Breaker(1, 5)
    breaker.failed(100)
    assert not breaker.is_open(105)
    assert breaker.admit(105)
    assert not breaker.admit(105)
    assert not breaker.failed(106)
    assert breaker.is_open(109.9)
    assert not breaker.admit(109.9)
    assert breaker.admit(110)
    assert breaker.succeeded()
    assert not breaker.succeeded()
    assert breaker.admit(110)
    assert breaker.admit(110)


def test_late_failures_do_not_put_off_the_probe() -> None:
    """Calls that were under way when it opened, and fail later, change nothing."""
    breaker = Breaker(2, 5)
    breaker.failed(100)
    breaker.failed(100)
    breaker.failed(102)
    assert breaker.admit(105)
