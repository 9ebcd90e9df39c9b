from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure

from tests.auth.tower_kit import URL, FakeFetcher, logged, now
from tests.kit.rows import each_row
from towerws.auth.base import Refused, Unavailable
from towerws.auth.tower_api import Answer, read_visible
from towerws.auth.tower_calls import Kind, Question, TowerCalls
from towerws.core.settings import TowerSettings
from towerws.logs import FoldedLog

GOOD = Answer(200, b"{}")


class Kit:
    """Calls with a clock and a fake API."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.asked = 0
        self.fetcher = FakeFetcher()
        self.calls = TowerCalls(TowerSettings(url=URL, **settings), self.fetcher, self.clock, FoldedLog(Logger("test"), self.clock))

    def ask(
        self,
        path: str = "/",
        address: str = "192.0.2.1",
        *,
        kind: Kind = Kind.SIGN_IN,
        wait_s: float = 0.5,
        password: bool = False,
        client: object = None,
    ) -> Deferred[bool]:
        """Return one question. Without `client` each is another client's."""
        self.asked += 1
        client = self.asked if client is None else client
        return self.calls.get(Question(URL + path, (), kind, address, wait_s, password, client), read_visible)

    def end(self, answer: Answer | Failure, at: int = 0) -> None:
        """Answer the question at index `at` of those without an answer."""
        self.fetcher.asked[at][2].callback(answer)

    def fail(self, times: int, **question: Any) -> None:
        """Make this many questions fail, one after the other."""
        for _ in range(times):
            asked = self.ask(**question)
            self.end(Failure(Unavailable("refused")), -1)
            with pytest.raises(Unavailable):
                now(asked)
        self.fetcher.paths()

    def check(self) -> None:
        """Check that no call and no timer is left."""
        assert self.clock.getDelayedCalls() == []


def test_an_answer_is_read() -> None:
    """A question fires with what `read` returns, or fails with what it raises."""
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


def test_a_question_that_cannot_be_sent_frees_its_call() -> None:
    """A fetcher that raises instead of failing costs no call: the next question is sent."""
    kit = Kit(calls=1)
    with patch.object(kit.fetcher, "get", side_effect=ValueError("not a URL")):
        for _ in range(2):
            with pytest.raises(ValueError, match="not a URL"):
                now(kit.ask())
    assert kit.calls.figures()["in_flight"] == 0
    asked = kit.ask()
    kit.end(GOOD)
    assert now(asked) is True
    kit.check()


def test_a_late_answer_has_no_effect() -> None:
    """After two seconds the question fails and its connection is closed. A later answer has no effect (pitfall F3)."""
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
    """Twenty calls are in flight, two hundred wait in order, and one more fails at once."""
    kit = Kit()
    with logged() as lines:
        asked = [kit.ask(f"/{number}") for number in range(220)]
        assert len(kit.fetcher.asked) == 20
        with pytest.raises(Unavailable, match="too many"):
            now(kit.ask())
    assert lines.texts == ["a question to the Tower API was not sent: too many questions wait already (tower.calls_waiting); 20 in flight"]
    kit.end(GOOD, 3)
    assert now(asked[3])
    assert [path for path, _, _ in kit.fetcher.asked[20:]] == ["/20"]
    for number in (*range(3), *range(4, 220)):
        kit.end(GOOD, number)
    assert all(now(each) for each in asked[:3] + asked[4:])
    assert len(kit.fetcher.asked) == 220
    kit.check()


@each_row("waited", [0, 0.1, 0.3, 0.49])
def test_the_deadline_begins_when_a_call_is_sent(waited: float) -> None:
    """Each call has its whole two seconds, after any wait."""
    kit = Kit(calls=1)
    first, second = kit.ask("/1"), kit.ask("/2")
    kit.clock.advance(waited)
    kit.end(GOOD)
    assert now(first)
    kit.clock.advance(1.99)
    assert not second.called
    kit.end(GOOD, 1)
    assert now(second)
    kit.check()


@each_row("wait_s", [0.1, 0.5, 1.9])
def test_nothing_is_sent_too_late(wait_s: float) -> None:
    """A question that can't be sent in time is not sent. That is no failure of the API, and the log names the limit."""
    kit = Kit(calls=1, breaker_failures=1)
    first, second = kit.ask("/1"), kit.ask("/2", wait_s=wait_s)
    with logged() as lines:
        kit.clock.advance(wait_s)
    with pytest.raises(Unavailable, match="could not be asked"):
        now(second)
    assert lines.texts == ["a question to the Tower API was not sent: all calls were in use for too long (tower.calls); 1 in flight"]
    if not first.called:
        kit.end(GOOD)
    assert [path for path, _, _ in kit.fetcher.asked] == ["/1"]
    first.addErrback(lambda _: None)
    kit.check()


