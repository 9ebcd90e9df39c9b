from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.kit.rows import each_row
from towerws.auth.base import Refused, Unavailable, takes_tokens
from towerws.auth.chain import RETIRED_S, Chain, Replacements
from towerws.core.http_head import Head
from towerws.core.identity import Identity, Revocation

HEAD = Head("GET", "/websocket/", "", {"host": "tower.example.com"})


class Fake:
    """A method with a fixed answer."""

    def __init__(self, name: str, answer: Any) -> None:
        self.name = name
        self._answer = answer
        self.asked: list[tuple[str, object]] = []
        self.stopped = False

    def _give(self) -> Deferred[Any]:
        if isinstance(self._answer, Deferred):
            return self._answer
        return fail(self._answer) if isinstance(self._answer, Exception) else succeed(self._answer)

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Return the answer."""
        self.asked.append(("authenticate", address))
        return self._give()

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Refuse the first topic, with the method's name as the reason."""
        self.asked.append(("refusals", tuple(topics)))
        return succeed({topics[0]: self.name})

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """Return the same identity."""
        self.asked.append(("revalidate", identity.user_id))
        return succeed(identity)

    def forget(self, revocation: Revocation | None) -> None:
        """Record the call."""
        self.asked.append(("forget", revocation))

    def stop(self) -> Deferred[None]:
        """Record the call."""
        self.stopped = True
        return fail(ValueError("went wrong")) if self.name == "broken" else succeed(None)


def now(asked: Deferred[Any]) -> Any:
    """Return the result of a Deferred that has fired, or raise its exception."""
    results: list[Any] = []
    asked.addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


def test_the_first_identity_is_taken() -> None:
    """The methods are tried in order, with the client's address, until one recognizes the credential."""
    methods = [Fake("jwt", None), Fake("tower", Identity(7, "tower")), Fake("open", Identity())]
    assert now(Chain(methods).authenticate(HEAD, "192.0.2.1")) == Identity(7, "tower")
    assert [method.asked for method in methods] == [[("authenticate", "192.0.2.1")], [("authenticate", "192.0.2.1")], []]


def test_no_credential_of_any_kind() -> None:
    """A client without a credential is not admitted because no method refused it."""
    assert now(Chain([Fake("jwt", None), Fake("tower", None)]).authenticate(HEAD, "192.0.2.1")) is None
    assert now(Chain([]).authenticate(HEAD, "192.0.2.1")) is None


@each_row("error", [Refused("expired"), Unavailable("down"), ValueError("a bug")])
def test_what_a_method_says_of_its_kind_of_credential_is_final(error: Exception) -> None:
    """A later method does not make a bad token valid. An unavailable method does not count as None."""
    later = Fake("open", Identity())
    with pytest.raises(type(error)):
        now(Chain([Fake("jwt", error), later]).authenticate(HEAD, "192.0.2.1"))
    assert not later.asked


def test_cancelling_reaches_the_method_that_is_asked() -> None:
    """After the client disconnects, no other method is tried."""
    cancelled: list[Deferred[Any]] = []
    later = Fake("open", Identity())
    asked = Chain([Fake("tower", Deferred(cancelled.append)), later]).authenticate(HEAD, "192.0.2.1")
    asked.cancel()
    assert len(cancelled) == 1
    with pytest.raises(CancelledError):
        now(asked)
    assert not later.asked


def test_the_method_that_vouches_is_asked_from_then_on() -> None:
    """Only the method that authenticated a user decides about its topics and its revalidation."""
    jwt, tower = Fake("jwt", None), Fake("tower", None)
    chain = Chain([jwt, tower])
    assert now(chain.refusals(Identity(7, "tower"), ["job_events.42"])) == {"job_events.42": "tower"}
    told: list[dict[str, str]] = []
    assert now(chain.tell_refusals(Identity(7, "tower"), ["job_events.42"], told.append)) is None
    assert told == [{"job_events.42": "tower"}], "by a method that tells all at the end"
    assert now(chain.revalidate(Identity(7, "tower"))) == Identity(7, "tower")
    assert jwt.asked == []


def test_all_forget() -> None:
    """A revocation goes to all methods, since any of them may know the user."""
    methods = [Fake("jwt", None), Fake("tower", None)]
    Chain(methods).forget(Revocation(user=7))
    assert [method.asked for method in methods] == [[("forget", Revocation(user=7))]] * 2


def test_all_are_stopped() -> None:
    """A method that fails to stop does not stop the others from stopping, nor the daemon."""
    methods = [Fake("broken", None), Fake("tower", None)]
    assert now(Chain(methods).stop()) is None
    assert all(method.stopped for method in methods)


class FakeTokens(Fake):
    """A method whose credential may come in a message."""

    def __init__(self, name: str, answer: Any, *, takes_tokens: bool = True) -> None:
        super().__init__(name, answer)
        self.takes_tokens = takes_tokens

    def identify(self, token: str, address: str) -> Deferred[Identity]:
        """Record the token."""
        self.asked.append((token, ""))
        return succeed(Identity(token, self.name))


