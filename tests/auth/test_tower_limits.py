"""Guessing is slow, from one address and for one user. A client with a valid credential is not slowed down."""

from __future__ import annotations

import base64
import random
from collections import Counter
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed

from tests.auth.tower_kit import Bench, cookie, head, me, now
from tests.kit.rows import each_row
from towerws.auth.base import NotAdmitted, Refused, Throttled
from towerws.auth.tower_api import Answer
from towerws.auth.tower_limits import (
    ACCOUNT_BURST,
    ACCOUNT_RATE,
    ADDRESS_BURST,
    ADDRESS_RATE,
    GUESS_BURST,
    GUESS_RATE,
    CircuitBreaker,
    FairQueue,
    SingleFlight,
    TtlCache,
)
from towerws.core.http_head import Head

BAD = Answer(401, b"")
HERE, THERE = "192.0.2.1", "203.0.113.7"


def password(user: str, word: str) -> Head:
    """Return the head of a program with a password."""
    return head(authorization="Basic " + base64.b64encode(f"{user}:{word}".encode()).decode())


AT_ONCE = 20


def storm(bench: Bench, brought: Any, seconds: int, address: Any = lambda number: HERE, at_once: int = AT_ONCE) -> int:
    """Send bad credentials, many handshakes at a time. Return how many of them the API was asked about."""
    bench.fetcher.answers = {"/me/": BAD}
    under_way: list[Deferred[Any]] = []
    number = asked = 0
    for _ in range(seconds * 20):
        under_way = [each for each in under_way if not each.called]
        while len(under_way) < at_once:
            signing_in = bench.method.authenticate(brought(number), address(number))
            signing_in.addErrback(lambda failure: failure.trap(NotAdmitted))
            number += 1
            under_way.append(signing_in)
            if signing_in.called and number % at_once == 0:
                break
        asked += len(bench.fetcher.paths())
        bench.clock.advance(0.05)
    for _ in range(20):
        bench.clock.advance(0.5)
    bench.fetcher.paths()
    return asked


ACCOUNT, GUESS, ADDRESS = ACCOUNT_BURST + 10 * ACCOUNT_RATE, GUESS_BURST + 10 * GUESS_RATE, ADDRESS_BURST + 10 * ADDRESS_RATE


def here(number: int) -> str:
    """Return one address for all."""
    return HERE


GUESSES = [
    ("one user", lambda number: password("admin", str(number)), here, ACCOUNT),
    ("one user, written otherwise", lambda number: password(("admin", "Admin", "ADMIN")[number % 3], str(number)), here, ACCOUNT),
    ("one user from everywhere", lambda number: password("admin", str(number)), lambda number: f"198.18.{number % 250}.1", ACCOUNT),
    ("many users", lambda number: password(f"user{number}", "123456"), here, GUESS),
    ("many users from a /64", lambda number: password(f"user{number}", "123456"), lambda number: f"2001:db8::{number:x}", GUESS),
    ("session cookies", lambda number: cookie(f"guess{number}"), here, ADDRESS),
    ("bearer tokens", lambda number: head(authorization=f"Bearer guess{number}"), here, ADDRESS),
    ("tokens in the URL", lambda number: head(f"token=guess{number}"), here, ADDRESS),
]


@each_row(("brought", "address", "bound"), [row[1:] for row in GUESSES], ids=[row[0] for row in GUESSES])
def test_guesses_are_bounded(brought: Any, address: Any, bound: float) -> None:
    """Twenty handshakes at once for ten seconds send at most this many questions. The others are throttled.

    Twenty more may be in flight before any of them has failed.
    """
    bench = Bench()
    asked = storm(bench, brought, 10, address)
    assert ACCOUNT_BURST <= asked <= bound + AT_ONCE
    throttled: Any = bench.method.figures()["throttled"]
    assert throttled["refused"] > 100
    assert bench.clock.getDelayedCalls() == []


@each_row(("brought", "bound"), [(row[1], row[3]) for row in GUESSES[2:4]], ids=[row[0] for row in GUESSES[2:4]])
def test_workers_share_the_bounds_on_passwords(brought: Any, bound: float) -> None:
    """A client can choose its worker, so four workers together allow no more guesses than one process. Shares are rounded up."""
    count = 4
    asked = sum(storm(Bench(sharers=count), brought, 10) for _ in range(count))
    assert count <= asked <= bound + count


def test_many_guesses_at_once() -> None:
    """The bound also holds for many guesses at once, before any of them has failed."""
    bench, count = Bench(), 60
    for number in range(count):
        bench.method.authenticate(password("admin", str(number)), HERE).addErrback(lambda failure: failure.trap(NotAdmitted))
    bench.clock.advance(4)
    assert len(bench.fetcher.asked) <= 4, "calls for passwords"
    assert bench.method.figures()["throttled"] == {"delayed": 0, "refused": count - ACCOUNT_BURST}
    bench.method.stop()


