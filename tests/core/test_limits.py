from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.core.limits import MAX_SURPLUS, ConnectionLimits, ConnectionSlot, Throttle, TokenBucket
from towerws.core.settings import LimitSettings

LIMITS = LimitSettings(connections=10, per_address=4, per_user=3, half_open=2)


def enter(connection_limits: ConnectionLimits, address: str = "192.0.2.1", user: str | None = None) -> tuple[ConnectionSlot, str | None]:
    """A guest that goes in as far as it is let."""
    slot = connection_limits.arrive()
    return slot, connection_limits.locate(slot, address) or connection_limits.admit(slot, user)


def test_all() -> None:
    """All together: as many as are allowed, and a few more who are told so."""
    connection_limits = ConnectionLimits(LIMITS)
    slots, states = [], []
    for _ in range(11 + MAX_SURPLUS):
        slots.append(connection_limits.arrive())
        states.append((connection_limits.full, connection_limits.overflowing))
    assert states == [(False, False)] * 10 + [(True, False)] * MAX_SURPLUS + [(True, True)]
    for slot in slots:
        connection_limits.leave(slot)
    assert (connection_limits.present, connection_limits.arrived) == (0, 11 + MAX_SURPLUS)


def test_places_for_connections_that_are_handed_over() -> None:
    """New clients don't get them."""
    connection_limits = ConnectionLimits(LIMITS)
    states = []
    for reserved in (LIMITS.connections - 1, LIMITS.connections, LIMITS.connections + MAX_SURPLUS, 0):
        connection_limits.reserved = reserved
        slot = connection_limits.arrive()
        states.append((connection_limits.full, connection_limits.overflowing))
        connection_limits.leave(slot)
    assert states == [(False, False), (True, False), (True, True), (False, False)]


def test_by_address() -> None:
    """The one beyond is turned away, another address is not concerned, and who leaves makes room."""
    connection_limits = ConnectionLimits(LIMITS)
    slots = [enter(connection_limits) for _ in range(4)]
    assert [why for _, why in slots] == [None] * 4
    late, why = enter(connection_limits)
    assert why == "address"
    connection_limits.dismiss(late)
    assert enter(connection_limits, "192.0.2.2")[1] is None
    connection_limits.leave(slots[0][0])
    assert enter(connection_limits)[1] is None


def test_during_the_handshake() -> None:
    """Connections that are not authenticated yet have a lower limit: a few slow ones do not fill an address's."""
    connection_limits = ConnectionLimits(LIMITS)
    first, second, third = connection_limits.arrive(), connection_limits.arrive(), connection_limits.arrive()
    assert connection_limits.locate(first, "192.0.2.1") is None
    assert connection_limits.locate(second, "192.0.2.1") is None
    assert connection_limits.locate(third, "192.0.2.1") == "half_open"
    connection_limits.dismiss(third)
    assert connection_limits.admit(first, None) is None
    assert connection_limits.locate(connection_limits.arrive(), "192.0.2.1") is None


def test_an_answered_request() -> None:
    """Its handshake has ended. It counts under its address and user until it is closed, because its client may read slowly."""
    connection_limits = ConnectionLimits(LIMITS)
    slots = [enter(connection_limits, user="7")[0] for _ in range(3)]
    for slot in slots:
        connection_limits.answered(slot)
    late, why = enter(connection_limits, user="7")
    assert why == "user"
    connection_limits.dismiss(late)
    file = connection_limits.arrive()
    assert connection_limits.locate(file, "192.0.2.1") is None
    connection_limits.answered(file)
    assert connection_limits.locate(connection_limits.arrive(), "192.0.2.1") == "address"
    connection_limits.leave(file)
    connection_limits.leave(slots[0])
    assert connection_limits._half_open == {"192.0.2.1": 1}


def test_a_proxy_is_not_counted_for_its_clients() -> None:
    """Once the head is read, a guest is counted by its client's address, and no more by its proxy's."""
    connection_limits = ConnectionLimits(LIMITS)
    for number in range(8):
        slot = connection_limits.arrive()
        connection_limits.locate(slot, "127.0.0.1")
        assert connection_limits.locate(slot, f"192.0.2.{number}") is None


def test_by_user() -> None:
    """A user's connections are counted from all addresses. Anonymous users are not counted."""
    connection_limits = ConnectionLimits(LIMITS)
    assert [enter(connection_limits, f"192.0.2.{number}", "7")[1] for number in range(4)] == [None, None, None, "user"]
    assert [enter(connection_limits, f"198.51.100.{number}", None)[1] for number in range(6)] == [None] * 6


