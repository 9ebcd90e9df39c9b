from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.web._newclient import ResponseNeverReceived

from tests.auth.jwt_kit import CANARY, jwk, jwks, make_method, result, sign
from tests.kit.rows import each_row
from towerws.auth.base import Refused, Unavailable
from towerws.auth.jwt import JwtMethod
from towerws.auth.jwt_key_set import MAX_KEYS, MAX_TRIED, RETRY_S, UNKNOWN_KID_S, Fetched, FetchError, Jwks
from towerws.auth.jwt_keys import Key

MAX_AGE_S, STALE_S = 1000, 500


class Issuer:
    """Answers when a test says so, and counts calls."""

    def __init__(self, max_age_s: float = MAX_AGE_S, stale_s: float = STALE_S) -> None:
        self.clock = Clock()
        self.calls: list[Deferred[Fetched]] = []
        url = urlsplit(f"https://issuer.example/keys?key={CANARY}")
        self.keys = Jwks(self.get, url, ("ES256", "EdDSA"), self.clock, max_age_s=max_age_s, stale_s=stale_s)

    def get(self) -> Deferred[Fetched]:
        """Start a call."""
        self.calls.append(Deferred())
        return self.calls[-1]

    def answer(self, *members: object, max_age_s: int | None = None) -> None:
        """Answer the call in flight with these keys."""
        self.calls[-1].callback(Fetched(jwks(*members), max_age_s))

    def find(self, kid: str | None = "k1", algorithm: str = "ES256") -> Deferred[Sequence[Key]]:
        """Find keys."""
        return self.keys.find(algorithm, kid)

    def kids(self, kid: str | None = "k1", algorithm: str = "ES256") -> list[str | None]:
        """Return the names of the keys that are found at once."""
        return [key.kid for key in result(self.find(kid, algorithm))]


@pytest.fixture
def issuer() -> Issuer:
    """Return an issuer that has answered nothing yet."""
    return Issuer()


def new_issuer() -> AbstractContextManager[Issuer]:
    """Return an issuer for one row of a table."""
    return nullcontext(Issuer())


def known_issuer() -> AbstractContextManager[Issuer]:
    """Return an issuer whose key k1 is cached for 100 s, for one row of a table."""
    return nullcontext(knowing(Issuer()))


@pytest.fixture
def known(issuer: Issuer) -> Issuer:
    """Return an issuer whose key k1 is cached for 100 s."""
    return knowing(issuer)


def knowing(issuer: Issuer) -> Issuer:
    """Return the issuer after it got the key k1, for 100 s."""
    asked = issuer.find()
    issuer.answer(jwk("ES256", kid="k1"), max_age_s=100)
    assert [key.kid for key in result(asked)] == ["k1"]
    return issuer


def test_callers_share_one_call(issuer: Issuer) -> None:
    """Callers share the answer of the call in flight. A caller that cancels does not end it for the others."""
    first, leaving, last = issuer.find(), issuer.find(), issuer.find("k2")
    assert len(issuer.calls) == 1
    leaving.cancel()
    with pytest.raises(CancelledError):
        result(leaving)
    issuer.answer(jwk("ES256", kid="k1"), jwk("ES256", 1, kid="k2"), jwk("EdDSA", kid="k1"))
    assert [key.kid for key in result(first)] == ["k1"]
    assert [key.kid for key in result(last)] == ["k2"]
    assert issuer.kids(algorithm="EdDSA") == ["k1"]
    assert len(issuer.calls) == 1


def test_a_callback_may_cancel_another_caller(issuer: Issuer) -> None:
    """A callback may cancel another caller (a limit for one user may do that). That is no error."""
    first, second, third = issuer.find(), issuer.find(), issuer.find()
    first.addCallback(lambda _: second.cancel())
    issuer.answer(jwk("ES256", kid="k1"))
    with pytest.raises(CancelledError):
        result(second)
    assert [key.kid for key in result(third)] == ["k1"]