@each_row("way", ["the same address", "another address"])
def test_known_credentials_are_not_throttled(way: str) -> None:
    """A client with a known credential is not slowed down, even if its answer is no longer cached and others of its address fail."""
    bench = Bench()
    bench.fetcher.answers = {"/me/": me()}
    for known in (cookie("good"), password("ada", "right")):
        now(bench.method.authenticate(known, HERE))
    bench.clock.advance(60)
    storm(bench, lambda number: password("ada" if number % 2 else "bob", str(number)), 5)
    storm(bench, lambda number: cookie(f"bad{number}"), 5)
    bench.fetcher.answers = {"/me/": me()}
    for known in (cookie("good"), password("ada", "right")):
        assert now(bench.method.authenticate(known, HERE if way == "the same address" else THERE)) is not None


def test_a_new_session_from_elsewhere_is_not_slowed_down() -> None:
    """One address is slowed down, and no other."""
    bench = Bench()
    storm(bench, lambda number: cookie(f"bad{number}"), 5)
    bench.fetcher.answers = {"/me/": me()}
    assert now(bench.method.authenticate(cookie("good"), THERE)) is not None


def test_old_pages_are_no_guesses() -> None:
    """Two hundred pages with ended sessions retry each second, some beyond the memory. A new session is still admitted at once."""
    bench = Bench()
    bench.fetcher.answers = {"/me/": BAD}
    for number in range(90):
        bench.method.authenticate(cookie(f"old{number}"), HERE).addErrback(lambda failure: failure.trap(Refused))
    for _ in range(60):
        bench.clock.advance(1)
        for number in range(90):
            bench.method.authenticate(cookie(f"old{number}"), HERE).addErrback(lambda failure: failure.trap(Refused))
    bench.fetcher.answers = {"/me/": me()}
    assert now(bench.method.authenticate(cookie("new"), HERE)) is not None
    assert bench.method.figures()["throttled"] == {"delayed": 0, "refused": 0}


def test_a_thousand_sessions_from_one_address_after_a_restart() -> None:
    """After a restart the daemon knows no client. A thousand valid sessions from one address are checked without delay."""
    bench = Bench(calls_waiting=1000)
    bench.fetcher.answers = {"/me/": me()}
    for number in range(1000):
        assert now(bench.method.authenticate(cookie(f"good{number}"), HERE)) is not None
    assert bench.method.figures()["throttled"] == {"delayed": 0, "refused": 0}


def test_what_could_not_be_checked_is_no_failed_sign_in() -> None:
    """While the API is down, no address gets nearer to the bound."""
    bench = Bench()
    bench.fetcher.answers = {"/me/": Answer(503, b"")}
    for number in range(500):
        for brought in (cookie(str(number)), password("ada", str(number))):
            bench.method.authenticate(brought, HERE).addErrback(lambda failure: failure.trap(NotAdmitted))
        bench.clock.advance(0.01)
    assert bench.method.figures()["throttled"] == {"delayed": 0, "refused": 0}


def fail_so_often(bench: Bench, times: int) -> None:
    """Fail this many sessions from this address."""
    bench.fetcher.answers = {"/me/": BAD}
    for number in range(times):
        with pytest.raises(Refused):
            now(bench.method.authenticate(cookie(f"bad{number}"), HERE))
    bench.fetcher.answers = {}
    bench.fetcher.paths()


def test_a_delayed_sign_in_is_in_time() -> None:
    """A delayed handshake then has its whole deadline, so a page has its answer within 2.5 s."""
    bench = Bench()
    fail_so_often(bench, ADDRESS_BURST)
    delayed = bench.method.authenticate(cookie("new"), HERE)
    bench.clock.advance(0.09)
    assert bench.fetcher.asked == []
    bench.clock.advance(0.02)
    assert len(bench.fetcher.asked) == 1
    bench.clock.advance(1.98)
    assert not delayed.called
    bench.clock.advance(0.02)
    with pytest.raises(NotAdmitted, match="did not answer"):
        now(delayed)
    assert bench.clock.getDelayedCalls() == []


