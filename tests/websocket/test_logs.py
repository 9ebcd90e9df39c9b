from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tests.auth.jwt_kit import NOW, claims, make_method, sign
from tests.auth.tower_kit import Lines, logged
from tests.kit.rows import each_row
from tests.kit.ws_kit import Edge, Edges, edges, request, text
from towerws.auth.base import NotAdmitted, Refused, Throttled, Unavailable
from towerws.auth.chain import Chain, Open
from towerws.core.http_head import Head
from towerws.core.identity import Identity, Revocation
from towerws.core.settings import AccessSettings, Secret
from towerws.websocket.logs import FOLD_S, MAX_KINDS, REFUSALS_BURST, REFUSALS_PER_S, RefusalLog


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The log lines."""
    with logged() as found:
        yield found


class Answers(Open):
    """Gives the same answer to every handshake, and to every token."""

    takes_tokens = False

    def __init__(self, answer: Identity | NotAdmitted | None) -> None:
        self.answer = answer

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)


class RefusesTopics(Answers):
    """The user may have no topic."""

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires at once."""
        return succeed(dict.fromkeys(topics, "not allowed"))


class RefusesTokens(Answers):
    """A credential may come in a message, and is refused."""

    takes_tokens = True

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(None)

    def identify(self, token: str, address: str) -> Deferred[Identity]:
        """Fires at once."""
        return fail(Refused("the token has expired", "token in a message"))


USER = Identity(7, "tower", session="5e55", cookie=True, csrftoken=Secret("t"))

REFUSALS = [
    (
        "",
        Answers(Refused("the token has expired", "bearer token")),
        'credential="bearer token" session=- reason=credential status=403 ',
    ),
    (
        "",
        Answers(Refused("x", "session cookie", "5e55")),
        'credential="session cookie" session=5e55 reason=credential status=403 detail="x"',
    ),
    ("", Answers(Unavailable("x", "session cookie")), 'credential="session cookie" session=- reason=unavailable status=503 detail="x"'),
    (
        "",
        Answers(Throttled("x", "basic authorization")),
        'credential="basic authorization" session=- reason=throttled status=503 detail="x"',
    ),
    ("", Answers(None), 'credential="none" session=- reason=no_credential status=403 detail="no credential was brought"'),
    ("Origin: http://evil.example", Answers(USER), 'credential="none" session=- reason=origin status=403 '),
    ("Bad Header: x", Answers(USER), 'credential="none" session=- reason=request status=400 '),
]


@each_row(("header", "method", "expected"), REFUSALS, make=edges, lines=logged)
def test_each_refused_handshake_has_a_line(make: Edges, lines: Lines, header: str, method: Answers, expected: str) -> None:
    """The line names the address, the kind of credential, the reason and the status, in a fixed form."""
    edge = make(method)
    edge.connect("203.0.113.7").send(request(added=[header] if header else []))
    (line,) = lines.texts
    assert line.startswith(f"refused address=203.0.113.7 {expected}")
    assert line.endswith(" folded=0")


LIMITS = {"per_address": "address", "per_user": "user", "half_open": "half_open", "connections": "connections"}


@each_row(("limit", "reason"), LIMITS.items(), make=edges, lines=logged)
def test_a_limit_that_is_met_is_a_warning_with_its_option(make: Edges, lines: Lines, limit: str, reason: str) -> None:
    """The warning names the option, so that the operator can raise the right one."""
    edge = make(Answers(USER), limits={limit: 1})
    for _ in range(2):
        edge.connect("203.0.113.7") if limit == "half_open" else edge.connect("203.0.113.7").send(request())
    edge.clients[-1].send(request())
    (refused,) = [event for event in lines.events if event["log_format"].startswith("refused ")]
    assert (refused["reason"], refused["log_level"].name) == (reason, "warn")
    assert f"(limits.{limit})" in refused["detail"]


