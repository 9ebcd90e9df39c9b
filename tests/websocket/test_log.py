from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from tests.ws_kit import Edges, close, edges, request, text
from towerws.auth.open import Open
from towerws.core.handshake import Head
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
    """What is logged, as it would stand in a file."""
    found: list[str] = []

    def note(event: LogEvent) -> None:
        found.append(formatEvent(event))

    observer = cast("ILogObserver", note)
    globalLogPublisher.addObserver(observer)
    yield found
    globalLogPublisher.removeObserver(observer)


class Hostile(Open):
    """A user whose name would be another line of the log."""

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(Identity("ada\r\n\x1b[2J\u202e", "tower", session="5e55", cookie=True, csrftoken=Secret(CANARY)))


def test_a_storm_of_connections(make: Edges, lines: list[str]) -> None:
    """Promise 39: 10,000 connections that come and go in ten seconds write at most 100 lines a second; none goes uncounted."""
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
    """Who, from where, for how long, how much and why: one line when a connection opens, one when it ends, nothing in between."""
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
    """Promise 39: no token, cookie, query, header or payload is logged, nor a character that does anything to who reads it."""
    edge = make(Hostile(), access=AccessSettings(trusted_proxies=("192.0.2.1",)))
    headers = [f"Cookie: sessionid={CANARY}", f"X-Forwarded-For: {CANARY}", f"User-Agent: {CANARY}", "Origin: http://tower.example.com"]
    client = edge.connect().send(request(f"/{CANARY}/websocket/?token={CANARY}", added=headers))
    assert client.status == 101
    client.send(text({"groups": {CANARY: [CANARY]}, "xrftoken": CANARY}), text(CANARY), text({"groups": {}, "xrftoken": f"{CANARY}x"}))
    edge.publish("job_events.1", {CANARY: CANARY})
    edge.connect().send(request(f"/{CANARY}?{CANARY}"))
    client.hang_up()
    assert len(lines) == 4
    for line in lines:
        assert CANARY not in line
        assert line.isprintable()
    for line in (lines[0], lines[-1]):
        assert r"user ada\r\n\x1b[2J\u202e from 192.0.2.1" in line