def test_tokens_go_to_the_method_that_takes_them() -> None:
    """A token in a message goes to one method only. A chain without a method that takes tokens takes none."""
    tower, no, jwt = Fake("tower", None), FakeTokens("no", None, takes_tokens=False), FakeTokens("jwt", None)
    chain = Chain([tower, no, jwt])
    assert takes_tokens(chain)
    assert now(chain.identify("anna")) == Identity("anna", "jwt")
    assert not tower.asked
    assert not no.asked
    assert not takes_tokens(Chain([tower, no]))
    assert not takes_tokens(tower)


class FakeFigures(Fake):
    """A method with its own figures."""

    def figures(self) -> dict[str, object]:
        """Return three calls."""
        return {"calls": 3}


def test_figures() -> None:
    """Each method counts the results of its own credentials, and none of another method's."""
    nothing = {"accepted": 0, "refused": 0, "unavailable": 0}
    chain = Chain([FakeTokens("jwt", None), FakeFigures("tower", Identity(7, "tower"))])
    now(chain.authenticate(HEAD, "192.0.2.1"))
    assert chain.figures() == {"jwt": nothing, "tower": {**nothing, "accepted": 1, "calls": 3}}
    now(chain.identify("anna"))
    assert chain.figures()["jwt"] == {**nothing, "accepted": 1}
    for error, counted in ((Refused("expired"), {"refused": 1}), (Unavailable("down"), {"unavailable": 1}), (ValueError("a bug"), {})):
        chain = Chain([Fake("jwt", error), Fake("tower", Identity(7, "tower"))])
        with pytest.raises(type(error)):
            now(chain.authenticate(HEAD, "192.0.2.1"))
        assert chain.figures() == {"jwt": {**nothing, **counted}, "tower": nothing}
        alone = Chain([Fake("jwt", error)])
        with pytest.raises(type(error)):
            now(alone.authenticate(HEAD, "192.0.2.1"))
        assert alone.figures() == {"jwt": {**nothing, **counted}}


class Slow(Fake):
    """A method that answers questions when a test does."""

    takes_tokens = True

    def __init__(self, name: str) -> None:
        super().__init__(name, None)
        self.open: list[Deferred[Any]] = []

    def _give(self, *_: Any) -> Deferred[Any]:
        self.open.append(Deferred())
        return self.open[-1]

    identify = tell_refusals = _give
    refusals = revalidate = _give  # type: ignore[assignment]


QUESTIONS: dict[str, Callable[[Chain], Deferred[Any]]] = {
    "authenticate": lambda chain: chain.authenticate(HEAD, "192.0.2.1"),
    "identify": lambda chain: chain.identify("token"),
    "refusals": lambda chain: chain.refusals(Identity(7, "tower"), ["job_events.42"]),
    "tell_refusals": lambda chain: chain.tell_refusals(Identity(7, "tower"), ["job_events.42"], lambda refused: None),
    "revalidate": lambda chain: chain.revalidate(Identity(7, "tower")),
}


@each_row("question", QUESTIONS.values(), ids=QUESTIONS)
@each_row("answer", [None, Unavailable("down"), "cancelled"])
def test_a_replaced_method_answers_before_it_is_stopped(question: Callable[[Chain], Deferred[Any]], answer: object) -> None:
    """A check of many objects takes minutes. The replaced method is stopped when its last question has ended."""
    clock, before, after = Clock(), Slow("tower"), Slow("tower")
    chain = Chain([before])
    asked = [question(chain), question(chain)]
    chain.replace(Replacements({}, {"tower": after}), clock)
    later = question(chain)
    assert (len(before.open), len(after.open)) == (2, 1)
    before.open[0].callback(None)
    clock.advance(RETIRED_S - 1)
    assert [before.stopped, after.stopped] == [False, False]
    if answer == "cancelled":
        asked[1].cancel()
    else:
        before.open[1].callback(None) if answer is None else before.open[1].errback(Failure(cast("Exception", answer)))
    clock.advance(0)
    assert [before.stopped, after.stopped] == [True, False]
    assert clock.getDelayedCalls() == []
    for each in (*asked, later):
        each.addErrback(lambda _: None)


def test_a_replaced_method_that_never_answers() -> None:
    """It is stopped after a bound. A method with no open question is stopped at once."""
    clock, methods = Clock(), [Slow("tower") for _ in range(3)]
    chain = Chain(methods[:1])
    QUESTIONS["refusals"](chain)
    for after in methods[1:]:
        chain.replace(Replacements({}, {"tower": after}), clock)
    clock.advance(0)
    assert [method.stopped for method in methods] == [False, True, False]
    clock.advance(RETIRED_S)
    assert [method.stopped for method in methods] == [True, True, False]


def test_a_handshake_during_a_replacement_asks_the_new_method() -> None:
    """The first method was still asked when the second one was replaced."""
    clock, jwt, before, after = Clock(), Slow("jwt"), Slow("tower"), Slow("tower")
    chain = Chain([jwt, before])
    asked = chain.authenticate(HEAD, "192.0.2.1")
    chain.replace(Replacements({}, {"tower": after}), clock)
    clock.advance(0)
    jwt.open[0].callback(None)
    assert (len(before.open), len(after.open)) == (0, 1)
    after.open[0].callback(Identity(7, "tower"))
    assert now(asked) == Identity(7, "tower")
