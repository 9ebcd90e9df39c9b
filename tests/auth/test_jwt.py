from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from tests.auth.jwt_kit import CANARY, NOW, SECRET, b64, claims, head, identify, make_method, public_pem, result, sign
from tests.kit.rows import each_row
from towerws.auth.base import Method, Refused
from towerws.auth.jwt import NOT_GRANTED, JwtMethod
from towerws.auth.jwt_token import find_token
from towerws.core.errors import ConfigError
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.settings import JwtSettings, Secret

GRANTED = {"jobs.status_changed", "job_events.1", "job_events.*"}


def authenticate(method: JwtMethod, brought: Head) -> Identity | None:
    """Return the user who sent this handshake."""
    identity = result(method.authenticate(brought, "192.0.2.1"))
    assert identity is None or isinstance(identity, Identity)
    return identity


@pytest.fixture(scope="module")
def method(tmp_path_factory: pytest.TempPathFactory) -> JwtMethod:
    """Return a method with a secret."""
    return make_method(tmp_path_factory.mktemp("jwt"), cookie="session")


def test_it_is_a_method(method: JwtMethod) -> None:
    """It has all that `Method` declares, and its name."""
    asked: Method = method
    assert asked.name == "jwt"


def test_who_it_is(method: JwtMethod) -> None:
    """The identity has the user, the end, the place of the token and the topics. Its repr shows no credential."""
    identity = authenticate(method, head(authorization=f"Bearer {sign()}"))
    assert identity is not None
    assert (identity.user_id, identity.method, identity.cookie, identity.expires_at) == ("anna", "jwt", False, NOW + 100)
    topics = ["jobs.status_changed", "jobs.summary", "job_events.1", "job_events.*", "control.limit_reached"]
    assert result(method.refusals(identity, topics)) == {topic: NOT_GRANTED for topic in topics if topic not in GRANTED}
    assert "job_events" not in repr(identity)
    assert result(method.revalidate(identity)) is identity
    assert result(method.stop()) is None


