"""How much one user may have replayed: enough for pages that reconnect, and a bounded rate for a client that asks repeatedly."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred, succeed

from tests.kit.rows import each_row
from tests.kit.ws_kit import Client, Edge, Edges, edges, request
from towerws.auth.chain import Open
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.websocket.replay import CONNECTION_SHARE, HISTORIES_AT_ONCE, ReplayBounds

RATE, HISTORY = 64_000, 100_000
"""Bytes: small limits, in the same proportions as the defaults."""

EVENTS = 90
PAYLOAD = json.dumps({"x": "x" * 900}).encode()
WHOLE = EVENTS * 1000
"""About the size of a replay of all events."""


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


class Named(Open):
    """Takes the user from the query, if there is one."""

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(Identity(int(head.query), "tower", session="5e55") if head.query else Identity())


def bounded(make: Edges) -> Edge:
    """An edge whose history is full."""
    edge = make(Named(), ping_s=3600, messages_per_s=1000, messages_burst=1000)
    edge.context.replays = ReplayBounds(RATE, HISTORY)
    return edge


def fill(edge: Edge) -> str:
    """Publish ninety events of one kilobyte. Returns the position before them."""
    client = edge.open(v1=True).ask({"job_events": [1]})
    before = str(client.take()[0]["position"])
    client.hang_up()
    for _ in range(EVENTS):
        edge.publish("job_events.1", PAYLOAD)
    return before


def enter(edge: Edge, user: str = "", peer: str = "192.0.2.1") -> Client:
    """A client of `towerws.v1`."""
    client = edge.connect(peer).send(request(f"/websocket/?{user}", v1=True))
    assert client.take()
    return client


def events(client: Client) -> int:
    """How many events the client got since the last call."""
    return sum(message["type"] == "event" for message in client.take())


def ask_again(edge: Edge, client: Client, since: str, seconds: int) -> int:
    """Ask for the whole history ten times a second. Returns how many events came."""
    heard = 0
    for _ in range(seconds * 10):
        client.ask({}).ask({"job_events": [1]}, since=since)  # a subscription that is already held is not replayed
        edge.advance(0.1, step=0.05)
        heard += events(client)
    return heard


@each_row("user", ["", "7"], make=edges)
def test_one_connection_that_asks_again_and_again(make: Edges, user: str) -> None:
    """It gets history once at full speed, and after that a small share of its user's rate."""
    edge = bounded(make)
    since = fill(edge)
    heard = ask_again(edge, enter(edge, user), since, 20)
    assert EVENTS <= heard <= EVENTS + (HISTORY + 65536 + 20 * RATE * CONNECTION_SHARE) / 1000
    assert edge.context.replays.delays


@each_row("user", ["", "7"])
@each_row("at_once", [1, 5], make=edges)
def test_one_user_that_comes_again_and_again(make: Edges, user: str, at_once: int) -> None:
    """With a new connection each time: together they get a few histories at once, then a fixed rate."""
    edge = bounded(make)
    since = fill(edge)
    heard = 0
    for _ in range(100):
        clients = [enter(edge, user).ask({"job_events": [1]}, since=since) for _ in range(at_once)]
        edge.advance(0.1, step=0.05)
        for client in clients:
            heard += events(client)
            client.hang_up()
    assert heard <= (HISTORIES_AT_ONCE * HISTORY + 10 * RATE + at_once * 65536) / 900
    assert heard >= HISTORIES_AT_ONCE * HISTORY / 1100


@each_row(("first", "second"), [(("7", "192.0.2.1"), ("8", "192.0.2.1")), (("", "192.0.2.1"), ("", "192.0.2.2"))], make=edges)
def test_another_user_is_not_slowed_down(make: Edges, first: tuple[str, str], second: tuple[str, str]) -> None:
    """A user is known by its id. A client without an id is known by its address."""
    edge = bounded(make)
    since = fill(edge)
    for _ in range(10):
        enter(edge, *first).ask({"job_events": [1]}, since=since)
        edge.advance(0.05, step=0.05)
    other = enter(edge, *second).ask({"job_events": [1]}, since=since)
    edge.advance(0.1, step=0.05)
    assert events(other) == EVENTS


def test_nothing_is_lost_or_reordered_while_it_waits(make: Edges) -> None:
    """A replay that waits resumes where it stopped. Events published meanwhile come after it, each one once."""
    edge = bounded(make)
    edge.context.replays = ReplayBounds(RATE, 20_000)
    client = enter(edge, "7").ask({"job_events": [1]})
    since = client.take()[0]["position"]
    client.ask({})
    for number in range(150):
        edge.publish("job_events.1", {"n": number, "x": "x" * 900})
    edge.advance(1)
    client.take()
    _, *first = client.ask({"job_events": [1]}, since=since).take()
    heard = [message["payload"]["n"] for message in first]
    for number in range(150, 300):
        edge.publish("job_events.1", {"n": number, "x": "x" * 400})
        edge.advance(1)
        heard += [message["payload"]["n"] for message in client.take() if message["type"] == "event"]
    edge.advance(60)
    heard += [message["payload"]["n"] for message in client.take() if message["type"] == "event"]
    assert heard == list(range(300))
    assert edge.context.replays.delays


def test_a_slow_reader_is_not_counted(make: Edges) -> None:
    """Events that waited for a full socket are no replay. They are sent as fast as the client reads."""
    edge = bounded(make)
    client = enter(edge, "7").ask({"job_events": [1]})
    client.take()
    client.transport.stalled = True
    for _ in range(900):
        edge.publish("job_events.1", PAYLOAD)
    client.transport.stalled = False
    client.transport.drain()
    edge.advance(5)
    assert events(client) == 900
    assert edge.context.replays.delays == 0


def test_hang_up_while_a_replay_waits(make: Edges) -> None:
    """No timer is left (the fixture checks)."""
    edge = bounded(make)
    since = fill(edge)
    client = enter(edge, "7")
    ask_again(edge, client, since, 1)
    assert edge.context.replays.delays
    client.hang_up()
