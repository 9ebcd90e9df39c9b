from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred, succeed

from tests.kit.rows import each_row
from tests.kit.ws_kit import Edges, edges, request
from towerws.auth.chain import Open
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.settings import AccessSettings, Secret

TOKEN = "9t8Fq0csrftoken"
HERE = "https://tower.example.com"
PROXY = AccessSettings(trusted_proxies=("192.0.2.1",))


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


class Browser(Open):
    """Every client is user 7, authenticated by a cookie unless `cookie` is false."""

    def __init__(self, *, cookie: bool = True, csrftoken: str | None = TOKEN) -> None:
        token = None if csrftoken is None else Secret(csrftoken)
        self._identity = Identity(7, cookie=cookie, csrftoken=token, session="5e55")

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(self._identity)


@each_row(
    ("origin", "access", "cookie", "status"),
    [
        (None, AccessSettings(), True, 101),
        (HERE, AccessSettings(), True, 101),
        ("http://tower.example.com", AccessSettings(), True, 101),
        ("null", AccessSettings(), True, 403),
        ("null", AccessSettings(), False, 403),
        ("https://evil.example", AccessSettings(), True, 403),
        ("https://evil.example", AccessSettings(), False, 403),
        ("https://evil.example", AccessSettings(check_origin=False), True, 101),
        ("https://evil.example", AccessSettings(origins=("https://evil.example",)), True, 101),
        ("https://tower.example.com.evil.example", AccessSettings(origins=(HERE,)), True, 403),
    ],
    make=edges,
)
def test_origins(make: Edges, origin: str | None, access: AccessSettings, cookie: bool, status: int) -> None:
    """A page of a foreign origin gets a 403 that reveals nothing. It comes before any credential is looked at."""
    edge = make(Browser(cookie=cookie), access=access)
    client = edge.connect().send(request(added=[] if origin is None else [f"Origin: {origin}"]))
    assert client.status == status
    if status == 403:
        assert b"evil" not in client.response
        assert b"7" not in client.response.partition(b"\r\n\r\n")[2]
        assert edge.factory.refused_for == {"origin": 1}
        assert edge.hub.subscribers == {}


def test_a_password_needs_no_xrftoken(make: Edges) -> None:
    """awxkit has no xrftoken to send. For a page, the check of its origin is enough."""
    client = make(Browser(cookie=False)).open()
    client.ask({"job_events": [1]})
    assert client.take()[0]["groups_current"] == ["job_events-1"]


@each_row(("access", "status"), [(PROXY, 101), (AccessSettings(), 403)], make=edges)
def test_the_host_that_a_proxy_was_asked_for(make: Edges, access: AccessSettings, status: int) -> None:
    """A proxy that changes Host passes the browser's in X-Forwarded-Host. It is believed only from a trusted proxy."""
    edge = make(Browser(), access=access)
    client = edge.connect().send(request(added=["Origin: https://portal.example.com", "X-Forwarded-Host: portal.example.com"]))
    assert client.status == status


def test_two_origins(make: Edges) -> None:
    """With two of them the browser's origin is unknown: neither is believed."""
    assert make(Browser()).connect().send(request(added=[f"Origin: {HERE}", "Origin: https://evil.example"])).status == 400


WRONG = [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é", 7, True, [TOKEN], {"a": TOKEN}, "x" * 60000]


@each_row("wrong", WRONG, make=edges)
def test_a_wrong_token_changes_nothing(make: Edges, wrong: object) -> None:
    """Promise 31: it gets AWX's own error text, and no close. Existing subscriptions stay and deliver."""
    edge = make(Browser())
    client = edge.open()
    client.ask({"job_events": [1]}, xrftoken=TOKEN)
    assert client.take()[0]["groups_current"] == ["job_events-1"]
    for _ in range(5):
        client.ask({"job_events": [2]}, xrftoken=wrong)
        edge.advance(1)
    assert client.take() == [{"error": "access denied to channel"}] * 5
    assert client.close_code() is None
    edge.publish("job_events.1", {"n": 1})
    assert client.take() == [{"n": 1}]


@each_row("tries", [4, 10, 30], make=edges)
def test_guessing_is_slow(make: Edges, tries: int) -> None:
    """Contract 0.12: after three wrong tokens each answer takes a second, and so does each message behind it. Nothing is lost."""
    edge = make(Browser())
    client = edge.open()
    for _ in range(tries):
        client.ask({"job_events": [2]}, xrftoken="wrong")
    client.ask({"job_events": [1]}, xrftoken=TOKEN)
    assert len(client.take()) == 3
    for _ in range(tries - 3):
        edge.advance(0.75)
        assert client.take() == []
        edge.advance(0.25)
        assert client.take()[0] == {"error": "access denied to channel"}
    edge.publish("job_events.1", {"n": 1})
    assert client.take()[-1] == {"n": 1}
    assert client.close_code() is None
    assert edge.context.limit_counts["distrust"] == tries - 3


def test_hang_up_while_an_answer_is_held_back(make: Edges) -> None:
    """No timer is left (the fixture checks)."""
    client = make(Browser()).open()
    for _ in range(5):
        client.ask({"job_events": [2]}, xrftoken="wrong")
    client.hang_up()


def test_the_right_token(make: Edges) -> None:
    """The token is checked on every request. One wrong try in between does no harm."""
    edge = make(Browser())
    client = edge.open()
    for token, word in [
        (TOKEN, "groups_current"),
        ("wrong", "error"),
        (TOKEN, "groups_current"),
        (None, "error"),
        (TOKEN, "groups_current"),
    ]:
        client.ask({"job_events": [1]}, xrftoken=token)
        assert word in client.take()[0]
    edge.publish("job_events.1", {"n": 1})
    assert client.take() == [{"n": 1}]


def test_a_wrong_token_in_v1(make: Edges) -> None:
    """The error has a code, and the request's id."""
    client = make(Browser()).open(v1=True)
    client.ask({"job_events": [1]}, xrftoken="wrong", id=5)
    assert client.take() == [{"type": "error", "code": "xrftoken", "message": "access denied to channel", "id": 5}]
    client.ask({}, xrftoken="wrong").ask({}, xrftoken="wrong")
    assert client.close_code() == 1008


@each_row("csrftoken", [None, ""], make=edges)
def test_without_a_csrftoken_nothing_matches(make: Edges, csrftoken: str | None) -> None:
    """A browser without the cookie knows no token: an empty one is refused, and so is none."""
    client = make(Browser(csrftoken=csrftoken)).open()
    client.ask({"job_events": [1]}).ask({"job_events": [1]}, xrftoken="")
    assert client.take() == [{"error": "access denied to channel"}] * 2


@each_row(("cookie", "access"), [(False, AccessSettings()), (True, AccessSettings(check_xrftoken=False))], make=edges)
def test_where_no_token_is_asked_for(make: Edges, cookie: bool, access: AccessSettings) -> None:
    """A credential that no browser sends by itself needs no token. Old AWX has none."""
    client = make(Browser(cookie=cookie), access=access).open()
    client.ask({"job_events": [1]}, xrftoken=None)
    assert client.take()[0]["groups_current"] == ["job_events-1"]
