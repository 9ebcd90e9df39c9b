"""What a connection has read of an unfinished message moves to another parser, at any place of the client's bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address

from tests.kit.rows import each_row
from tests.kit.ws_kit import CONTINUATION, PING, PONG, TEXT, Client, Edge, Edges, MemoryTransport, SlowMethod, edges, frame, request, text
from tests.websocket.test_compression import deflate
from tests.websocket.test_waits import Scene
from towerws.core.handover_state import ConnectionState, state_from_json, state_to_json
from towerws.core.identity import Identity
from towerws.protocol import WebSocketConnection
from towerws.websocket.movable import Adoption, AdoptionFactory

OFFER = "Sec-WebSocket-Extensions: permessage-deflate"

MESSAGES = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(0, 40), max_size=4), st.booleans(), st.sampled_from([0, 150, 70_000])),
    min_size=1,
    max_size=3,
)
"""Of each message: whether it is compressed, where it is cut into frames, whether a ping comes between them, and a length."""


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


def connect(edge: Edge, *, deflated: bool) -> Client:
    """An open client of `towerws.v1`."""
    client = edge.connect().send(request(v1=True, added=[OFFER] if deflated else []))
    assert len(client.take()) == 1
    return client


@given(MESSAGES, st.booleans(), st.integers(0, 10**6))
def test_an_unfinished_message_is_read_on_by_another_connection(
    messages: list[tuple[bool, list[int], bool, int]], deflated: bool, cut: int
) -> None:
    """The two connections together answer what one connection would have answered: each message once, each ping once."""
    data = b""
    pings = 0
    for number, (compressed, places, with_ping, length) in enumerate(messages):
        payload = json.dumps({"ping": number, "pad": "é" * length}).encode()
        rsv = 0
        if compressed and deflated:
            payload, rsv = deflate(payload), 4
        ends = [*sorted(min(place, len(payload)) for place in places), len(payload)]
        begin = 0
        for place, end in enumerate(ends):
            data += frame(CONTINUATION if place else TEXT, payload[begin:end], fin=place == len(ends) - 1, rsv=0 if place else rsv)
            begin = end
            if with_ping and place < len(ends) - 1:
                data += frame(PING, b"ping")
                pings += 1
    cut %= len(data) + 1
    with edges() as make:
        edge = make(compression=True, message_bytes=1024**2)
        first, second = connect(edge, deflated=deflated), connect(edge, deflated=deflated)
        first.send(data[:cut])
        second.send(first.connection.unread_input(), data[cut:])
        answers = [answer["ping"] for client in (first, second) for answer in client.take()]
        assert answers == list(range(len(messages)))
        assert len(first.control(PONG)) + len(second.control(PONG)) == pings


@each_row("v1", [True, False], make=edges)
def test_an_adopted_connection_loses_what_the_groups_of_this_process_forbid(make: Edges, v1: bool) -> None:
    """The configuration may have changed since the client subscribed. It gets no event of the forbidden topic, and is told."""
    edge = make(ping_s=3600)
    topics = ("chat.a", "gone.a")
    start = edge.hub.flushed
    edge.publish("gone.a", {"n": 0})
    edge.publish("chat.a", {"n": 1})
    state = ConnectionState(
        identity={}, address="192.0.2.1", subprotocol="towerws.v1" if v1 else None, compressed=False, position="", topics=topics
    )
    client = adopted(edge, Adoption(state, Identity(7), start, dict.fromkeys(topics, start.seq)))
    edge.publish("chat.a", {"n": 2})
    edge.clock.advance(0)
    (subscriber,) = edge.hub.subscribers
    assert list(subscriber.topics) == ["chat.a"]
    told, *events = client.take()
    assert "gone" in json.dumps(told)
    assert [event.get("payload") if v1 else event for event in events] == [{"n": 1}, {"n": 2}]


class FrozenTransport(MemoryTransport):
    """One with what `freeze` uses."""

    dataBuffer = b""
    offset = 0
    _tempDataBuffer: tuple[bytes, ...] = ()

    def stopReading(self) -> None:
        """Note it."""
        self.reading = False

    def startReading(self) -> None:
        """Note it."""
        self.reading = True

    def stopWriting(self) -> None:
        """Nothing waits."""


def test_a_connection_that_was_frozen_goes_on(make: Edges) -> None:
    """Each message is answered once and in order: the one that waits for an answer, those behind it, and one that is not whole yet."""
    method = SlowMethod()
    edge = make(method, ping_s=3600)
    client = edge.connect()
    client.transport.__class__ = FrozenTransport
    client.send(request(v1=True)).take()
    client.ask({"chat": ["a"]}).send(text({"ping": 1}), text({"ping": 2})[:9])
    state = client.connection.freeze()
    assert len(state.inbox) == 2
    assert not client.transport.reading
    client.connection.thaw(state)
    client.send(text({"ping": 2})[9:])
    assert client.take() == []
    method.questions.pop()[1].callback({})
    subscribed, *pongs = client.take()
    assert subscribed["type"] == "subscribed"
    assert [pong["ping"] for pong in pongs] == [1, 2]
    assert method.questions == []


@each_row("length", [10, 20_000, 32_000], make=edges)
def test_messages_that_waited_move(make: Edges, length: int) -> None:
    """The other process handles each of them: the one that waits for an answer, which is in no queue here, and those behind it."""
    method = SlowMethod()
    edge = make(method, ping_s=3600)
    client = edge.connect()
    client.transport.__class__ = FrozenTransport
    client.send(request(v1=True)).take()
    client.send(text({"groups": {"chat": ["a"]}, "pad": "x" * 2 * length}))
    for number in (1, 2):
        client.send(text({"ping": number, "pad": "x" * (length - 100)}))
    state = client.connection.freeze()
    assert len(state.inbox) == 3
    moved = adopted(edge, Adoption(state, Identity(7), edge.hub.flushed, {}))
    while method.questions:
        method.questions.pop()[1].callback({})
    answers = moved.take()
    assert [answer.get("ping", answer["type"]) for answer in answers] == ["subscribed", 1, 2]


@each_row("moves", [1, 2])
@each_row("v1", [False, True], make=edges)
def test_a_request_that_waited_is_answered_with_what_it_changed(make: Edges, moves: int, v1: bool) -> None:
    """The topics that need no question were subscribed before the move. The client hears of them in the answer, once."""
    scene = Scene(make, v1=v1)
    scene.client.ask({"jobs": ["summary"]}).take()
    scene.client.ask({"jobs": ["status_changed"], "job_events": [1]})
    client, identity = scene.client, scene.client.connection.identity
    assert identity is not None
    for _ in range(moves):
        client.transport.__class__ = FrozenTransport
        state = state_from_json(state_to_json(client.connection.freeze()))
        assert sorted(state.topics) == ["jobs.status_changed", "jobs.summary"]
        start = scene.edge.hub.flushed
        client = adopted(scene.edge, Adoption(state, identity, start, dict.fromkeys(state.topics, start.seq)))
    scene.advance(0.5)
    client.ask({"jobs": ["status_changed"], "job_events": [1]})
    first, second = ((reply["groups_joined"], reply["groups_left"]) for reply in client.take())
    mark = "." if v1 else "-"
    assert first == ([f"job_events{mark}1", f"jobs{mark}status_changed"], [f"jobs{mark}summary"])
    assert second == ([], [])


def adopted(edge: Edge, adoption: Adoption) -> Client:
    """A client whose connection comes from another process."""
    connection = cast("WebSocketConnection", AdoptionFactory(edge.factory, adoption).buildProtocol(IPv4Address("TCP", "192.0.2.1", 54321)))
    transport = MemoryTransport(edge.clock, connection)
    transport.received += b"HTTP/1.1 101 Switching Protocols\r\n\r\n"  # from the other process
    client = Client(edge.clock, connection, transport)
    edge.clients.append(client)
    connection.makeConnection(transport)
    return client