def test_nothing_is_kept_of_closed_connections() -> None:
    """However guests come and go, the counts end where they began, and hold no address for ever."""
    connection_limits = ConnectionLimits(LIMITS)
    chance = random.Random(4)
    slots: list[ConnectionSlot] = []
    for _ in range(5000):
        if slots and chance.random() < 0.5:
            slot = slots.pop(chance.randrange(len(slots)))
            chance.choice([lambda slot: None, connection_limits.answered, connection_limits.dismiss])(slot)
            connection_limits.leave(slot)
        else:
            slot = connection_limits.arrive()
            slots.append(slot)
            steps = chance.randrange(3)
            if steps > 0:
                connection_limits.locate(slot, f"192.0.2.{chance.randrange(5)}")
            if steps > 1:
                connection_limits.admit(slot, chance.choice(["7", "8", None]))
    for slot in slots:
        connection_limits.leave(slot)
    assert connection_limits.present == 0
    assert connection_limits._addresses == connection_limits._half_open == connection_limits._users == {}


def test_a_burst_is_allowed_at_once_and_not_one_more() -> None:
    """After 40 the next has to wait for its token, as long as is said."""
    bucket = TokenBucket(20, 40, 0.0)
    assert [bucket.take(0.0) for _ in range(40)] == [0.0] * 40
    assert bucket.take(0.0) == pytest.approx(1 / 20)


def test_a_token_is_there_after_the_promised_delay() -> None:
    """The delay is exact: a moment earlier there is none."""
    bucket = TokenBucket(4, 1, 0.0)
    assert bucket.take(0.0) == 0
    delay = bucket.take(0.0)
    assert delay == 0.25
    assert bucket.take(0.125) == 0.125
    assert bucket.take(0.25) == 0


def test_no_more_than_a_burst_is_saved_up() -> None:
    """A long silence is worth one burst."""
    bucket = TokenBucket(20, 2, 0.0)
    assert [bucket.take(1000.0) == 0 for _ in range(3)] == [True, True, False]


def test_asking_in_vain_costs_nothing() -> None:
    """However often it is asked, the token comes when it comes."""
    bucket = TokenBucket(1, 1, 0.0)
    assert bucket.take(0.0) == 0
    for tenth in range(1, 8):
        assert bucket.take(tenth / 8) > 0
    assert bucket.take(1.0) == 0


@given(st.integers(1, 50), st.integers(1, 50), st.lists(st.integers(0, 64), max_size=200))
def test_in_the_long_run_the_rate_holds(rate: int, burst: int, steps: list[int]) -> None:
    """Whenever it is asked: never more than the burst and what the time since was worth."""
    bucket = TokenBucket(rate, burst, 0.0)
    now = 0.0
    taken = 0
    for step in steps:
        now += step / 64
        taken += bucket.take(now) == 0
        assert taken <= burst + now * rate + 1e-6


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


@each_row("names", [1, 10, 1000])
def test_names_are_bounded(names: int) -> None:
    """The one counted least recently is forgotten first."""
    throttle = Throttle(rate=1, burst=1, names=names)
    for number in range(names + 5):
        throttle.count(str(number), 0)
    assert len(throttle) == names
    assert throttle.delay("0", 0) == 0
    assert throttle.delay(str(names + 4), 0) == 1


def test_in_the_long_run() -> None:
    """A name that waits as announced fails no more often than the rate allows, with any pauses."""
    throttle, chance = Throttle(rate=3, burst=5), random.Random(1)
    now, tries = 0.0, 0
    while now < 100:
        now += throttle.delay("a", now)
        throttle.count("a", now)
        tries += 1
        now += chance.choice([0, 0, 0, 0.2])
    assert tries <= 5 + 3 * now + 1


def test_a_bucket_goes_on_with_the_level_of_another() -> None:
    """Tokens that were used stay used. A smaller `burst` bounds what is taken over."""
    first = TokenBucket(1, 3, 10)
    for _ in range(3):
        assert first.take(10) == 0
    second = TokenBucket.from_level(1, 3, first.level)
    assert second.take(10.5) == pytest.approx(0.5)
    smaller = TokenBucket.from_level(1, 1, TokenBucket(1, 3, 10).level)
    assert smaller.take(10) == 0
    assert smaller.take(10) == pytest.approx(1)
