from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed

from tests.auth.tower_kit import now
from towerws.auth.cache import SingleFlight, TtlCache


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