@each_row(("said", "counts"), [(None, 300), (0, 60), (59, 60), (400, 400), (10**9, MAX_AGE_S)], issuer=new_issuer)
def test_max_age_within_bounds(issuer: Issuer, said: int | None, counts: int) -> None:
    """Keys are cached for the max-age of the answer, between a minute and the bound. The default is five minutes."""
    asked = issuer.find()
    issuer.answer(jwk("ES256", kid="k1"), max_age_s=said)
    result(asked)
    issuer.clock.advance(counts - 0.1)
    assert issuer.kids() == ["k1"]
    assert len(issuer.calls) == 1
    issuer.clock.advance(0.1)
    asked = issuer.find()
    assert len(issuer.calls) == 2
    issuer.answer(jwk("ES256", 1, kid="k2"))
    assert result(asked) == []
    assert issuer.keys.counts == {"fetched": 2, "failed": 0, "stale": 0, "limited": 0}


@each_row("stale_s", [0, 3600])
def test_keys_that_are_fetched_for_each_token(tmp_path: Path, stale_s: float) -> None:
    """With `max_age_s` 0 each token is checked with the keys that were fetched for it. They are not old."""
    issuer = Issuer(max_age_s=0, stale_s=stale_s)
    method = method_of(issuer, tmp_path)
    for number in (0, 1):
        good = method.identify(sign(algorithm="ES256", number=number, header={"kid": "k"}))
        forged = method.identify(sign(algorithm="ES256", number=2, header={"kid": "k"}))
        issuer.answer(jwk("ES256", number, kid="k"))
        while not issuer.calls[-1].called:
            issuer.clock.advance(1)  # the answer takes a while
            issuer.answer(jwk("ES256", number, kid="k"))
        assert result(good).user_id == "anna"
        with pytest.raises(Refused, match="signature is not good"):
            result(forged)
        issuer.clock.advance(1)
    assert issuer.keys.counts["stale"] == issuer.keys.counts["failed"] == 0
    asked = issuer.find("k")
    issuer.calls[-1].errback(Failure(FetchError("down")))
    if stale_s:
        assert [key.kid for key in result(asked)] == ["k"]
        assert issuer.keys.counts["stale"] == 1
    else:
        with pytest.raises(Unavailable, match="can't be fetched"):
            result(asked)


def test_rotation(known: Issuer) -> None:
    """An unknown `kid` causes one fetch and finds its key. A key that is no longer in the set is gone."""
    asked = known.find("k2")
    assert len(known.calls) == 2
    known.answer(jwk("ES256", 1, kid="k2"))
    assert [key.kid for key in result(asked)] == ["k2"]
    with pytest.raises(Unavailable):
        known.kids("k1")
    assert len(known.calls) == 2
    known.clock.advance(UNKNOWN_KID_S)
    asked = known.find("k1")
    known.answer(jwk("ES256", 1, kid="k2"))
    assert result(asked) == []


@each_row("before", [["stranger"], ["stranger", "k0"], ["../../etc/passwd"] * 3, ["", "k3"]])
@each_row("later", [0, 0.1, 5, UNKNOWN_KID_S - 0.1], known=known_issuer)
def test_a_rotation_right_behind_an_unknown_kid(known: Issuer, before: list[str], later: float) -> None:
    """A valid token of a new key is unavailable, never refused. Ten seconds after the last fetch it is accepted."""
    asked = [known.find(kid) for kid in before]
    known.answer(jwk("ES256", kid="k1"))
    assert result(asked[0]) == []
    for each in asked[1:]:
        with pytest.raises(Unavailable, match="a moment ago"):
            result(each)
    known.clock.advance(later)
    with pytest.raises(Unavailable, match="a moment ago"):
        known.kids("k2")
    assert known.kids("k1") == ["k1"]
    known.clock.advance(UNKNOWN_KID_S - later)
    good = known.find("k2")
    known.answer(jwk("ES256", 1, kid="k2"))
    assert [key.kid for key in result(good)] == ["k2"]