def revoked(edge: Edge) -> None:
    """A handshake whose user was revoked while it was checked."""
    waiting: Deferred[Identity | None] = Deferred()
    edge.context.auth.authenticate = lambda head, address: waiting  # type: ignore[method-assign]
    edge.connect("203.0.113.7").send(request())
    edge.context.credential_monitor.disconnect(Revocation(user=7))
    edge.clock.advance(0)
    waiting.callback(Identity(7, "tower", session="5e55"))


def with_wrong_xrftoken(edge: Edge) -> None:
    """A page that can't read the cookie."""
    edge.connect("203.0.113.7").send(request(), text({"groups": {}, "xrftoken": "wrong"}))


def with_a_bad_token(edge: Edge) -> None:
    """A client that sends its token in a message."""
    edge.connect("203.0.113.7").send(request(v1=True), text({"token": "x"}))


def without_a_token(edge: Edge) -> None:
    """A client that sends something else first."""
    edge.connect("203.0.113.7").send(request(v1=True), text({"groups": {}}))


@each_row(
    ("method", "act", "expected"),
    [
        (Answers(None), revoked, 'credential="tower" session=5e55 reason=revoked status=403 '),
        (Answers(USER), with_wrong_xrftoken, 'credential="tower" session=5e55 reason=xrftoken status=- detail="wrong xrftoken"'),
        (
            RefusesTokens(None),
            with_a_bad_token,
            'credential="token in a message" session=- reason=credential status=- detail="the token has expired"',
        ),
        (RefusesTokens(None), without_a_token, 'credential="none" session=- reason=no_token status=1008 detail="no credential"'),
    ],
    make=edges,
    lines=logged,
)
def test_refusals_after_the_handshake(make: Edges, lines: Lines, method: Answers, act: Callable[[Edge], None], expected: str) -> None:
    """A client that is refused after the upgrade gets the same line."""
    act(make(method))
    assert [line for line in lines.texts if line.startswith(f"refused address=203.0.113.7 {expected}")]


def test_equal_refusals_are_folded(lines: Lines) -> None:
    """Many equal refusals of one address give one line in ten seconds. It has the number of those before it."""
    clock = Clock()
    log = RefusalLog(clock)
    for _ in range(5):
        for _ in range(100):
            log.line("203.0.113.7", "credential", status=403, credential="bearer token")
        log.line("203.0.113.8", "credential", status=403, credential="bearer token")
        clock.advance(FOLD_S / 2)
    busy, quiet = ([event["folded"] for event in lines.events if event["address"] == f"203.0.113.{last}"] for last in (7, 8))
    assert (busy, quiet) == ([0, 199, 199], [0, 1, 1])


def test_a_network_of_ipv6_is_one_address(lines: Lines) -> None:
    """All addresses of a /64 share one line."""
    log = RefusalLog(Clock())
    for number in range(100):
        log.line(f"2001:db8::{number:x}", "credential")
    assert len(lines.events) == 1


