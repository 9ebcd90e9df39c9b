from __future__ import annotations

import random

import pytest

from towerws.core.throttle import Throttle


def test_so_many_at_once_and_then_at_a_rate() -> None:
    """Each try beyond the burst waits for its turn, and the waits add up; another name does not wait."""
    throttle = Throttle(rate=2, burst=3)
    delays = []
    for _ in range(7):
        delays.append(throttle.delay("a", 10))
        throttle.count("a", 10)
    assert delays == [0, 0, 0, 0.5, 1, 1.5, 2]
    assert throttle.delay("b", 10) == 0
    assert throttle.delay("a", 12) == 0.5
    assert throttle.delay("a", 100) == 0


def test_what_did_not_fail_is_given_back() -> None:
    """A name whose tries succeed never waits."""
    throttle = Throttle(rate=0.1, burst=2)
    for _ in range(1000):
        assert throttle.delay("a", 0) == 0
        throttle.count("a", 0)
        throttle.give_back("a", 0)
    assert len(throttle) == 0
    throttle.give_back("unknown", 0)
    assert len(throttle) == 0


@pytest.mark.parametrize("names", [1, 10, 1000])
def test_names_are_bounded(names: int) -> None:
    """The one counted least recently is forgotten first."""
    throttle = Throttle(rate=1, burst=1, names=names)
    for number in range(names + 5):
        throttle.count(str(number), 0)
    assert len(throttle) == names
    assert throttle.delay("0", 0) == 0
    assert throttle.delay(str(names + 4), 0) == 1


def test_in_the_long_run() -> None:
    """Whoever waits as told fails no more often than the rate allows, whatever the pauses."""
    throttle, chance = Throttle(rate=3, burst=5), random.Random(1)
    now, tries = 0.0, 0
    while now < 100:
        now += throttle.delay("a", now)
        throttle.count("a", now)
        tries += 1
        now += chance.choice([0, 0, 0, 0.2])
    assert tries <= 5 + 3 * now + 1