@each_row("old", [False, True])
def test_a_new_kid_that_joins_a_call_from_before_the_rotation(old: bool) -> None:
    """The answer may be from before the rotation. So the token waits for one more call, which is its last."""
    issuer = knowing(Issuer())
    if old:
        issuer.clock.advance(100)
        first = issuer.find()
    else:
        issuer.keys.read_again()
        first = issuer.find()
        issuer.keys._fresh_until = issuer.clock.seconds() + 50
    joined = [issuer.find("k2"), issuer.find("k2"), issuer.find("k3")]
    issuer.answer(jwk("ES256", kid="k1"))
    assert [key.kid for key in result(first)] == ["k1"]
    assert len(issuer.calls) == 3
    issuer.answer(jwk("ES256", kid="k1"), jwk("ES256", kid="k2"))
    assert [[key.kid for key in result(each)] for each in joined] == [["k2"], ["k2"], []]
    assert len(issuer.calls) == 3
    with pytest.raises(Unavailable, match="a moment ago"):
        issuer.kids("k3")
    assert issuer.keys.counts["limited"] == 1


def test_a_replaced_key_without_a_kid_that_joins_a_call_from_before() -> None:
    """A bad signature joins a call that brings the old key. It waits for one more call."""
    issuer = Issuer()
    asked = issuer.find(None)
    issuer.answer(jwk("ES256", 0), max_age_s=100)
    assert len(result(asked)) == 1
    issuer.clock.advance(100)
    asked = issuer.find(None)
    joined = issuer.keys.find_newer("ES256", None)
    issuer.answer(jwk("ES256", 0))
    (old,) = result(asked)
    assert len(issuer.calls) == 3
    issuer.answer(jwk("ES256", 1))
    (new,) = result(joined)
    assert new != old
    with pytest.raises(Unavailable, match="a moment ago"):
        result(issuer.keys.find_newer("ES256", None))
    assert len(issuer.calls) == 3


def test_a_new_kid_that_joins_the_call_of_an_unknown_one(known: Issuer) -> None:
    """An unknown kid causes one call in ten seconds. A token that joins that call is unavailable and not refused."""
    unknown = known.find("x")
    known.clock.advance(1)
    joined = known.find("k2")
    known.answer(jwk("ES256", kid="k1"))
    assert result(unknown) == []
    with pytest.raises(Unavailable, match="a moment ago"):
        result(joined)
    known.clock.advance(UNKNOWN_KID_S - 1)
    again = known.find("k2")
    known.answer(jwk("ES256", kid="k2"))
    assert [key.kid for key in result(again)] == ["k2"]
    assert len(known.calls) == 3


def test_unknown_kids_do_not_make_calls_without_end(known: Issuer) -> None:
    """Unknown `kid`s cause one fetch in 10 s. Other callers are unavailable."""
    first, joining = known.find("../../etc/passwd"), known.find("https://evil.example/")
    known.answer(jwk("ES256", kid="k1"))
    assert result(first) == []
    with pytest.raises(Unavailable):
        result(joining)
    for number in range(100):
        if number == 1:
            assert known.kids("k1") == ["k1"]
        else:
            with pytest.raises(Unavailable):
                known.kids(f"k{number}")
    assert len(known.calls) == 2
    assert known.keys.counts["limited"] == 100
    known.clock.advance(UNKNOWN_KID_S)
    asked = known.find("k9")
    known.answer(jwk("ES256", kid="k9"))
    assert [key.kid for key in result(asked)] == ["k9"]


