from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from tests.kit.ws_kit import Edges, close, edges, request, text
from towerws.auth.chain import Open
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.settings import AccessSettings, Secret

CANARY = "canary0"


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The log lines, as they would stand in a file."""
    found: list[str] = []

    def note(event: LogEvent) -> None:
        found.append(formatEvent(event))

    observer = cast("ILogObserver", note)
    globalLogPublisher.addObserver(observer)
    yield found
    globalLogPublisher.removeObserver(observer)


class Hostile(Open):
    """A user whose name contains a line end."""

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(Identity("ada\r\n\x1b[2J\u202e", "tower", session="5e55", cookie=True, csrftoken=Secret(CANARY)))


def test_a_storm_of_connections(make: Edges, lines: list[str]) -> None:
    """Promise 39: 10,000 connections that open and close in ten seconds write at most 100 lines per second. All are counted."""
    edge = make(limits={"connections": 20_000, "per_address": 20_000})
    most = counted = 0
    for _ in range(10):
        before = len(lines)
        for _ in range(20):
            for client in [edge.connect().send(request()) for _ in range(50)]:
                client.hang_up()
            edge.clock.advance(0.05)
        most = max(most, len(lines) - before)
    assert 40 <= most <= 100
    edge.advance(10)
    edge.open().hang_up()
    assert lines[-2].startswith("connection opened: ")
    for line in lines:
        counted += 1 + int((re.findall(r"\((\d+) more connections opened or ended without a line\)$", line) or ["0"])[0])
    assert counted == 20_002
    assert lines[-1].endswith(" lost")


def test_one_line_at_each_end(make: Edges, lines: list[str]) -> None:
    """One line when a connection opens and one when it ends. They name the user, address, duration, volume and reason."""
    edge = make()
    client = edge.open().listen(1, 2).ask({"nonsense": [1], "job_events": [3]})
    edge.publish("job_events.3", {"n": 1})
    assert len(lines) == 1
    edge.advance(2)
    client.send(close(1001))
    assert lines == [
        "connection opened: user None from 192.0.2.1, by open, session None, speaks tower",
        "connection ended after 2.0 s: user None from 192.0.2.1, 2 requests, 1 topics, closed by the client with 1001",
    ]


def test_nothing_secret_and_nothing_hostile(make: Edges, lines: list[str]) -> None:
    """Promise 39: no token, cookie, query, header or payload is logged, and no control character."""
    edge = make(Hostile(), access=AccessSettings(trusted_proxies=("192.0.2.1",)))
    headers = [f"Cookie: sessionid={CANARY}", f"X-Forwarded-For: {CANARY}", f"User-Agent: {CANARY}", "Origin: http://tower.example.com"]
    client = edge.connect().send(request(f"/{CANARY}/websocket/?token={CANARY}", added=headers))
    assert client.status == 101
    client.send(text({"groups": {CANARY: [CANARY]}, "xrftoken": CANARY}), text(CANARY), text({"groups": {}, "xrftoken": f"{CANARY}x"}))
    edge.publish("job_events.1", {CANARY: CANARY})
    edge.connect().send(request(f"/{CANARY}?{CANARY}"))
    client.hang_up()
    edge.connect().send(request().replace(b"GET", CANARY.upper().encode()))
    assert len(lines) == 6
    for line in lines:
        assert CANARY not in line.lower()
        assert line.isprintable()
    assert sum(r"user ada\r\n\x1b[2J\u202e from 192.0.2.1" in line for line in lines) == 2


def test_a_refusal_that_locks_users_out_is_logged(make: Edges, lines: list[str]) -> None:
    """Findings P2 and P11: one line for each problem of an address. The next line has the number of problems in between."""
    edge = make()
    refusals = {
        "a header line is not name: value": request(added=["no colon"]),
        "more than one cookie header": request(added=["Cookie: a=b", "Cookie: c=d"]),
        "no host header": request(without=["Host"]),
        "the request's head holds control characters": request(added=["X: \x0b"]),
        "the request's head is longer than 16384 bytes": request(added=["X: " + "a" * 20_000]),
        "more than 100 headers": request(added=[f"X-{number}: y" for number in range(200)]),
        "the sec-websocket-extensions header is not a list of extensions": request(added=["Sec-WebSocket-Extensions: ;"]),
        "a client speaks TLS where none is expected: it uses wss:// or https:// on a plain port": b"\x16\x03\x01\x02",
    }
    for _ in range(3):
        for raw in refusals.values():
            edge.connect("192.0.2.7").send(raw)
        edge.advance(1)
    assert len(lines) == len(refusals)
    for line, problem in zip(lines, refusals, strict=True):
        reason = "tls" if "TLS" in problem else "request"
        who = r'address=192\.0\.2\.7 credential="none" session=-'
        assert re.fullmatch(rf'refused {who} reason={reason} status=4\d\d detail="{re.escape(problem)}" folded=0', line)
    lines.clear()
    edge.advance(60, step=5)
    edge.connect("192.0.2.7").send(request(without=["Host"]))
    assert len(lines) == 1
    assert lines[0].endswith('reason=request status=400 detail="no host header" folded=2')


def test_a_proxy_that_names_nobody_is_logged(make: Edges, lines: list[str]) -> None:
    """Findings P4: the log tells the operator that all clients of this proxy count as one address."""
    edge = make(access=AccessSettings(trusted_proxies=("192.0.2.1",)))
    for added in (["X-Forwarded-For: unknown"], ["Forwarded: for=_x"], ["X-Forwarded-For: 203.0.113.5:x"], ["Forwarded: proto=http"]):
        edge.connect().send(request(added=added))
    warnings = [line for line in lines if "names no client address" in line]
    assert warnings == ["the proxy 192.0.2.1 names no client address that can be read: its clients count as one address"]
    lines.clear()
    edge.advance(61, step=1)
    for added in ([], ["X-Forwarded-For:"], ["X-Forwarded-For: 203.0.113.5:80"], ['Forwarded: for="[2001:db8::1]"'], ["Forwarded:"]):
        edge.connect().send(request(added=added))
    assert not any("names no client address" in line for line in lines)
