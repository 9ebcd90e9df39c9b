from __future__ import annotations

from towerws.core.deliveries import Delivery
from towerws.core.positions import PENDING, SPARE_ENTRIES, Judged, PositionWaiters


def judge(position: str, *, final: bool = False) -> Judged:
    """The log never reaches a position."""
    return None if final else PENDING


def test_clients_that_wait_no_more_are_forgotten() -> None:
    """One client always waits. Others ask for places far ahead of the log, and are answered or leave."""
    waiters = PositionWaiters(judge)
    told: list[Delivery | None] = []
    waiters.add("999999999-a", told.append)
    for number in range(1000):
        waiters.marker_sent(str(number))
        waiters.add("999999999-a", told.append)
        waiters.add("999999998-a", told.append)()
        waiters.marker_received(str(number))
        waiters.judge(upto=5)
    assert told == [None] * 1000
    assert len(waiters) == 1
    assert len(waiters._by_offset) <= SPARE_ENTRIES + 4