def test_what_a_throttled_client_is_told() -> None:
    """A throttled handshake is unavailable with its own reason and the kind of credential, for the log and fail2ban."""
    bench = Bench()
    storm(bench, lambda number: password("admin", str(number)), 1)
    told = bench.method.authenticate(password("admin", "more"), HERE)
    for number in range(100):
        bench.method.authenticate(password("admin", f"more{number}"), HERE).addErrback(lambda failure: failure.trap(NotAdmitted))
    throttled = bench.method.authenticate(password("admin", "yet more"), HERE)
    with pytest.raises(Throttled) as caught:
        now(throttled)
    assert (caught.value.reason, caught.value.credential) == ("throttled", "basic authorization")
    told.addErrback(lambda failure: failure.trap(NotAdmitted))
    bench.method.stop()


def test_stop_while_a_sign_in_is_delayed() -> None:
    """A delayed handshake fails when the method stops, and no timer is left."""
    bench = Bench()
    fail_so_often(bench, ADDRESS_BURST)
    delayed = bench.method.authenticate(cookie("new"), HERE)
    bench.method.stop()
    with pytest.raises(NotAdmitted, match="stopping"):
        now(delayed)
    assert bench.clock.getDelayedCalls() == []


def test_first_in_first_out_for_each_owner() -> None:
    """Owners take turns, and the entries of one owner keep their order."""
    queue: FairQueue[str] = FairQueue(100)
    for entry in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert queue.push(entry[0], entry) is None
    assert [queue.pop({}) for _ in range(len(queue))] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert not queue


@each_row(
    ("under_way", "first"),
    [({}, "a"), ({"a": 1}, "b"), ({"a": 1, "b": 1}, "c"), ({"a": 2, "b": 1, "c": 1}, "b"), ({"a": 1, "b": 1, "c": 1}, "a")],
)
def test_the_owner_with_the_fewest_calls_goes_first(under_way: dict[str, int], first: str) -> None:
    """Entries in flight count for their owner. Among equals the owner that has waited longest is next."""
    queue: FairQueue[str] = FairQueue(100)
    for owner in "abc":
        queue.push(owner, owner)
    assert queue.pop(under_way) == first


@each_row(
    ("entries", "pushed", "dropped"),
    [
        (["a1", "a2", "a3"], "b1", "a3"),
        (["a1", "a2", "b1"], "b2", "b2"),
        (["a1", "b1", "c1"], "d1", "d1"),
        (["a1", "a2", "b1"], "c1", "a2"),
        (["a1", "a2", "a3"], "a4", "a4"),
        ([], "a1", None),
    ],
)
def test_a_full_queue_drops_from_the_owner_with_the_most(entries: list[str], pushed: str, dropped: str | None) -> None:
    """A full queue drops the newest entry of the owner with the most, never of an owner with no more entries than the caller."""
    queue: FairQueue[str] = FairQueue(3)
    for entry in entries:
        queue.push(entry[0], entry)
    assert queue.push(pushed[0], pushed) == dropped
    assert len(queue) == min(3, len(entries) + 1)


def test_against_a_plain_model() -> None:
    """Under random operations no entry is lost, doubled or left behind, and the bound holds."""
    queue: FairQueue[int] = FairQueue(20)
    chance = random.Random(3)
    waiting: dict[int, str] = {}
    for number in range(5000):
        match chance.randrange(3):
            case 0:
                owner = chance.choice("abcd")
                waiting[number] = owner
                dropped = queue.push(owner, number)
                if dropped is not None:
                    del waiting[dropped]
            case 1 if waiting:
                gone = chance.choice(list(waiting))
                queue.remove(waiting.pop(gone), gone)
                queue.remove("a", gone)
            case 2 if waiting:
                del waiting[queue.pop(Counter())]
        assert len(queue) == len(waiting) <= 20
    assert queue._waiting.keys() == set(waiting.values())


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    """Five failures in a row open it, four do not, and a success in between resets the count."""
    breaker = CircuitBreaker(5, 5)
    for _ in range(4):
        assert not breaker.failed(100)
    assert not breaker.succeeded()
    for _ in range(4):
        assert not breaker.failed(100)
    assert breaker.admit(100)
    assert not breaker.is_open(100)
    assert breaker.failed(100)
    assert breaker.is_open(100)
    assert not breaker.admit(104.9)


def test_one_probe_per_period_until_one_succeeds() -> None:
    """While it is open, one call in five seconds is admitted. Its success closes the breaker and is reported once."""
    breaker = CircuitBreaker(1, 5)
    breaker.failed(100)
    assert not breaker.is_open(105)
    assert breaker.admit(105)
    assert not breaker.admit(105)
    assert not breaker.failed(106)
    assert breaker.is_open(109.9)
    assert not breaker.admit(109.9)
    assert breaker.admit(110)
    assert breaker.succeeded()
    assert not breaker.succeeded()
    assert breaker.admit(110)
    assert breaker.admit(110)