@each_row("many", [1, 19, 20, 21, 100, 200, 500])
def test_one_address_does_not_delay_the_others(many: int) -> None:
    """A client of another address is next, however many questions one address has in flight and waiting."""
    kit = Kit()
    loud = [kit.ask(f"/loud/{number}") for number in range(many)]
    quiet = [kit.ask(f"/quiet/{number}", f"203.0.113.{number}") for number in range(10)]
    under_way = min(many, 20)
    for number in range(min(many, 10)):
        kit.end(GOOD, number)
    asked = [path for path, _, _ in kit.fetcher.asked]
    assert asked[under_way : under_way + 10] == [f"/quiet/{number}" for number in range(10)]
    for at in range(under_way, under_way + 10):
        kit.end(GOOD, at)
    assert all(now(each) for each in quiet)
    for each in loud:
        each.addErrback(lambda _: None)
    kit.calls.stop()
    kit.check()


def test_a_full_queue_drops_the_newest_of_the_loudest() -> None:
    """One address can't fill the queue: its newest entries make room for the others."""
    kit = Kit(calls=1, calls_waiting=10)
    loud = [kit.ask(f"/loud/{number}") for number in range(11)]
    assert not any(each.called for each in loud)
    quiet = kit.ask("/quiet", "203.0.113.7")
    assert [each.called for each in loud] == [False] * 10 + [True]
    with pytest.raises(Unavailable, match="wait already"):
        now(loud[-1])
    assert not quiet.called
    for each in loud:
        each.addErrback(lambda _: None)
    quiet.addErrback(lambda _: None)
    kit.calls.stop()
    kit.check()


@each_row("kind", [Kind.REVALIDATION, Kind.OBJECT])
def test_handshakes_go_first_but_leave_one_call_in_four(kind: Kind) -> None:
    """One call in four is for other questions, while handshakes wait too."""
    kit = Kit(calls=1)
    kit.ask("/first").addErrback(lambda _: None)
    for number in range(40):
        kit.ask(f"/other/{number}", kind=kind, wait_s=10).addErrback(lambda _: None)
        kit.ask(f"/in/{number}", wait_s=10).addErrback(lambda _: None)
    for at in range(40):
        kit.end(GOOD, at)
    asked = [path.split("/")[1] for path in kit.fetcher.paths()]
    assert asked.count("other") == 10
    kit.calls.stop()
    kit.check()


@each_row(("calls", "sent"), [(1, 1), (2, 2), (3, 3), (4, 3), (8, 6), (20, 15)])
@each_row("kind", [Kind.OBJECT, Kind.REVALIDATION])
def test_a_quarter_of_the_calls_is_for_handshakes(calls: int, sent: int, kind: Kind) -> None:
    """Other questions, however slow, leave calls for handshakes. As they end, those that wait are sent."""
    kit = Kit(calls=calls)
    others = [kit.ask(f"/other/{number}", kind=kind, wait_s=10) for number in range(calls + 5)]
    assert len(kit.fetcher.asked) == sent
    handshakes = [kit.ask("/in") for _ in range(calls - sent)]
    assert len(kit.fetcher.asked) == calls
    for at in range(len(others) + len(handshakes)):
        kit.end(GOOD, at)
    assert all(now(asked) for asked in others + handshakes)
    assert kit.calls.figures()["in_flight"] == kit.calls.figures()["waiting"] == 0
    kit.check()


@each_row("slow_s", [0, 3, 10])
def test_passwords_have_calls_and_a_breaker_of_their_own(slow_s: float) -> None:
    """Eight wrong passwords of three seconds or more each delay no other question."""
    kit = Kit()
    passwords = [kit.ask(f"/password/{number}", password=True, wait_s=4) for number in range(100)]
    assert len(kit.fetcher.asked) == 4
    for step in range(int(slow_s * 10)):
        kit.clock.advance(0.1)
        asked = kit.ask(f"/{step}")
        kit.end(GOOD, -1)
        assert now(asked)
    for each in passwords:
        each.addErrback(lambda _: None)
    assert kit.calls.figures()["breaker"] == "closed"
    kit.calls.stop()
    kit.check()


FAILING: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("passwords and sessions", {"password": True}, {}, True),
    ("passwords and objects", {"password": True}, {"kind": Kind.OBJECT}, True),
    ("sessions and passwords", {}, {"password": True}, True),
    ("objects and sessions", {"kind": Kind.OBJECT}, {}, True),
    ("objects and sessions again", {"kind": Kind.OBJECT}, {"kind": Kind.REVALIDATION}, True),
    ("objects of passwords and objects", {"kind": Kind.OBJECT, "password": True}, {"kind": Kind.OBJECT}, True),
    ("sessions and objects", {}, {"kind": Kind.OBJECT}, True),
    ("sessions and sessions again", {}, {"kind": Kind.REVALIDATION}, False),
    ("sessions again and sessions", {"kind": Kind.REVALIDATION}, {}, False),
]


