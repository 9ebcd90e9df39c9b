from __future__ import annotations

import base64
import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tests.auth.tower_kit import head
from tests.kit.rows import each_row
from towerws.auth.tower_credentials import ApiCredential, Caller, cache_key, find_caller, find_credential
from towerws.core.http_head import Head, parse_head
from towerws.core.settings import TowerSettings

NAMES = TowerSettings(url="http://h").cookies
OLD = "0123456789abcdef0123456789abcdef01234567"


def basic(pair: bytes) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(pair).decode()


def find(*args: str, **headers: str) -> ApiCredential | None:
    """Return the credential of a head."""
    return find_credential(head(*args, **headers), NAMES)


@each_row(
    ("brought", "sent"),
    [
        (head(cookie="sessionid=k; csrftoken=c"), {"Cookie": "sessionid=k"}),
        (head(cookie='awx_sessionid="k";csrftoken=c'), {"Cookie": "awx_sessionid=k"}),
        (head(cookie="awxsessionid=k;"), {"Cookie": "awxsessionid=k"}),
        (head(cookie="awx_sessionid=k; sessionid=other"), {"Cookie": "sessionid=other; awx_sessionid=k"}),
        (head("session_key=k"), {"Cookie": "sessionid=k; awx_sessionid=k; awxsessionid=k"}),
        (head("token=t-1"), {"Authorization": "Bearer t-1"}),
        (head(authorization="Bearer t.1=="), {"Authorization": "Bearer t.1=="}),
        (head(authorization="bearer  t"), {"Authorization": "Bearer t"}),
        (head(authorization=basic(b"ada:p\xc3\xa4ss:word")), {"Authorization": basic(b"ada:p\xc3\xa4ss:word")}),
        (head(cookie=f"token=%22{OLD}%22"), {"Authorization": f"Token {OLD}", "Cookie": f"token=%22{OLD}%22"}),
        (head(cookie=f'token="{OLD}";'), {"Authorization": f"Token {OLD}", "Cookie": f"token=%22{OLD}%22"}),
    ],
)
def test_every_credential_that_awx_knows(brought: Head, sent: dict[str, str]) -> None:
    """Each credential of AWX 1.0 to 24 is found and sent to the API in its form, and no other header of the client."""
    credential = find_credential(brought, NAMES)
    assert credential is not None
    assert dict(credential.headers) == sent
    assert credential.by_browser is ("cookie" in brought.headers)
    assert bool(credential.account) is brought.headers.get("authorization", "").startswith("Basic")
    assert credential.bound is (OLD in str(brought.headers))


@each_row(
    ("query", "headers", "kind"),
    [
        ("session_key=a&token=b", {"cookie": "sessionid=c; token=d", "authorization": "Bearer e"}, "session_key in the URL"),
        ("token=b", {"cookie": "sessionid=c; token=d", "authorization": "Bearer e"}, "token in the URL"),
        ("", {"cookie": "sessionid=c; token=d", "authorization": "Bearer e"}, "session cookie"),
        ("", {"cookie": "token=d", "authorization": "Bearer e"}, "bearer token"),
        ("", {"cookie": "token=d", "authorization": basic(b"a:b")}, "basic authorization"),
        ("", {"cookie": "token=d", "authorization": "Negotiate e"}, "token cookie"),
        ("session_key=%0d%0a", {"cookie": "sessionid=c"}, "session cookie"),
    ],
)
def test_which_one_counts(query: str, headers: dict[str, str], kind: str) -> None:
    """Of several credentials one counts, in a fixed order. An invalid one does not hide the others."""
    credential = find(query, **headers)
    assert credential is not None
    assert credential.kind == kind
    assert len(credential.headers) == (2 if kind == "token cookie" else 1)


@each_row(
    "brought",
    [
        head(),
        head("a=b", cookie="a=b; csrftoken=c"),
        head(cookie="sessionid="),
        head(cookie='sessionid=""'),
        head(cookie="sessionid=a b"),
        head(cookie="sessionid=a,b"),
        head(cookie='sessionid=a"b'),
        head(cookie="SESSIONID=a"),
        head(cookie="sessionid=" + "a" * 2049),
        head("session_key="),
        head("session_key=a%0d%0aX-Forwarded-For:%20::1"),
        head("session_key=a%3bb"),
        head("session_key=a%C3%A4"),
        head("token=a%0ab"),
        head("token=a b"),
        head("token=" + "a" * 4097),
        head("&".join(f"a{number}=1" for number in range(200)) + "&token=t"),
        head(authorization="Bearer"),
        head(authorization="Bearer "),
        head(authorization="Bearer a b"),
        head(authorization='Bearer a"b'),
        head(authorization="Digest a"),
        head(authorization="Basic"),
        head(authorization="Basic !"),
        head(authorization="Basic YQ"),
        head(authorization=basic(b"no colon")),
        head(authorization=basic(b"\0:x")),
        head(authorization=basic(b"a:\x7f")),
        head(cookie="token=%22%22"),
        head(cookie="token=%22a%0d%0ab%22"),
        head(cookie="token=a b"),
    ],
)
def test_what_is_no_credential(brought: Head) -> None:
    """A text that can't be a credential is ignored. The API never gets control characters, a second header or NULs that crash it."""
    assert find_credential(brought, NAMES) is None


