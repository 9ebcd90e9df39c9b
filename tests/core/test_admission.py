from __future__ import annotations

import random

from towerws.core.admission import SURPLUS, Admission, Guest
from towerws.core.settings import LimitSettings

LIMITS = LimitSettings(connections=10, per_address=4, per_user=3, half_open=2)


def enter(admission: Admission, address: str = "192.0.2.1", user: str | None = None) -> tuple[Guest, str | None]:
    """A guest that goes in as far as it is let."""
    guest = admission.arrive()
    return guest, admission.locate(guest, address) or admission.admit(guest, user)


def test_all() -> None:
    """All together: as many as are allowed, and a few more who are told so."""
    admission = Admission(LIMITS)
    guests, states = [], []
    for _ in range(11 + SURPLUS):
        guests.append(admission.arrive())
        states.append((admission.full, admission.overflowing))
    assert states == [(False, False)] * 10 + [(True, False)] * SURPLUS + [(True, True)]
    for guest in guests:
        admission.leave(guest)
    assert (admission.present, admission.arrived) == (0, 11 + SURPLUS)


def test_by_address() -> None:
    """The one beyond is turned away, another address is not concerned, and who leaves makes room."""
    admission = Admission(LIMITS)
    guests = [enter(admission) for _ in range(4)]
    assert [why for _, why in guests] == [None] * 4
    late, why = enter(admission)
    assert why == "address"
    admission.dismiss(late)
    assert enter(admission, "192.0.2.2")[1] is None
    admission.leave(guests[0][0])
    assert enter(admission)[1] is None


def test_at_the_door() -> None:
    """Who is not authenticated yet counts more: a few slow ones do not fill an address's share."""
    admission = Admission(LIMITS)
    first, second, third = admission.arrive(), admission.arrive(), admission.arrive()
    assert admission.locate(first, "192.0.2.1") is None
    assert admission.locate(second, "192.0.2.1") is None
    assert admission.locate(third, "192.0.2.1") == "half_open"
    admission.dismiss(third)
    assert admission.admit(first, None) is None
    assert admission.locate(admission.arrive(), "192.0.2.1") is None


def test_a_proxy_is_not_counted_for_its_clients() -> None:
    """Once the head is read, a guest is counted by its client's address, and no more by its proxy's."""
    admission = Admission(LIMITS)
    for number in range(8):
        guest = admission.arrive()
        admission.locate(guest, "127.0.0.1")
        assert admission.locate(guest, f"192.0.2.{number}") is None


def test_by_user() -> None:
    """A user's connections are counted wherever they come from; nobody in particular is not counted."""
    admission = Admission(LIMITS)
    assert [enter(admission, f"192.0.2.{number}", "7")[1] for number in range(4)] == [None, None, None, "user"]
    assert [enter(admission, f"198.51.100.{number}", None)[1] for number in range(6)] == [None] * 6


def test_nothing_is_left_of_who_is_gone() -> None:
    """However guests come and go, the counts end where they began, and hold no address for ever."""
    admission = Admission(LIMITS)
    chance = random.Random(4)
    guests: list[Guest] = []
    for _ in range(5000):
        if guests and chance.random() < 0.5:
            guest = guests.pop(chance.randrange(len(guests)))
            chance.choice([lambda guest: None, admission.dismiss])(guest)
            admission.leave(guest)
        else:
            guest = admission.arrive()
            guests.append(guest)
            steps = chance.randrange(3)
            if steps > 0:
                admission.locate(guest, f"192.0.2.{chance.randrange(5)}")
            if steps > 1:
                admission.admit(guest, chance.choice(["7", "8", None]))
    for guest in guests:
        admission.leave(guest)
    assert admission.present == 0
    assert admission._addresses == admission._half_open == admission._users == {}