@each_row(("failing", "other", "apart"), [row[1:] for row in FAILING], ids=[row[0] for row in FAILING])
def test_each_kind_of_question_has_its_breaker(failing: dict[str, Any], other: dict[str, Any], apart: bool) -> None:
    """A kind of question that fails several times is not sent. The other kinds still are."""
    kit = Kit()
    kit.fail(5, **failing)
    asked = kit.ask(**other)
    if apart:
        kit.end(GOOD)
        assert now(asked)
    else:
        with pytest.raises(Unavailable, match="failed repeatedly"):
            now(asked)
    kit.check()


def test_a_page_of_a_gateway() -> None:
    """A page with status 200 answers no question about an object. One line says so, however many pages come."""
    kit = Kit()
    with logged() as lines:
        for _ in range(3):
            asked = kit.ask(kind=Kind.OBJECT)
            kit.end(Answer(200, b"<html>Sign in</html>"), -1)
            with pytest.raises(Unavailable):
                now(asked)
    reason = "the API answered 200 without the JSON of an object: is tower.url the API's own address?"
    assert lines.texts == [f"the Tower API can't be asked: {reason}"]


def test_five_failures_open_the_breaker_and_one_probe_in_five_seconds_closes_it() -> None:
    """After five failures in a row each question fails at once. One in five seconds is sent, until one is answered."""
    kit = Kit()
    with logged() as lines:
        kit.fail(5)
        for _ in range(3):
            with pytest.raises(Unavailable, match="failed repeatedly"):
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
        "the Tower API failed 5 times in a row: it is asked once in 5 s until it answers",
    ]
    assert lines.texts[-1] == "the Tower API answers again"
    kit.check()


@each_row("status", [500, 502, 503, 504, 599])
def test_what_counts_as_a_failure(status: int) -> None:
    """A 5xx answer counts like a refused connection."""
    kit = Kit()
    for _ in range(5):
        asked = kit.ask()
        kit.end(Answer(status, b""), -1)
        with pytest.raises(Unavailable):
            now(asked)
    with pytest.raises(Unavailable, match="failed repeatedly"):
        now(kit.ask())
    kit.check()


@each_row("status", [204, 206, 301, 302, 303, 307, 308, 400, 401, 403, 404, 414, 429, 431])
def test_no_client_opens_the_breaker(status: int) -> None:
    """No client can open the breaker for the others with its own credential or headers.

    A gateway in front of the API may redirect clients that it does not know, or show its own page.
    """
    kit = Kit()
    for _ in range(20):
        kit.ask().addErrback(lambda _: None)
        kit.end(Answer(status, b""), -1)
    asked = kit.ask()
    kit.end(GOOD, -1)
    assert now(asked)
    kit.check()


LATE, DOWN = "late", "down"

BY_CLIENTS: list[tuple[str, list[object], list[object], dict[str, Any], bool]] = [
    # name, the clients in turn, what they get in turn, the questions, whether the breaker opens
    ("an object that AWX can't show", [7], [500], {"kind": Kind.OBJECT}, False),
    ("a job that takes too long to show", [7], [LATE], {"kind": Kind.OBJECT}, False),
    ("both, on many connections of a user", [7], [LATE, 500, 504, 502], {"kind": Kind.OBJECT}, False),
    ("a session that makes the API fail", [b"one session"], [500], {}, False),
    ("a session that makes it fail when checked again", [b"one session"], [LATE, 500], {"kind": Kind.REVALIDATION}, False),
    ("guesses of passwords from an address", ["192.0.2.1"], [LATE], {"password": True}, False),
    ("a gateway that limits one client with 503", [b"one session"], [503], {}, False),
    ("two users of an API that hangs", [7, 8], [LATE], {"kind": Kind.OBJECT}, True),
    ("two sessions of an API that is broken", [b"one session", b"another"], [500], {}, True),
    ("passwords from two addresses", ["192.0.2.1", "192.0.2.2"], [LATE], {"password": True}, True),
    ("one client of an API that is down", [b"one session"], [DOWN], {}, True),
    ("one client of an API that goes down", [b"one session"], [LATE, LATE, DOWN, DOWN, DOWN], {}, True),
]