def test_old_keys_serve_while_the_issuer_is_down(known: Issuer) -> None:
    """Old keys are used up to the bound and counted, with one fetch in 5 s. Then all is unavailable. The log has one line for each."""
    with capturedLogs() as logged:
        known.clock.advance(100)
        asked = known.find()
        known.calls[-1].errback(FetchError("no answer within 2 s"))
        assert [key.kid for key in result(asked)] == ["k1"]
        assert known.kids() == ["k1"]  # no call: it is too early
        assert (len(known.calls), known.keys.counts["stale"]) == (2, 2)
        known.clock.advance(RETRY_S)
        asked = known.find()
        known.calls[-1].errback(ConnectionRefusedError(CANARY))
        assert [key.kid for key in result(asked)] == ["k1"]
        known.clock.advance(STALE_S - RETRY_S - 0.1)
        asked = known.find()
        known.calls[-1].errback(FetchError("no answer within 2 s"))
        assert [key.kid for key in result(asked)] == ["k1"]
        known.clock.advance(0.1)
        with pytest.raises(Unavailable):
            known.kids()
        known.clock.advance(RETRY_S)
        asked = known.find()
        known.answer(jwk("ES256", kid="k1"))
        assert [key.kid for key in result(asked)] == ["k1"]
    assert [formatEvent(event) for event in logged] == [
        "the keys of tokens can't be fetched from https://issuer.example/keys: no answer within 2 s",
        "the keys of tokens could be fetched again from https://issuer.example/keys",
    ]
    assert known.keys.counts["failed"] == 3


def test_a_new_kid_while_the_issuer_is_down_is_not_a_bad_one(known: Issuer) -> None:
    """An unknown key may be a new one, so it is unavailable and not refused. Known keys still work."""
    asked = known.find("k2")
    known.calls[-1].errback(FetchError("the answer was 500, not 200"))
    with pytest.raises(Unavailable):
        result(asked)
    with pytest.raises(Unavailable):
        known.kids("k3")
    assert known.kids("k1") == ["k1"]
    assert len(known.calls) == 2


def test_no_keys_at_all(issuer: Issuer) -> None:
    """Before the first answer all is unavailable, and at once right after a failure."""
    with capturedLogs() as logged:
        asked = issuer.find()
        issuer.calls[-1].errback(ResponseNeverReceived([Failure(ConnectionResetError(CANARY))]))
        with pytest.raises(Unavailable):
            result(asked)
        with pytest.raises(Unavailable):
            issuer.kids()
    assert len(issuer.calls) == 1
    (line,) = map(formatEvent, logged)
    assert line == "the keys of tokens can't be fetched from https://issuer.example/keys: ConnectionResetError"


def test_a_call_that_fails_before_it_is_under_way(issuer: Issuer) -> None:
    """An immediate error counts like any other, and the next fetch is still made."""

    def fail() -> Deferred[Fetched]:
        issuer.calls.append(Deferred())
        raise OSError(CANARY)

    issuer.keys._get = fail
    for calls in (1, 2):
        with pytest.raises(Unavailable):
            issuer.kids()
        assert len(issuer.calls) == calls
        issuer.clock.advance(RETRY_S)


@each_row(
    "body",
    [
        b"", b"{}", b"[]", b"null", b'{"keys": {}}', b'{"keys": null}', b'{"keys": [],"keys": []}', b"\xff", b'{"keys": [NaN]}',
        b"[" * 100_000, jwks(*[{}] * (MAX_KEYS + 1)), CANARY.encode(),
    ], known=known_issuer,
)  # fmt: skip
def test_what_is_no_key_set_changes_nothing(known: Issuer, body: bytes) -> None:
    """An answer that is no key set counts as a failure, and the cached keys stay."""
    with capturedLogs() as logged:
        asked = known.find("k2")
        known.calls[-1].callback(Fetched(body, None))
        with pytest.raises(Unavailable):
            result(asked)
    assert known.kids() == ["k1"]
    assert CANARY not in str(logged)


def test_an_empty_key_set_revokes_all(known: Issuer) -> None:
    """If the issuer has no keys, each token is refused and not unavailable."""
    asked = known.find("k2")
    known.answer()
    assert result(asked) == []
    known.clock.advance(UNKNOWN_KID_S)
    asked = known.find("k1")
    known.answer()
    assert result(asked) == []