@each_row(
    ("path", "expected"),
    [
        ("/events?c4n4ry{}=1", 'reason=request status=400 detail="a parameter of the query is wrong"'),
        ("/events?topic=c4n4ry{}", 'reason=request status=400 detail="a parameter of the query is wrong"'),
        ("/history?topic=jobs.c4n4ry{}", 'reason=request status=400 detail="a parameter of the query is wrong"'),
        ("/history?topic=jobs.summary&limit=c4n4ry{}", 'reason=request status=400 detail="a parameter of the query is wrong"'),
        ("/history?topic=job_events.4242{}", 'reason=topics status=403 detail="this user may have none of these topics"'),
    ],
    make=edges,
)
def test_a_query_is_not_logged(make: Edges, path: str, expected: str) -> None:
    """The client is told what is wrong with its query. The log gets one line with a fixed text, which folds."""
    with logged() as lines:
        edge = make(RefusesTopics(Identity(7, "tower")))
        for n in range(3):
            client = edge.connect("203.0.113.7").send(f"GET {path.format(n)} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert (b"c4n4ry" in client.transport.received) == ("c4n4ry" in path)
    (line,) = [text for text in lines.texts if text.startswith("refused ")]
    assert expected in line
    assert not [text for text in lines.texts if "c4n4ry" in text or "4242" in text]


def test_refusals_from_everywhere(lines: Lines) -> None:
    """Lines and memory are bounded, however many addresses there are. Refusals without a line are counted."""
    clock = Clock()
    log = RefusalLog(clock)
    sent = 0
    for second in range(300):
        before = len(lines.events)
        for number in range(40):
            log.line(f"198.18.{second % 256}.{second // 256 * 100 + number}", "credential")
            sent += 1
        assert len(lines.events) - before <= REFUSALS_BURST + REFUSALS_PER_S
        clock.advance(1)
    assert len(log._written) <= MAX_KINDS
    clock.advance(60)
    log.line("192.0.2.1", "credential")
    assert len(lines.events) + sum(event["unwritten"] for event in lines.events) == sent + 1


def test_no_refusal_is_uncounted(lines: Lines) -> None:
    """A refusal that was folded is counted in a later line, also if its kind gets no line of its own any more."""
    clock = Clock()
    log = RefusalLog(clock)
    sent = 0

    def refuse(address: str, times: int) -> None:
        nonlocal sent
        sent += times
        for _ in range(times):
            log.line(address, "credential")

    refuse("203.0.113.7", 6)
    clock.advance(FOLD_S)
    for number in range(REFUSALS_BURST):
        refuse(f"198.51.100.{number}", 1)
    refuse("203.0.113.7", 1)  # without a line: the 50 before it used them up
    for number in range(MAX_KINDS):
        clock.advance(1)
        refuse(f"198.18.{number // 256}.{number % 256}", 2)
    clock.advance(60)
    for number in range(MAX_KINDS):
        clock.advance(1)
        refuse(f"198.18.{number // 256}.{number % 256}", 1)
    assert len(lines.events) + sum(event["unwritten"] + event["folded"] for event in lines.events) == sent


@each_row("access", [AccessSettings(trusted_proxies=("192.0.2.1",))], make=edges, lines=logged)
def test_the_address_is_the_clients(make: Edges, lines: Lines, access: AccessSettings) -> None:
    """Behind a trusted proxy the line has the address that the proxy saw, also when the origin is refused."""
    edge = make(Answers(USER), access=access)
    edge.connect().send(request(added=["X-Forwarded-For: 203.0.113.9", "Origin: http://evil.example"]))
    assert lines.texts[0].startswith("refused address=203.0.113.9 ")


JWT = [
    ("exp", {"exp": NOW - 1}, "the token has expired"),
    ("no exp", {"exp": None}, "the token has no exp"),
    ("nbf", {"nbf": NOW + 100}, "the token is not valid yet: its nbf is to come"),
    ("iat", {"iat": NOW + 100}, "the token is not valid yet: its iat is to come"),
    ("aud", {"aud": "other"}, "the token is meant for another service: its aud is another one"),
    ("sub", {"sub": ""}, "the token's sub is not 1 to 255 printable characters"),
    ("groups", {"groups": 7}, "the token's list of topics is not one: neither {'group': ['event']} nor ['group.event'] nor text"),
]


@each_row(("name", "changes", "detail"), JWT)
@each_row("way", ["bearer token", "token in the URL", "token cookie", "token in a message"], make=edges, lines=logged)
def test_each_refused_jwt_says_why(
    make: Edges, lines: Lines, tmp_path: Path, name: str, changes: dict[str, object], detail: str, way: str
) -> None:
    """The line names the reason for each way in which a token arrives. It contains no part of the token."""
    edge = make(Chain([make_method(tmp_path, cookie="jwt")]))
    token = sign(claims(**{"sub": "canary", **changes}))
    sent = {
        "bearer token": request(added=[f"Authorization: Bearer {token}"]),
        "token in the URL": request(f"/websocket/?token={token}"),
        "token cookie": request(added=[f"Cookie: jwt={token}"]),
        "token in a message": request(v1=True) + text({"token": token}),
    }
    edge.connect("203.0.113.7").send(sent[way])
    status = "-" if way == "token in a message" else "403"
    assert lines.texts == [
        f'refused address=203.0.113.7 credential="{way}" session=- reason=credential status={status} detail="{detail}" folded=0'
    ]