def test_one_client_opens_no_breaker() -> None:
    """What one client may have caused by its own questions does not stop the questions of the others."""
    for name, clients, ends, question, opens in BY_CLIENTS:
        kit = Kit()
        for number in range(20):
            asked = kit.ask(client=clients[number % len(clients)], **question)
            if not asked.called:
                match ends[number % len(ends)]:
                    case "late":
                        kit.clock.advance(60)
                    case "down":
                        kit.end(Failure(Unavailable("connection refused")), -1)
                    case int(status):
                        kit.end(Answer(status, b""), -1)
            asked.addErrback(lambda _: None)
        sent = len(kit.fetcher.asked)
        other = kit.ask(client="another client", **question)
        assert (len(kit.fetcher.asked) == sent) is opens, name
        other.addErrback(lambda _: None)
        kit.calls.stop()
        kit.check()


def test_a_hanging_api() -> None:
    """Waiting calls fail after their wait and calls in flight after their deadline. Then the breaker is open and none waits."""
    kit = Kit(calls=5, calls_waiting=300)
    asked = [kit.ask() for _ in range(305)]
    kit.clock.advance(0.5)
    assert sum(each.called for each in asked) == 300
    kit.clock.advance(1.5)
    for each in [*asked, kit.ask()]:
        with pytest.raises(Unavailable):
            now(each)
    assert len(kit.fetcher.asked) == 5
    kit.check()


def test_a_breaker_that_opens_before_a_long_queue() -> None:
    """All waiting calls fail at once, for any number."""
    kit = Kit(calls=1, calls_waiting=2000, breaker_failures=1)
    asked = [kit.ask(address=f"198.18.0.{number % 250}") for number in range(2001)]
    kit.end(Failure(Unavailable("refused")))
    for each in asked:
        with pytest.raises(Unavailable):
            now(each)
    kit.check()


def test_an_open_breaker_fails_at_once() -> None:
    """While earlier calls are in flight and the breaker is open, a question fails at once."""
    kit = Kit(calls=6)
    for _ in range(6):
        kit.ask().addErrback(lambda _: None)
    for at in range(5):
        kit.end(Failure(Unavailable("refused")), at)
    for _ in range(7):
        with pytest.raises(Unavailable, match="failed repeatedly"):
            now(kit.ask())
    kit.end(GOOD, 5)
    kit.check()


def plain(kit: Kit) -> dict[str, object]:
    """Return the figures of questions without a password."""
    figures = dict(kit.calls.figures())
    assert (figures.pop("object_breaker"), figures.pop("passwords")) == ("closed", Kit().calls.figures()["passwords"])
    del figures["seconds"]  # test_how_long_calls_take
    return figures


def test_how_long_calls_take() -> None:
    """From sending a call to its answer or its deadline, without the time in the queue. A call that was not sent does not count."""
    kit = Kit(calls=1)
    for _ in range(2):
        kit.ask(wait_s=4).addErrback(lambda _: None)
    kit.clock.advance(1.5)
    kit.end(GOOD)
    kit.clock.advance(2.0)
    seconds: Any = kit.calls.figures()["seconds"]
    assert seconds["sum"] == 3.5
    assert (seconds["buckets"]["1"], seconds["buckets"]["2.5"], seconds["buckets"]["+Inf"]) == (0, 2, 2)
    kit.check()


def test_figures() -> None:
    """The figures show the calls in flight, waiting, made, failed and turned away, and the breaker's state, at each moment."""
    kit = Kit(calls=2, calls_waiting=1, breaker_failures=2)
    for _ in range(4):
        kit.ask().addErrback(lambda _: None)
    assert plain(kit) == {"made": 2, "failed": 0, "turned_away": 1, "in_flight": 2, "waiting": 1, "breaker": "closed"}
    kit.end(Answer(404, b""), 0)
    assert plain(kit) == {"made": 3, "failed": 0, "turned_away": 1, "in_flight": 2, "waiting": 0, "breaker": "closed"}
    for at in (1, 2):
        kit.end(Failure(Unavailable("refused")), at)
    with pytest.raises(Unavailable, match="failed repeatedly"):
        now(kit.ask())
    assert plain(kit) == {"made": 3, "failed": 2, "turned_away": 2, "in_flight": 0, "waiting": 0, "breaker": "open"}
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
    """After stop, calls in flight, waiting calls, pauses and later questions fail, and no timer is left."""
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
    """A fault in our code that reads an answer goes to the caller and ends the call."""
    kit = Kit()

    def broken(_: Answer) -> bool:
        raise ZeroDivisionError

    asked = kit.calls.get(Question(URL, (), Kind.SIGN_IN, "192.0.2.1", 1), broken)
    kit.fetcher.asked[0][2].callback(GOOD)
    with pytest.raises(ZeroDivisionError):
        now(asked)
    kit.check()
