from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure

from tests.auth.tower_kit import URL, FakeFetcher, logged, now
from towerws.auth.base import Refused, Unavailable
from towerws.auth.folded_log import FoldedLog
from towerws.auth.tower_answers import Answer, read_visible
from towerws.auth.tower_calls import TowerCalls
from towerws.core.settings import TowerSettings

GOOD = Answer(200, b"")


class Kit:
    """Calls on a clock, asking a fake."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.fetcher = FakeFetcher()
        self.calls = TowerCalls(TowerSettings(url=URL, **settings), self.fetcher, self.clock, FoldedLog(Logger("test"), self.clock))

    def ask(self, path: str = "/") -> Deferred[bool]:
        """One question."""
        return self.calls.get(URL + path, (), read_visible)

    def end(self, answer: Answer | Failure, at: int = 0) -> None:
        """Answer the question that was put as the `at`-th of those not taken."""
        self.fetcher.asked[at][2].callback(answer)

    def fail(self, times: int) -> None:
        """So many questions that fail, one after the other."""
        for _ in range(times):
            asked = self.ask()
            self.end(Failure(Unavailable("refused")), -1)
            with pytest.raises(Unavailable):
                now(asked)
        self.fetcher.paths()

    def check(self) -> None:
        """Nothing is left behind."""
        assert self.clock.getDelayedCalls() == []


def test_an_answer_is_read() -> None:
    """A question fires with what is read of the answer, or fails with what reading raises."""
    kit = Kit()
    for answer, expected in ((GOOD, True), (Answer(404, b""), False)):
        asked = kit.ask("/a")
        kit.end(answer, -1)
        assert now(asked) is expected
    asked = kit.ask()
    kit.end(Answer(401, b""), -1)
    with pytest.raises(Refused):
        now(asked)
    kit.check()


def test_a_late_answer_is_none() -> None:
    """After two seconds the question fails and its connection is let go; what comes later opens nothing (pitfall F3)."""
    kit = Kit()
    asked = kit.ask()
    kit.clock.advance(1.9)
    assert not asked.called
    kit.clock.advance(0.1)
    with pytest.raises(Unavailable, match="did not answer within 2 s"):
        now(asked)
    assert kit.fetcher.asked[0][2].called, "not cancelled"
    kit.fetcher.asked[0][2].callback(GOOD)
    kit.check()


def test_so_many_at_once_and_so_many_waiting() -> None:
    """Twenty are under way, two hundred wait in order, and one more is told so at once."""
    kit = Kit()
    with logged() as lines:
        asked = [kit.ask(f"/{number}") for number in range(220)]
        assert len(kit.fetcher.asked) == 20
        with pytest.raises(Unavailable, match="too many"):
            now(kit.ask())
    assert lines.texts == ["too many questions to the Tower API at once"]
    kit.end(GOOD, 3)
    assert now(asked[3])
    assert [path for path, _, _ in kit.fetcher.asked[20:]] == ["/20"]
    for number in (*range(3), *range(4, 220)):
        kit.end(GOOD, number)
    assert all(now(each) for each in asked[:3] + asked[4:])
    assert len(kit.fetcher.asked) == 220
    kit.check()


def test_who_waits_has_the_same_deadline() -> None:
    """The time in the queue counts: each fails two seconds after it was asked. That those were late is no failure of the API."""
    kit = Kit(calls=1)
    first, second, third = kit.ask("/1"), kit.ask("/2"), kit.ask("/3")
    kit.clock.advance(1)
    kit.end(GOOD)
    assert now(first)
    kit.clock.advance(1)
    for asked in (second, third):
        with pytest.raises(Unavailable):
            now(asked)
    kit.fetcher.paths()
    kit.fail(4)
    asked = kit.ask()
    kit.end(GOOD)
    assert now(asked)
    kit.check()


def test_five_failures_open_the_breaker_and_one_probe_in_five_seconds_closes_it() -> None:
    """After five failures in a row every question fails at once; one in five seconds is put, until one is answered."""
    kit = Kit()
    with logged() as lines:
        kit.fail(5)
        for _ in range(3):
            with pytest.raises(Unavailable, match="again and again"):
                now(kit.ask())
            assert kit.fetcher.paths() == []
            kit.clock.advance(5)
            probe = kit.ask("/probe")
            with pytest.raises(Unavailable):
                now(kit.ask("/beside"))
            assert [path for path, _, _ in kit.fetcher.asked] == ["/probe"]
            kit.end(Answer(503, b""))
            with pytest.raises(Unavailable, match="503"):
                now(probe)
            kit.fetcher.paths()
        kit.clock.advance(5)
        probe = kit.ask()
        kit.end(GOOD)
        assert now(probe)
        for _ in range(10):
            asked = kit.ask()
            kit.end(GOOD, -1)
            assert now(asked)
    assert lines.texts[:2] == [
        "the Tower API can't be asked: refused",
        "the Tower API failed 5 times in a row: asked once in 5 s until it answers",
    ]
    assert lines.texts[-1] == "the Tower API answers again"
    kit.check()


@pytest.mark.parametrize("status", [302, 500, 502, 503, 204])
def test_what_counts_as_a_failure(status: int) -> None:
    """An answer that is none counts like a refused connection."""
    kit = Kit()
    for _ in range(5):
        asked = kit.ask()
        kit.end(Answer(status, b""), -1)
        with pytest.raises(Unavailable):
            now(asked)
    with pytest.raises(Unavailable, match="again and again"):
        now(kit.ask())
    kit.check()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 414, 429, 431])
def test_no_client_opens_the_breaker(status: int) -> None:
    """What a client may bring about with a credential or header of its own never keeps the others from being asked about."""
    kit = Kit()
    for _ in range(20):
        kit.ask().addErrback(lambda _: None)
        kit.end(Answer(status, b""), -1)
    asked = kit.ask()
    kit.end(GOOD, -1)
    assert now(asked)
    kit.check()


def test_a_hanging_api_opens_the_breaker_for_those_who_wait() -> None:
    """When the questions under way are late, those that wait fail with them, or at their own deadline: none takes two."""
    kit = Kit(calls=5, calls_waiting=300)
    asked = [kit.ask() for _ in range(5)]
    kit.clock.advance(0.1)
    asked += [kit.ask() for _ in range(300)]
    kit.clock.advance(1.9)
    assert sum(each.called for each in asked) >= 300
    kit.clock.advance(0.1)
    for each in asked:
        with pytest.raises(Unavailable):
            now(each)
    assert len(kit.fetcher.asked) <= 10
    kit.check()


def test_nobody_queues_before_an_open_breaker() -> None:
    """While calls of before are still under way and the breaker is open, a question fails at once."""
    kit = Kit(calls=6)
    for _ in range(6):
        kit.ask().addErrback(lambda _: None)
    for at in range(5):
        kit.end(Failure(Unavailable("refused")), at)
    for _ in range(7):
        with pytest.raises(Unavailable, match="again and again"):
            now(kit.ask())
    kit.end(GOOD, 5)
    kit.check()


def test_a_full_house_with_an_open_breaker() -> None:
    """With every place taken by calls of before, a question does not wait for one when the breaker is open."""
    kit = Kit(calls=2, breaker_failures=1)
    asked = [kit.ask() for _ in range(3)]
    kit.end(Failure(Unavailable("refused")), 0)  # opens it; the third fails at once
    with pytest.raises(Unavailable, match="refused"):
        now(asked[0])
    with pytest.raises(Unavailable, match="again and again"):
        now(asked[2])
    kit.clock.advance(1.9)
    kit.clock.advance(0.1)
    with pytest.raises(Unavailable):
        now(asked[1])
    kit.check()


def test_figures() -> None:
    """What is under way, what waits, what was made, failed or turned away, and how the breaker stands: as it is just then."""
    kit = Kit(calls=2, calls_waiting=1, breaker_failures=2)
    for _ in range(4):
        kit.ask().addErrback(lambda _: None)
    assert kit.calls.figures() == {"made": 2, "failed": 0, "turned_away": 1, "in_flight": 2, "waiting": 1, "breaker": "closed"}
    kit.end(Answer(404, b""), 0)
    assert kit.calls.figures() == {"made": 3, "failed": 0, "turned_away": 1, "in_flight": 2, "waiting": 0, "breaker": "closed"}
    for at in (1, 2):
        kit.end(Failure(Unavailable("refused")), at)
    with pytest.raises(Unavailable, match="again and again"):
        now(kit.ask())
    assert kit.calls.figures() == {"made": 3, "failed": 2, "turned_away": 2, "in_flight": 0, "waiting": 0, "breaker": "open"}
    kit.clock.advance(5)
    probe = kit.ask()
    assert kit.calls.figures()["breaker"] == "open"
    kit.end(GOOD, -1)
    assert now(probe)
    assert kit.calls.figures()["breaker"] == "closed"
    kit.check()


def test_a_pause() -> None:
    """A pause ends by itself, can be cancelled, and leaves no timer."""
    kit = Kit()
    pause, cancelled = kit.calls.pause(1), kit.calls.pause(1)
    cancelled.cancel()
    with pytest.raises(CancelledError):
        now(cancelled)
    kit.clock.advance(1)
    assert now(pause) is None
    kit.check()


def test_stop_leaves_nothing() -> None:
    """When it stops, what is under way, waits or pauses fails, later questions fail at once, and no timer is left."""
    kit = Kit(calls=2)
    with logged() as lines:
        asked: list[Deferred[Any]] = [kit.ask() for _ in range(5)] + [kit.calls.pause(1), kit.calls.pause(2)]
        assert now(kit.calls.stop()) is None
    assert lines.texts == []
    assert kit.fetcher.stopped
    kit.check()
    for each in [*asked, kit.ask()]:
        with pytest.raises(Unavailable, match="stopping"):
            now(each)
    assert len(kit.fetcher.asked) == 2


def test_our_own_faults_are_not_hidden() -> None:
    """An error of our own in reading an answer reaches who asked, and the question is over."""
    kit = Kit()

    def broken(_: Answer) -> bool:
        raise ZeroDivisionError

    asked = kit.calls.get(URL, (), broken)
    kit.fetcher.asked[0][2].callback(GOOD)
    with pytest.raises(ZeroDivisionError):
        now(asked)
    kit.check()