def test_tokens_without_a_kid(issuer: Issuer) -> None:
    """A token without a `kid` is checked with all keys of its algorithm, up to a bound."""
    asked = issuer.find(None)
    issuer.answer(*[jwk("ES256", number) for number in range(MAX_TRIED)], jwk("EdDSA", kid="k1"))
    assert len(result(asked)) == len(result(issuer.find("k1"))) == MAX_TRIED
    issuer.keys.read_again()
    asked = issuer.find("k1")
    issuer.answer(*[jwk("ES256", number) for number in range(MAX_TRIED + 1)])
    assert result(asked) == []
    with pytest.raises(Refused, match="must have a kid"):
        issuer.kids(None)


def method_of(issuer: Issuer, folder: Path) -> JwtMethod:
    """Return a method that uses the issuer's key set."""
    method = make_method(folder, issuer.clock, algorithms=("ES256",), jwks_url="https://issuer.example/keys")
    method._keys = issuer.keys
    return method


@each_row(
    ("members", "header", "why"),
    [
        ([jwk("ES256", 1, kid="old")], {"kid": "new"}, "no key for the token's kid and algorithm"),
        ([jwk("ES256", 1)], {"kid": "new"}, "no key for the token's kid and algorithm"),
        ([jwk("ES256", 1, kid="new")], {"kid": "new"}, "signature is not good"),
        ([jwk("ES256", 1)], {}, "signature is not good"),
        ([jwk("EdDSA", 1, kid="new")], {"kid": "new"}, "no key for the token's kid and algorithm"),
        ([], {}, "no key for the token's kid and algorithm"),
    ],
)
def test_an_unknown_key_is_not_a_bad_signature(tmp_path: Path, members: list[object], header: dict[str, Any], why: str) -> None:
    """A rotation can make a key unknown, so the reason differs from that of a forged token, which counts as an attack."""
    issuer = Issuer()
    asked = method_of(issuer, tmp_path).identify(sign(algorithm="ES256", header=header))
    issuer.answer(*members)
    if len(issuer.calls) == 2:
        issuer.answer(*members)
    with pytest.raises(Refused, match=why):
        result(asked)


def test_a_key_without_a_kid_checks_tokens_with_one(tmp_path: Path) -> None:
    """A key needs no `kid` (RFC 7517 section 4.5). It is tried if no key has the token's. A key with another `kid` is not."""
    issuer = Issuer()
    method = method_of(issuer, tmp_path)
    asked = method.identify(sign(algorithm="ES256", header={"kid": "a"}))
    issuer.answer(jwk("ES256", 1, kid="other"), jwk("ES256", 0))
    assert result(asked).user_id == "anna"
    assert [key.kid for key in result(issuer.find("other"))] == ["other"]
    assert [key.kid for key in result(issuer.find("a"))] == [None]
    issuer.clock.advance(UNKNOWN_KID_S)
    asked = method.identify(sign(algorithm="ES256", number=2, header={"kid": "b"}))
    issuer.answer(jwk("ES256", 0), jwk("ES256", 2, kid="b"))
    assert result(asked).user_id == "anna"
    with pytest.raises(Unavailable, match="a moment ago"):
        result(method.identify(sign(algorithm="ES256", number=3, header={"kid": "c"})))