@each_row("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_the_header(method: JwtMethod, scheme: str) -> None:
    """The case of the scheme does not matter (RFC 9110 section 11.1)."""
    assert authenticate(method, head(authorization=f"{scheme} {sign()}")) is not None


@each_row("written", ["session={}", "a=b; session={}", "session={};", 'x=y;session="{}"; z', "session=legacy; session={}"])
def test_the_cookie(method: JwtMethod, written: str) -> None:
    """The configured cookie is found as clients write it. Browsers send it by themselves, so requests must be checked for their page."""
    identity = authenticate(method, head(cookie=f"csrftoken=c0; {written.format(sign())}"))
    assert identity is not None
    assert identity.cookie is True
    assert identity.csrftoken == Secret("c0")
    identity = authenticate(method, head(cookie=written.format(sign())))
    assert identity is not None
    assert identity.csrftoken is None


def test_the_url(method: JwtMethod) -> None:
    """A token in the URL counts as one that the page sent. It must be short-lived and have an `iat`."""
    identity = authenticate(method, head(token=sign()))
    assert identity is not None
    assert (identity.cookie, identity.csrftoken) == (False, None)
    assert authenticate(method, head(token=sign(claims(iat=NOW - 200, exp=NOW + 100)))) is not None
    for spoiled in (claims(iat=NOW - 200, exp=NOW + 101), claims(iat=None)):
        assert authenticate(method, head(authorization=f"Bearer {sign(spoiled)}")) is not None
        with pytest.raises(Refused, match="in the URL"):
            authenticate(method, head(token=sign(spoiled)))
        assert identify(method, sign(spoiled)) is not None


@each_row(
    "brought",
    [
        head(), head(authorization="Bearer abc"), head(authorization="Bearer"), head(authorization="Bearer a.b"),
        head(authorization="Basic a.b.c"),
        head(authorization=f"Token {sign()}"), head(authorization=f"Bearer x {sign()}"), head(token=""), head(token="0123456789abcdef"),
        head(token="a.b.c.d"), head(query=f"Token={sign()}"), head(query=f"session_key={sign()}"), head(cookie="session=legacy"),
        head(cookie=f"other={sign()}"), head(cookie=f"Session={sign()}"), head(cookie="session"), head(cookie=";;=;"),
        head(query="&&=&token"),
    ],
)  # fmt: skip
def test_what_is_no_token_is_for_the_next_method(method: JwtMethod, brought: Head) -> None:
    """A Tower token, a legacy session, another cookie or nothing gives None and no refusal."""
    assert authenticate(method, brought) is None


def test_no_cookie_is_read_where_none_is_configured(tmp_path: Path) -> None:
    """Without a configured name no cookie counts, not even one without a name."""
    unnamed = make_method(tmp_path)
    assert authenticate(unnamed, head(cookie=f"session={sign()}; ={sign()}; {sign()}")) is None


def test_which_one_counts(method: JwtMethod) -> None:
    """The header comes before the URL, and the URL before the cookie, which the browser sends by itself."""
    tokens = {name: sign(claims(sub=name)) for name in ("header", "url", "cookie")}
    where: dict[str, dict[str, str]] = {
        "header": {"authorization": f"Bearer {tokens['header']}"},
        "url": {"token": tokens["url"]},
        "cookie": {"cookie": f"session={tokens['cookie']}"},
    }
    for names in (["header", "url", "cookie"], ["url", "cookie"], ["header", "cookie"], ["cookie"]):
        brought: dict[str, Any] = {}
        for name in names:
            brought |= where[name]
        identity = authenticate(method, head(**brought))
        assert identity is not None
        assert (identity.user_id, identity.cookie) == (names[0], names[0] == "cookie")
    brought = where["url"] | where["cookie"] | {"authorization": "Bearer not-a-token"}
    assert authenticate(method, head(**brought)) is not None
    brought = where["url"] | where["cookie"] | {"authorization": f"Bearer {sign(key=b'x' * 32)}"}
    with pytest.raises(Refused):  # a bad one is not passed over for a good one
        authenticate(method, head(**brought))


def test_two_tokens_in_one_place(method: JwtMethod) -> None:
    """Two different tokens are refused, since a proxy may have read the other. The same token twice counts as one."""
    one, other = sign(), sign(claims(sub="eve"))
    for brought in (head(query=f"token={one}&token={other}"), head(cookie=f"session={one}; session={other}")):
        with pytest.raises(Refused, match="more than one"):
            authenticate(method, brought)
    assert authenticate(method, head(query=f"token={one}&token={one}")) is not None


def test_a_credential_does_not_show_itself() -> None:
    """The repr has neither the token nor the cookie."""
    found = find_token(head(cookie=f"session={sign()}; csrftoken={CANARY}"), "session")
    assert found is not None
    assert sign() not in repr(found)
    assert CANARY not in repr(found)


# claims


@each_row("good", [{"exp": NOW + 0.5}, {"exp": int(NOW) + 1}, {"exp": 253402300799}, {"nbf": NOW + 10}, {"iat": NOW + 10}, {"nbf": 0}])
def test_times_that_are_good(method: JwtMethod, good: dict[str, object]) -> None:
    """Times are seconds since 1970, with or without a fraction. `nbf` and `iat` may be 10 s ahead, since clocks differ."""
    assert identify(method, sign(claims(**good))).method == "jwt"


@each_row("name", ["exp", "nbf", "iat"])
@each_row(
    "value",
    ["true", "false", '"1800000100"', "null", "[]", "{}", "-1", "1e400", "NaN", "Infinity", "-Infinity", "253402300800", "1" + "0" * 400,
     "9" * 5000, "1e308", '"NaN"'],
)  # fmt: skip
def test_times_that_are_none(method: JwtMethod, name: str, value: str) -> None:
    """A time that is a boolean, text, not a number or beyond the calendar is refused, in each claim."""
    text = json.dumps(claims(**{name: None}))[:-1] + f', "{name}": {value}}}'
    with pytest.raises(Refused):
        identify(method, sign(text))


@each_row(
    ("bad", "text"),
    [
        ({"exp": None}, "no exp"), ({"exp": NOW}, "has expired"), ({"exp": NOW - 1}, "has expired"), ({"exp": 0}, "has expired"),
        ({"nbf": NOW + 10.5}, "nbf is to come"), ({"iat": NOW + 10.5}, "iat is to come"), ({"sub": None}, "no sub"), ({"sub": ""},
        "sub is not"),
        ({"sub": 1}, "sub is not"), ({"sub": True}, "sub is not"), ({"sub": ["a"]}, "sub is not"), ({"sub": "a" * 256}, "sub is not"),
        ({"sub": "a\nb"}, "sub is not"), ({"sub": "\u202e"}, "sub is not"), ({"sub": "\ud800"}, "sub is not"), ({"jti": 1}, "jti is not"),
        ({"jti": ""}, "jti is not"), ({"aud": "other"}, "another service"), ({"aud": []}, "another service"),
        ({"aud": ""}, "another service"),
        ({"aud": 1}, "aud is neither"), ({"aud": {"a": 1}}, "aud is neither"), ({"aud": ["a", 1]}, "aud is neither"),
        ({"aud": ["a"] * 101}, "aud is neither"), ({"groups": 7}, "topics"), ({"groups": True},
        "topics"),
    ],
)  # fmt: skip
def test_claims_that_are_not_good(method: JwtMethod, bad: dict[str, object], text: str) -> None:
    """Each is refused with a fixed text that names the claim."""
    with pytest.raises(Refused, match=text):
        identify(method, sign(claims(**bad)))


def test_null_is_not_the_same_as_nothing(method: JwtMethod) -> None:
    """A claim that is null is not the same as a claim that is missing."""
    for name in ("sub", "exp", "aud", "jti", "groups"):
        with pytest.raises(Refused):
            identify(method, sign({**claims(), name: None}))


def test_the_same_claim_twice(method: JwtMethod) -> None:
    """Two readers could read it differently, so it is refused."""
    for name, value in (("exp", NOW + 100), ("sub", "eve"), ("groups", [])):
        with pytest.raises(Refused, match="plain JSON"):
            identify(method, sign(json.dumps(claims())[:-1] + f', "{name}": {json.dumps(value)}}}'))


def test_issuer_and_audience(tmp_path: Path) -> None:
    """If they are configured, they must match. One of several `aud` entries is enough."""
    method = make_method(tmp_path, issuer="https://issuer.example", audience=("towerws", "tower"))
    good: dict[str, object] = {"iss": "https://issuer.example", "aud": "towerws"}
    identify(method, sign(claims(**good)))
    for audience in ("tower", ["x", "tower"], ["towerws", "tower"]):
        identify(method, sign(claims(**good | {"aud": audience})))
    for issuer in (None, "https://issuer.example/", "", ["https://issuer.example"], 1, True):
        with pytest.raises(Refused, match="iss"):
            identify(method, sign(claims(**good | {"iss": issuer})))
    for other in (None, "Towerws", "towerws ", ["x"], [], [["towerws"]]):
        with pytest.raises(Refused, match="aud"):
            identify(method, sign(claims(**good | {"aud": other})))


def test_issuer_where_none_is_configured(method: JwtMethod) -> None:
    """Without a configured issuer each one is accepted, since the key identifies it."""
    assert identify(method, sign(claims(iss="https://issuer.example"))).user_id == "anna"


def test_the_claim_that_lists_topics(tmp_path: Path) -> None:
    """Its name is configurable. A token without it gets the configured default, or no topics if there is none."""
    topics = ["jobs.status_changed", "jobs.summary", "inventories.1"]
    for changes, said, refused in (
        ({}, {"groups": None}, topics),
        ({"default_topics": ("jobs.*",)}, {"groups": None}, topics[2:]),
        ({"default_topics": ("jobs.*",)}, {"groups": []}, topics),
        ({"claim": "https://a/topics"}, {"https://a/topics": {"jobs": ["summary"], "inventories": [1]}}, topics[:1]),
        ({"claim": "https://a/topics"}, {"groups": topics}, topics),
    ):
        method = make_method(tmp_path, **changes)
        identity = identify(method, sign(claims(**said)))
        assert list(result(method.refusals(identity, topics))) == refused


def test_what_another_method_vouches_for_is_not_granted(method: JwtMethod) -> None:
    """An identity without our grants may subscribe to nothing."""
    assert result(method.refusals(Identity(private=["jobs.a"]), ["jobs.a"])) == {"jobs.a": NOT_GRANTED}


def test_revalidation_follows_the_wall_clock(tmp_path: Path) -> None:
    """The token ends at `exp` by the wall clock. An identity without an end is not one of this method."""
    now = [NOW]
    make_method(tmp_path)  # writes the secret
    turned = JwtMethod(JwtSettings(algorithms=("HS256",), secret_file=str(tmp_path / "secret")), Clock(), wall=lambda: now[0])
    identity = identify(turned, sign())
    now[0] = NOW + 99.9
    assert result(turned.revalidate(identity)) is identity
    now[0] = NOW + 100
    for ended in (identity, Identity()):
        with pytest.raises(Refused, match="expired"):
            result(turned.revalidate(ended))


def test_the_session(method: JwtMethod) -> None:
    """The session is a hash of the `jti`, or of the signed part if there is none. It is never the credential itself."""
    named = identify(method, sign(claims(jti=CANARY))).session
    assert named == identify(method, sign(claims(jti=CANARY, exp=NOW + 50))).session
    plain, other = sign(), sign(claims(exp=NOW + 50))
    sessions = {named, identify(method, plain).session, identify(method, other).session}
    assert len(sessions) == 3
    assert all(session is not None and len(session) == 32 and CANARY not in session for session in sessions)
    assert identify(method, plain).session in sessions


# attacks


def test_no_algorithm(method: JwtMethod) -> None:
    """`none` is refused in any case, with and without a signature, and so is an `alg` that contains it."""
    for name in ("none", "None", "NONE", "nOnE", "", " HS256", "HS256 ", "hs256", "HS384", "HS512", "RS256"):
        start = f"{b64({'alg': name})}.{b64(claims())}."
        for signature in ("", b64(b""), b64(SECRET), sign().rpartition(".")[2]):
            with pytest.raises(Refused):
                identify(method, start + signature)


@each_row(
    "header",
    [
        {"kid": "../../../dev/null"}, {"kid": "/dev/null"}, {"kid": "' UNION SELECT 'x"}, {"kid": "|id"}, {"kid": "\0"},
        {"jku": "https://evil.example/"},
        {"x5u": "https://evil.example/"}, {"x5c": ["AAAA"]}, {"jwk": {"kty": "oct", "k": b64(b"x" * 64)}}, {"kid": "x" * 256},
    ],
)  # fmt: skip
def test_keys_come_from_the_configuration_only(method: JwtMethod, header: dict[str, object]) -> None:
    """A header that points to another key changes nothing: only a signature of our key is valid."""
    assert identify(method, sign(header=header)).user_id == "anna"
    for key in (b"x" * 64, b"\0", b"0"):
        with pytest.raises(Refused, match="signature"):
            identify(method, sign(header=header, key=key))


def test_a_crit_header_is_refused(method: JwtMethod) -> None:
    """A token with an extension that we don't know is refused, even with a good signature."""
    with pytest.raises(Refused, match="crit"):
        identify(method, sign(header={"crit": ["exp"]}))


VALID = sign()
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@settings(max_examples=300)
@given(data=st.data())
def test_no_mutation_of_a_good_token_gets_in(method: JwtMethod, data: st.DataObject) -> None:
    """A token with any change is refused, or is no token at all. It never raises another error."""
    place = data.draw(st.integers(0, len(VALID) - 1))
    length = data.draw(st.integers(0, 6))
    put = data.draw(st.text(ALPHABET + ".=+/ \n\u00e9\0", max_size=6) | st.just(VALID))
    mutated = VALID[:place] + put + VALID[place + length :]
    if mutated == VALID:
        return
    with pytest.raises(Refused):
        result(method.identify(mutated))
    for brought in (head(authorization=f"Bearer {mutated}"), head(token=mutated)):
        try:
            identity = authenticate(method, brought)
        except Refused:
            continue
        # A header's value is without the space around it: then it is the good one.
        assert identity is None or mutated.strip() == VALID


@settings(max_examples=200)
@given(text=st.text() | st.text(ALPHABET + ".") | st.from_regex(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", fullmatch=True))
@example("..")
def test_no_other_text_gets_in(method: JwtMethod, text: str) -> None:
    """Any text is refused, without another error."""
    with pytest.raises(Refused):
        result(method.identify(text))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200)
@given(
    name=st.sampled_from(["sub", "exp", "nbf", "iat", "aud", "jti", "groups"]),
    value=json_values,
    header=st.dictionaries(st.sampled_from(["kid", "typ", "crit", "jwk", "x5c", "zip"]), json_values, max_size=2),
)
def test_whatever_an_issuer_signs(method: JwtMethod, name: str, value: object, header: dict[str, object]) -> None:
    """Claims and headers of any type, with a good signature, give a consistent identity or a refusal, and no other error."""
    try:
        identity = identify(method, sign({**claims(), name: value}, header=header))
    except Refused:
        return
    assert isinstance(identity.user_id, str)
    assert identity.expires_at is not None
    assert identity.expires_at > NOW


# configuration


def test_where_keys_come_from(tmp_path: Path) -> None:
    """There must be exactly one source of keys, and it must fit the algorithms."""
    secret, pem = tmp_path / "s", tmp_path / "p"
    secret.write_bytes(SECRET)
    pem.write_bytes(public_pem("ES256"))
    sources = {"secret_file": str(secret), "public_key_file": str(pem), "jwks_url": "https://issuer.example/keys"}
    good = {"HS256": ["secret_file"], "ES256": ["public_key_file", "jwks_url"]}
    for algorithm, fitting in good.items():
        for names in ([], *[[name] for name in sources], ["secret_file", "jwks_url"], ["public_key_file", "jwks_url"], list(sources)):
            changes: dict[str, Any] = {name: sources[name] for name in names}
            chosen = JwtSettings(algorithms=(algorithm,), **changes)
            if len(names) == 1 and names[0] in fitting:
                JwtMethod(chosen, Clock())
            else:
                with pytest.raises(ConfigError, match=r"^jwt\.(secret_file|public_key_file or jwt\.jwks_url): .*must be given"):
                    JwtMethod(chosen, Clock())


@each_row(
    ("changes", "text"),
    [
        ({"algorithms": ("none",)}, "algorithms"), ({"cookie": "a b"}, "cookie"), ({"cookie": "a;"}, "cookie"), ({"cookie": "a=b"},
        "cookie"),
        ({"claim": ""}, "claim"), ({"default_topics": ("jobs",)}, "default_topics"), ({"default_topics": ("*.*",)}, "default_topics"),
        ({"leeway_s": -1}, "leeway_s"), ({"url_lifetime_s": float("nan")}, "url_lifetime_s"), ({"jwks_stale_s": float("inf")},
        "jwks_stale_s"),
        ({"jwks_max_age_s": -0.1}, "jwks_max_age_s"), ({"jwks_url": "http://issuer.example", "algorithms": ("ES256",)}, "jwks_url"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    """The error names the option."""
    with pytest.raises(ConfigError, match=rf"^jwt\.{text}\b"):
        make_method(tmp_path, **changes)


# secrecy


@implementer(ILogObserver)
class Log:
    """Collects all log events of every level."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        """Keep the event."""
        self.events.append(event)


def test_nothing_secret_is_said(method: JwtMethod) -> None:
    """No canary of a token, claim, header or secret is in an error, its context, a log or a repr."""
    log = Log()
    globalLogPublisher.addObserver(log)
    try:
        for token in (
            sign(claims(sub=f"{CANARY}\n")), sign(claims(aud=CANARY)), sign(claims(groups=CANARY, sub=1)), sign(f'{{"sub": "{CANARY}",'),
            sign(claims(exp=CANARY)), sign(claims(jti=[CANARY])), sign(header={"crit": CANARY}),
        sign(header={"alg": CANARY, "kid": CANARY}),
            sign(header=f'{{"{CANARY}"'), sign(key=CANARY.encode()), f"{CANARY}.{CANARY}.{CANARY}", CANARY,
        ):  # fmt: skip
            with pytest.raises(Refused) as caught:
                identify(method, token)
            chain: BaseException | None = caught.value
            while chain is not None:
                assert CANARY not in str(chain) + repr(chain) + repr(vars(chain)), token
                assert not isinstance(chain, json.JSONDecodeError)
                chain = chain.__cause__ or chain.__context__
            assert CANARY not in "".join(traceback.format_exception_only(caught.value))
    finally:
        globalLogPublisher.removeObserver(log)
    assert log.events == []
    assert CANARY not in repr(method) + repr(method._keys) + repr(method._settings) + str(method.figures())


def test_figures(tmp_path: Path) -> None:
    """The figures count fetches of keys, and the entries of tokens' lists that were no topics."""
    method = make_method(tmp_path)
    identity = identify(method, sign(claims(groups=["/keycloak/group", "offline_access", "jobs.status_changed"])))
    assert result(method.refusals(identity, ["jobs.status_changed", "jobs.summary"])) == {"jobs.summary": NOT_GRANTED}
    assert method.figures() == {"ignored_grants": 2}
    fetching = make_method(tmp_path, algorithms=("ES256",), jwks_url="https://127.0.0.1/keys")
    assert fetching.figures() == {"ignored_grants": 0, "keys": {"fetched": 0, "failed": 0, "stale": 0, "limited": 0}}
