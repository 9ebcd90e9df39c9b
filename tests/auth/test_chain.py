from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure

from towerws.auth.base import Refused, Unavailable, takes_tokens
from towerws.auth.chain import Chain
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.revocation import Revocation

HEAD = Head("GET", "/websocket/", "", {"host": "tower.example.com"})


class Fake:
    """A method that answers what it was given."""

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
        """Give the answer."""
        self.asked.append(("authenticate", address))
        return self._give()

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Refuse the first, by name."""
        self.asked.append(("refusals", tuple(topics)))
        return succeed({topics[0]: self.name})

    def revalidate(self, identity: Identity) -> Deferred[Identity]:
        """As it was."""
        self.asked.append(("revalidate", identity.user_id))
        return succeed(identity)

    def forget(self, revocation: Revocation | None) -> None:
        """Note it."""
        self.asked.append(("forget", revocation))

    def stop(self) -> Deferred[None]:
        """Note it."""
        self.stopped = True
        return fail(ValueError("went wrong")) if self.name == "broken" else succeed(None)


def now(asked: Deferred[Any]) -> Any:
    """What a Deferred has fired with; raises what it has failed with."""
    results: list[Any] = []
    asked.addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


def test_the_first_identity_is_taken() -> None:
    """The methods are asked in their order, with the client's address, until one knows the credential."""
    methods = [Fake("jwt", None), Fake("tower", Identity(7, "tower")), Fake("open", Identity())]
    assert now(Chain(methods).authenticate(HEAD, "192.0.2.1")) == Identity(7, "tower")
    assert [method.asked for method in methods] == [[("authenticate", "192.0.2.1")], [("authenticate", "192.0.2.1")], []]


def test_no_credential_of_any_kind() -> None:
    """Nobody is let in only because nobody said no."""
    assert now(Chain([Fake("jwt", None), Fake("tower", None)]).authenticate(HEAD, "192.0.2.1")) is None
    assert now(Chain([]).authenticate(HEAD, "192.0.2.1")) is None


@pytest.mark.parametrize("error", [Refused("expired"), Unavailable("down"), ValueError("a bug")])
def test_what_a_method_says_of_its_kind_of_credential_is_final(error: Exception) -> None:
    """A bad token is not made good by a later method, and an unknown answer is not taken for none."""
    later = Fake("open", Identity())
    with pytest.raises(type(error)):
        now(Chain([Fake("jwt", error), later]).authenticate(HEAD, "192.0.2.1"))
    assert not later.asked


def test_cancelling_reaches_the_method_that_is_asked() -> None:
    """A client that is gone is not asked about any further."""
    cancelled: list[Deferred[Any]] = []
    later = Fake("open", Identity())
    asked = Chain([Fake("tower", Deferred(cancelled.append)), later]).authenticate(HEAD, "192.0.2.1")
    asked.cancel()
    assert len(cancelled) == 1
    with pytest.raises(CancelledError):
        now(asked)
    assert not later.asked


def test_the_method_that_vouches_is_asked_from_then_on() -> None:
    """What a user may listen to, and whether it still may, is not another method's to say."""
    jwt, tower = Fake("jwt", None), Fake("tower", None)
    chain = Chain([jwt, tower])
    assert now(chain.refusals(Identity(7, "tower"), ["job_events.42"])) == {"job_events.42": "tower"}
    assert now(chain.revalidate(Identity(7, "tower"))) == Identity(7, "tower")
    assert jwt.asked == []


def test_all_forget() -> None:
    """Whose credential of which kind a revocation ends is not known before."""
    methods = [Fake("jwt", None), Fake("tower", None)]
    Chain(methods).forget(Revocation(user=7))
    assert [method.asked for method in methods] == [[("forget", Revocation(user=7))]] * 2


def test_all_are_stopped() -> None:
    """One that fails at stopping does not keep the others, nor the daemon."""
    methods = [Fake("broken", None), Fake("tower", None)]
    assert now(Chain(methods).stop()) is None
    assert all(method.stopped for method in methods)


class FakeTokens(Fake):
    """A method whose credential may come in a message."""

    def __init__(self, name: str, answer: Any, *, takes_tokens: bool = True) -> None:
        super().__init__(name, answer)
        self.takes_tokens = takes_tokens

    def identify(self, token: str, address: str) -> Deferred[Identity]:
        """Note the token."""
        self.asked.append((token, ""))
        return succeed(Identity(token, self.name))


def test_tokens_go_to_the_method_that_takes_them() -> None:
    """A token in a message is shown to no other method; a chain in which none takes any takes none."""
    tower, no, jwt = Fake("tower", None), FakeTokens("no", None, takes_tokens=False), FakeTokens("jwt", None)
    chain = Chain([tower, no, jwt])
    assert takes_tokens(chain)
    assert now(chain.identify("anna")) == Identity("anna", "jwt")
    assert not tower.asked
    assert not no.asked
    assert not takes_tokens(Chain([tower, no]))
    assert not takes_tokens(tower)


class FakeFigures(Fake):
    """A method with a figure of its own."""

    def figures(self) -> dict[str, object]:
        """Three calls."""
        return {"calls": 3}


def test_figures() -> None:
    """Each method's credentials are counted by what became of them; what is another method's kind is none of its own."""
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