def test_a_key_that_is_replaced_under_the_same_name(tmp_path: Path) -> None:
    """A valid token of a new key is never refused, also where keys have no `kid`. Forged tokens cause one fetch in 10 s."""
    rows: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], bool]] = [
        # name, the old key, the new key, the token's header, whether a bad signature just before it makes it unavailable
        ("no kid anywhere", {}, {}, {}, True),
        ("a kid that is always the same", {"kid": "1"}, {"kid": "1"}, {"kid": "1"}, False),
        ("an empty kid", {"kid": ""}, {"kid": ""}, {"kid": ""}, False),
        ("only tokens have a kid", {}, {}, {"kid": "1"}, True),
        ("keys get a kid with the rotation", {}, {"kid": "k2"}, {}, True),
    ]
    for name, old, new, header, vague in rows:
        issuer = Issuer()
        method = method_of(issuer, tmp_path)

        def enter(number: int, header: dict[str, Any] = header, method: JwtMethod = method) -> Deferred[Any]:
            return method.identify(sign(algorithm="ES256", number=number, header=header))

        asked = enter(0)
        issuer.answer(jwk("ES256", 0, **old))
        assert result(asked).user_id == "anna", name
        issuer.clock.advance(UNKNOWN_KID_S)
        good, other = enter(1), enter(1)
        issuer.answer(jwk("ES256", 1, **new))
        assert result(good).user_id == result(other).user_id == "anna", name
        assert len(issuer.calls) == 2, name
        assert result(enter(1)).user_id == "anna", name
        if old != new:  # from now on each key has a name, and a token without one is refused at once
            with pytest.raises(Refused):
                result(enter(2))
            continue
        for _ in range(50):
            with pytest.raises(Unavailable if vague else Refused):
                result(enter(2))
        assert len(issuer.calls) == 2, name
        issuer.clock.advance(UNKNOWN_KID_S)
        forged = enter(3)
        issuer.answer(jwk("ES256", 1, **new))
        with pytest.raises(Refused):
            result(forged)
        issuer.clock.advance(UNKNOWN_KID_S)
        late = enter(3)
        issuer.calls[-1].errback(Failure(FetchError("no answer")))
        with pytest.raises(Unavailable if vague else Refused):
            result(late)
        assert result(enter(1)).user_id == "anna", name


def test_stop(known: Issuer) -> None:
    """Stopping ends the call in flight, its callers are unavailable, and no other call follows. It may be called twice."""
    asked: list[Any] = [known.find("k2"), known.find("k3")]
    with capturedLogs() as logged:
        assert result(known.keys.stop()) is None
        assert result(known.keys.stop()) is None
    for one in asked:
        with pytest.raises(Unavailable):
            result(one)
    assert known.kids() == ["k1"]
    known.clock.advance(100)
    assert known.kids() == ["k1"]
    assert len(known.calls) == 2
    assert logged == []
    assert known.clock.getDelayedCalls() == []


def test_a_reload_fetches_again_and_keeps_the_keys_meanwhile(known: Issuer) -> None:
    """Keys that are fresh are fetched before their next use. If that fails, they serve as long as old keys may."""
    known.keys.read_again()
    asked = known.find()
    known.calls[-1].errback(Failure(FetchError("down")))
    assert [key.kid for key in result(asked)] == ["k1"]
    known.keys.read_again()
    asked = known.find()
    assert len(known.calls) == 3, "not even a failure a moment ago delays it"
    known.answer(jwk("ES256", kid="k1"), max_age_s=100)
    assert [key.kid for key in result(asked)] == ["k1"]
    assert known.kids() == ["k1"]


@pytest.mark.parametrize("before", ["answers", "fails"])
def test_a_reload_during_a_fetch(issuer: Issuer, before: str) -> None:
    """The answer under way may have a key that was withdrawn since. The keys are fetched once more before any token is checked."""
    first = issuer.find()
    issuer.keys.read_again()
    issuer.keys.read_again()
    if before == "answers":
        issuer.answer(jwk("ES256", kid="k1"), max_age_s=100)
    else:
        issuer.calls[-1].errback(Failure(FetchError("down")))
    assert len(issuer.calls) == 2, "not even a failure a moment ago delays it"
    second = issuer.find()
    assert not first.called
    assert not second.called
    issuer.answer(jwk("ES256", kid="k2"), max_age_s=100)
    assert result(first) == []
    if before == "answers":
        assert len(issuer.calls) == 3, "the second token came after the call"
        issuer.answer(jwk("ES256", kid="k2"), max_age_s=100)
        assert result(second) == []
    else:
        assert len(issuer.calls) == 2
        with pytest.raises(Unavailable, match="just now"):
            result(second)
    assert issuer.kids("k2") == ["k2"]