def test_late_failures_do_not_put_off_the_probe() -> None:
    """A later failure of a call from before it opened changes nothing."""
    breaker = CircuitBreaker(2, 5)
    breaker.failed(100)
    breaker.failed(100)
    breaker.failed(102)
    assert breaker.admit(105)


def test_an_answer_is_good_for_its_lifetime() -> None:
    """An answer is cached for its lifetime and no longer."""
    cache: TtlCache[str] = TtlCache(10, 5)
    cache.put("k", "yes", 100)
    assert cache.get("k", 100) == "yes"
    assert cache.get("k", 109.9) == "yes"
    assert cache.get("k", 110) is None
    assert len(cache) == 0
    assert cache.get("other", 100) is None


def test_an_older_answer_is_not_returned_to_a_caller_with_since() -> None:
    """An answer from before `since` is not returned, but stays for callers that accept it."""
    cache: TtlCache[str] = TtlCache(10, 5)
    cache.put("k", "yes", 100)
    assert cache.get("k", 105, since=101) is None
    assert cache.get("k", 105, since=100) == "yes"
    assert cache.get("k", 105) == "yes"


def test_entries_are_bounded_and_the_oldest_goes() -> None:
    """The number of entries stays within the bound. A replaced entry counts as new."""
    cache: TtlCache[int] = TtlCache(1000, 3)
    for number in range(3):
        cache.put(number, number, number)
    cache.put(0, 10, 4)
    cache.put(3, 3, 5)
    assert [cache.get(number, 6) for number in range(4)] == [10, None, 2, 3]
    for number in range(1000):
        cache.put(number, number, 7)
        assert len(cache) <= 3


def test_what_is_discarded_is_gone() -> None:
    """Discarding a key that is not there is no error."""
    cache: TtlCache[int] = TtlCache(10, 3)
    cache.put("k", 1, 0)
    cache.discard("k")
    cache.discard("k")
    assert cache.get("k", 0) is None


class Calls:
    """Counts calls. A test ends them."""

    def __init__(self) -> None:
        self.made: list[Deferred[int]] = []

    def __call__(self) -> Deferred[int]:
        """Start a call."""
        self.made.append(Deferred())
        return self.made[-1]


def test_equal_questions_are_one_call() -> None:
    """Callers that ask while a call is in flight share its answer. Other questions and later ones have their own calls."""
    flight: SingleFlight[int] = SingleFlight()
    calls = Calls()
    waiting = [flight.ask("a", calls) for _ in range(5)]
    other = flight.ask("b", calls)
    assert len(calls.made) == 2
    calls.made[0].callback(1)
    assert [now(waiter) for waiter in waiting] == [1] * 5
    assert not other.called
    calls.made[1].callback(2)
    assert now(other) == 2
    flight.ask("a", calls)
    assert len(calls.made) == 3


def test_all_get_the_failure() -> None:
    """A failure reaches every caller and is not cached."""
    flight: SingleFlight[int] = SingleFlight()
    calls = Calls()
    waiting = [flight.ask("a", calls) for _ in range(2)]
    calls.made[0].errback(ValueError("no"))
    for waiter in waiting:
        with pytest.raises(ValueError, match="no"):
            now(waiter)
    assert now(flight.ask("a", lambda: succeed(3))) == 3


def test_cancelling_one_caller_does_not_cancel_the_others() -> None:
    """The other callers get their answer, even if all callers before them cancelled. The call goes on without any caller."""
    flight: SingleFlight[int] = SingleFlight()
    calls = Calls()
    gone = flight.ask("a", calls)
    stays = flight.ask("a", calls)
    gone.cancel()
    with pytest.raises(CancelledError):
        now(gone)
    stays.addErrback(lambda _: None).cancel()
    late = flight.ask("a", calls)
    assert len(calls.made) == 1
    assert not calls.made[0].called
    calls.made[0].callback(1)
    assert now(late) == 1


def test_cancelling_another_from_within_an_answer() -> None:
    """A callback may cancel the next caller, whose Deferred then gets no result."""
    flight: SingleFlight[int] = SingleFlight()
    calls = Calls()
    first = flight.ask("a", calls)
    second = flight.ask("a", calls)
    third = flight.ask("a", calls)
    first.addCallback(lambda _: second.cancel())
    calls.made[0].callback(1)
    with pytest.raises(CancelledError):
        now(second)
    assert now(third) == 1


def test_an_answer_that_is_there_at_once() -> None:
    """A call that has ended when it returns gives its answer at once."""
    flight: SingleFlight[int] = SingleFlight()
    assert now(flight.ask("a", lambda: succeed(1))) == 1
    assert now(flight.ask("a", lambda: succeed(2))) == 2