def test_a_head_from_the_wire() -> None:
    """A head that nginx passed on is read."""
    block = b'GET /websocket/?a=b HTTP/1.1\r\nHost: h\r\nCookie: awx_sessionid="k";csrftoken=c\r\nUser-Agent: awxkit\r\n\r\n'
    brought = parse_head(block, 100)
    credential = find_credential(brought, NAMES)
    assert credential is not None
    assert dict(credential.headers) == {"Cookie": "awx_sessionid=k"}
    assert find_caller(brought, "192.0.2.1") == Caller("192.0.2.1", "awxkit")


def test_the_configured_names_are_the_names() -> None:
    """Only cookies with a configured name count."""
    assert find_credential(head(cookie="sessionid=k"), ["other"]) is None
    found = find_credential(head("session_key=k"), ["other"])
    assert found is not None
    assert dict(found.headers) == {"Cookie": "other=k"}


def test_a_name_for_each_credential() -> None:
    """The name of a session or token is the start of its SHA-256, from any place. A password's name can't be tested elsewhere."""
    expected = hashlib.sha256(b"k").hexdigest()[:32]
    brought = [
        head(cookie="sessionid=k"),
        head("session_key=k"),
        head("token=k"),
        head(authorization="Bearer k"),
        head(cookie="token=k"),
        head(cookie="awx_sessionid=k; sessionid=k"),
    ]
    for each in brought:
        credential = find_credential(each, NAMES)
        assert credential is not None
        assert credential.session == expected
    password = find(authorization=basic(b"a:b"))
    assert password is not None
    assert password == find(authorization=basic(b"a:b"))
    assert password.session != hashlib.sha256(basic(b"a:b")[6:].encode()).hexdigest()[:32]


def test_what_is_kept_under_one_key() -> None:
    """Equal credentials share answers, from any place. A 1.x token shares them only with the same address and program."""
    here, there = Caller("192.0.2.1", "a"), Caller("192.0.2.2", "a")
    other_program = Caller("192.0.2.1", "b")
    session, other_session = find(cookie="sessionid=k"), find(cookie="sessionid=l")
    old = find(cookie=f"token={OLD}")
    assert session is not None
    assert other_session is not None
    assert old is not None
    assert cache_key(session, here) == cache_key(session, there) == cache_key(session, other_program)
    assert cache_key(session, here) != cache_key(other_session, here)
    assert len({cache_key(old, caller) for caller in (here, there, other_program)}) == 3
    assert b"k" * 3 not in cache_key(session, here)


def test_nothing_of_it_is_shown() -> None:
    """The `repr` and `str` of a credential show no part of it."""
    for brought in (head(cookie="sessionid=canary"), head("token=canary"), head(authorization=basic(b"a:canary"))):
        credential = find_credential(brought, NAMES)
        assert "canary" not in f"{credential!r} {credential}"
        assert "Cookie" not in f"{credential!r} {credential}"


@each_row(
    ("caller", "sent"),
    [
        (Caller("192.0.2.1", "awxkit"), {"User-Agent": "awxkit", "X-Forwarded-For": "192.0.2.1"}),
        (Caller("2001:db8::1", ""), {"X-Forwarded-For": "2001:db8::1"}),
        (Caller("unix", "a"), {"User-Agent": "a"}),
        (Caller("192.0.2.1, ::1", "a"), {"User-Agent": "a"}),
    ],
)
def test_what_the_api_is_told_of_the_client(caller: Caller, sent: dict[str, str]) -> None:
    """The client's program and its IP address are passed on, always with the quiet header."""
    assert dict(caller.headers()) == {"Accept": "application/json", "X-WS-Session-Quiet": "true"} | sent


def test_an_endless_user_agent_is_cut() -> None:
    """A long `User-Agent`, to which nginx would answer 400, is cut."""
    assert len(find_caller(head(user_agent="a" * 9000), "192.0.2.1").user_agent) == 1024


ASCII = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60)
LIKELY = st.sampled_from(["sessionid=", "token=", "session_key=", "Bearer ", "Basic ", "%0d%0a", "%22", '"', ";", "&", "=", "YTpi", "k"])
TEXT = st.lists(LIKELY | ASCII, max_size=6).map("".join)


@given(query=TEXT, cookies=TEXT, authorization=TEXT, agent=TEXT)
def test_whatever_a_head_holds(query: str, cookies: str, authorization: str, agent: str) -> None:
    """No head raises. The sent headers are one line of printable ASCII each, with one credential at most."""
    brought = head(query, cookie=cookies, authorization=authorization, user_agent=agent)
    credential = find_credential(brought, NAMES)
    if credential is None:
        return
    assert {name for name, _ in credential.headers} <= {"Authorization", "Cookie"}
    for _, value in credential.headers + find_caller(brought, "192.0.2.1").headers():
        assert value.isascii()
        assert value.isprintable()
    assert len(credential.session) == 32
    assert all(digit in "0123456789abcdef" for digit in credential.session)