def test_a_reload_during_a_fetch_and_no_answer(issuer: Issuer) -> None:
    """If the second fetch fails, the keys of the first are used, and soon fetched again."""
    asked = issuer.find()
    issuer.keys.read_again()
    issuer.answer(jwk("ES256", kid="k1"), max_age_s=100)
    issuer.calls[-1].errback(Failure(FetchError("down")))
    assert [key.kid for key in result(asked)] == ["k1"]
    assert issuer.kids() == ["k1"]
    assert len(issuer.calls) == 2
    issuer.clock.advance(RETRY_S)
    asked = issuer.find()
    assert len(issuer.calls) == 3
    issuer.answer(jwk("ES256", kid="k2"), max_age_s=100)
    assert list(result(asked)) == []


def test_a_stop_after_a_reload_during_a_fetch(issuer: Issuer) -> None:
    """No other fetch follows."""
    asked = issuer.find()
    issuer.keys.read_again()
    result(issuer.keys.stop())
    with pytest.raises(Unavailable):
        result(asked)
    assert len(issuer.calls) == 1


def test_a_successor_takes_over_keys_and_counts(known: Issuer) -> None:
    """It uses the keys until its own fetch succeeds, for as long as its predecessor would have."""
    successor = Issuer()
    successor.keys.take_over(known.keys)
    successor.keys.counts.update(known.keys.counts)
    successor.keys.read_again()
    asked = successor.find()
    successor.calls[-1].errback(Failure(FetchError("down")))
    assert [key.kid for key in result(asked)] == ["k1"]
    assert successor.keys.counts == {"fetched": 1, "failed": 1, "stale": 1, "limited": 0}
    successor.clock.advance(100 + STALE_S)
    asked = successor.find()
    successor.calls[-1].errback(Failure(FetchError("down")))
    with pytest.raises(Unavailable):
        result(asked)


@each_row(
    ("max_age_s", "stale_s", "usable_s"),
    [
        (MAX_AGE_S, STALE_S, 100 + STALE_S),
        (MAX_AGE_S, 20, 100 + 20),
        (MAX_AGE_S, 0, 100),
        (60, STALE_S, 60 + STALE_S),
        (60, 0, 60),
        (0, 0, 0),
        (MAX_AGE_S, 9 * STALE_S, 100 + STALE_S),
    ],
    issuer=known_issuer,
)
def test_a_reload_bounds_the_keys_of_before(issuer: Issuer, max_age_s: float, stale_s: float, usable_s: float) -> None:
    """While the issuer is down, keys are used as long as the settings of now allow, and no longer than those of before did.

    This holds over two reloads, too.
    """
    between, after = Issuer(max_age_s, stale_s), Issuer()
    between.keys.take_over(issuer.keys)
    after.keys.take_over(between.keys)
    for source in (between, after):
        for seconds, usable in ((usable_s - 1, True), (1, False)):
            if usable and seconds < 0:
                continue
            source.clock.advance(seconds)
            source.keys.read_again()
            asked = source.find()
            source.calls[-1].errback(Failure(FetchError("down")))
            if usable:
                assert [key.kid for key in result(asked)] == ["k1"]
            else:
                with pytest.raises(Unavailable):
                    result(asked)


def test_another_url_keeps_the_counts(tmp_path: Path) -> None:
    """A reload sets no count back, though keys of another URL are not used."""
    before, after = knowing(Issuer()), Issuer()
    successor = make_method(tmp_path, after.clock, algorithms=("ES256",), jwks_url="https://other.example/keys")
    successor.take_over(method_of(before, tmp_path))
    assert cast("dict[str, object]", successor.figures()["keys"]) == before.keys.counts
