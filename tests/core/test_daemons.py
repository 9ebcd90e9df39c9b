from __future__ import annotations

from towerws.core.control_messages import DaemonName
from towerws.core.daemons import MAX_DAEMONS, PRESENT_S, Daemons

A, B = DaemonName("a" * 16, "one:1"), DaemonName("b" * 16, "two:2")


def test_who_was_heard_exists_for_a_while() -> None:
    """Each marker counts from when it came; the first one of a daemon says that it is new."""
    daemons = Daemons()
    assert daemons.present(0) == {}
    assert daemons.heard(A, 0)
    assert daemons.heard(B, 10)
    assert not daemons.heard(A, 20)
    assert daemons.present(10 + PRESENT_S) == {A: 20, B: PRESENT_S}
    assert daemons.present(11 + PRESENT_S) == {A: 21}
    assert daemons.heard(B, 12 + PRESENT_S)


def test_one_that_stops_exists_no_more() -> None:
    """At once; it may come back."""
    daemons = Daemons()
    daemons.heard(A, 0)
    daemons.heard(B, 0)
    daemons.left(A.id)
    daemons.left("c" * 16)
    assert daemons.present(1) == {B: 1}
    assert daemons.heard(A, 2)


def test_time_in_which_nothing_could_be_heard() -> None:
    """It counts against nobody."""
    daemons = Daemons()
    daemons.heard(A, 0)
    daemons.was_deaf(1000)
    assert daemons.present(1000 + PRESENT_S) == {A: PRESENT_S}
    assert daemons.present(1001 + PRESENT_S) == {}


def test_a_flood_of_names() -> None:
    """They are bounded, those that are known stay known, and it is said that there were more."""
    daemons = Daemons()
    daemons.heard(A, 0)
    for number in range(10 * MAX_DAEMONS):
        daemons.heard(DaemonName(f"{number:016x}", "x"), 1)
    assert len(daemons.present(2)) == MAX_DAEMONS
    assert A in daemons.present(2)
    assert daemons.too_many(1 + PRESENT_S)
    assert not daemons.too_many(2 + PRESENT_S)
    assert daemons.present(2 + PRESENT_S) == {}
