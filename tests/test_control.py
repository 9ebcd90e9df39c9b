from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.auth.tower_kit import logged, now
from towerws.control import REPORT_EVERY_S, Control
from towerws.core.errors import BrokerError
from towerws.core.revocation import Disconnection, Revocation


class House:
    """A daemon's control, with what it does written down. There are always two connections to close."""

    def __init__(self, *, alone: bool = False) -> None:
        self.clock = Clock()
        self.done: list[object] = []
        self.announced: list[tuple[bytes, str, Deferred[None]]] = []
        self.closes = 2
        self.control = Control(self.disconnect, lambda: self.done.append("doubt"), None if alone else self.announce, self.clock)

    def disconnect(self, revocation: Revocation) -> int:
        """Note it."""
        self.done.append(revocation)
        return self.closes

    def announce(self, body: bytes, message_id: str) -> Deferred[None]:
        """Note it; the test answers."""
        self.announced.append((body, message_id, Deferred()))
        return self.announced[-1][2]


def test_a_revocation_from_here_is_followed_at_once_and_told_the_others() -> None:
    """The connections here end before the broker is asked; the answer waits until the others know, and the log says both."""
    house = House()
    with logged() as lines:
        asked = house.control.revoke(Revocation(user="a\nb"))
        assert house.done == [Revocation(user="a\nb")]
        (body, _, told) = house.announced[0]
        assert body == b'{"user": "a\\nb"}'
        assert not asked.called
        told.callback(None)
    assert now(asked) == Disconnection(2, told=True)
    assert lines.texts == ["disconnect user a\\nb: 2 connections ended here; the other daemons were told"]
    assert house.control.counts == {"received": 0, "own": 0, "bad": 0, "announced": 1, "not_announced": 0}


@pytest.mark.parametrize("error", [BrokerError("connecting: refused"), ValueError("a bug")])
def test_others_that_are_not_told(error: Exception) -> None:
    """It is said with the reason, in the answer and in the log; what ended here stays ended. Only a fault of ours has a traceback."""
    house = House()
    with logged() as lines:
        asked = house.control.revoke(Revocation(session="5e55"))
        house.announced[0][2].errback(error)
    assert now(asked) == Disconnection(2, told=False, reason=str(error))
    assert lines.texts[-1] == f"disconnect session 5e55: 2 connections ended here; the other daemons were not told: {error}"
    assert len(lines.texts) == (1 if isinstance(error, BrokerError) else 2)
    assert house.control.counts["not_announced"] == 1


def test_alone_there_is_nobody_to_tell() -> None:
    """Without a broker the answer comes at once."""
    assert now(House(alone=True).control.revoke(Revocation(user=7))) == Disconnection(2)


def test_ones_own_message_is_not_followed_again() -> None:
    """It comes back like every other; whoever logged in anew since then stays. The same from another daemon is followed."""
    house, other = House(), House()
    house.control.revoke(Revocation(user=7))
    (body, message_id, _) = house.announced[0]
    house.control.control(body, message_id)
    assert house.done == [Revocation(user=7)]
    other.control.control(body, message_id)
    assert other.done == [Revocation(user=7)]
    assert (house.control.counts["own"], other.control.counts["own"]) == (1, 0)
    house.control.revoke(Revocation(user=7))
    assert house.announced[1][1] != message_id


def test_messages_of_any_producer() -> None:
    """A message needs no id; what it closed is logged, and what closed nothing is not."""
    house = House()
    with logged() as lines:
        house.control.control(b'{"session":"5e55"}', None)
        house.closes = 0
        house.control.control(b'{"user":8}', "theirs")
    assert house.done == [Revocation(session="5e55"), Revocation(user=8)]
    assert lines.texts == ["disconnect session 5e55, by a control message: 2 connections ended here"]


@pytest.mark.parametrize("body", [b"", b"canary", b"{}", b'{"user": 7, "canary": 1}', b"\xff", b"[" * 8000, b'{"user": 7}' + b" " * 9000])
def test_garbage_is_counted_and_harmless(body: bytes) -> None:
    """One line in a minute says how long one was and what it must be, and repeats nothing of it; the next good one is followed."""
    house = House()
    with logged() as lines:
        for _ in range(50):
            house.control.control(body, None)
        house.clock.advance(REPORT_EVERY_S)
        house.control.control(body, None)
    assert len(lines.texts) == 2
    assert lines.texts[0].startswith(f"control message of {len(body)} octets skipped: ")
    assert "canary" not in lines.everything()
    assert house.done == []
    assert house.control.counts["bad"] == 51
    house.control.control(b'{"user": 7}', None)
    assert house.done == [Revocation(user=7)]


def test_what_may_have_been_missed() -> None:
    """Whenever messages begin to come, some may have been missed before."""
    house = House()
    house.control.listening()
    assert house.done == ["doubt"]
