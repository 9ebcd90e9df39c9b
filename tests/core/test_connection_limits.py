from __future__ import annotations

import random

from towerws.core.connection_limits import MAX_SURPLUS, ConnectionLimits, ConnectionSlot
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
