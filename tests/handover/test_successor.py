from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.task import Clock

from towerws.core.history import History
from towerws.core.hub import Hub
from towerws.core.ingest import Ingest
from towerws.handover.successor import REACH_S, Adopter


class ReadingProcess:
    """An `Adopter` and the `Ingest` that it asks, which has not read the log yet."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.history = History(10**6, 60)
        self.ingest = Ingest(
            self.history,
            Hub(self.history),
            max_payload_bytes=1000,
            clock=self.clock.seconds,
            wall_clock=lambda: 1_800_000_000.0,
            report=lambda _: None,
            new_epoch=lambda: "a" * 8,
        )
        websockets: Any = SimpleNamespace(context=SimpleNamespace(ingest=self.ingest))
        self.adopter = Adopter(self.clock, websockets, ["open"])
        self.judged: list[str] = []

    def ask(self, name: str, offset: int = 5) -> None:
        """Ask for a place that the log may still reach."""
        self.adopter.when_judged(f"{offset}-{'b' * 8}", lambda: self.judged.append(name))

    def read(self, offset: int = 5) -> None:
        """The log has been read up to this offset."""
        self.ingest.proven(True)
        self.ingest.caught_up()
        self.ingest.deliver("jobs.summary", b"{}", offset, None)
        self.ingest.end_batch(lambda _: None)


@pytest.fixture
def successor() -> ReadingProcess:
    """A process that takes connections over, and has read nothing yet."""
    return ReadingProcess()


def test_a_place_is_judged_once_the_log_has_been_read(successor: ReadingProcess) -> None:
    """Then no timer is left."""
    successor.ask("first")
    assert successor.judged == []
    successor.read()
    assert successor.judged == ["first"]
    assert not successor.clock.getDelayedCalls()
    assert successor.ingest.waiting == 0


def test_a_wait_ends_at_its_deadline(successor: ReadingProcess) -> None:
    """Both batches that are on their way wait equally long."""
    successor.ask("first")
    successor.ask("second")
    successor.clock.advance(REACH_S - 1)
    assert successor.judged == []
    successor.clock.advance(1)
    assert successor.judged == ["first", "second"]
    assert successor.ingest.waiting == 0


def test_without_a_broker_only_the_first_batches_wait(successor: ReadingProcess) -> None:
    """Forty batches that wait 10 s each would stop the connections for minutes."""
    successor.ask("first")
    successor.clock.advance(REACH_S)
    for name in ("second", "third"):
        successor.ask(name)
    assert successor.judged == ["first", "second", "third"]


def test_after_the_log_has_been_read_batches_wait_again(successor: ReadingProcess) -> None:
    """The broker was away for a while only."""
    successor.ask("first")
    successor.clock.advance(REACH_S)
    successor.read()
    successor.ask("second")
    assert successor.judged == ["first", "second"]
    successor.ask("third", offset=9)
    assert successor.judged == ["first", "second"]
    successor.read(9)
    assert successor.judged == ["first", "second", "third"]


def test_why_a_place_is_not_here(successor: ReadingProcess) -> None:
    """A log that could not be read in time may be the right one."""
    position = f"5-{'b' * 8}"
    successor.ask("first")
    successor.clock.advance(REACH_S)
    assert "could not read the log" in (successor.adopter.why_unknown(position) or "")
    successor.read(9)
    successor.ask("second")
    assert "does not hold the place" in (successor.adopter.why_unknown(position) or "")
    assert "does not hold the place" in (successor.adopter.why_unknown("") or "")
    assert successor.adopter.why_unknown(successor.history.head.position) is None
