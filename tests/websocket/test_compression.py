from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest

from tests.ws_kit import TEXT, Client, Edge, Edges, edges, frame, request

OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
ANSWER = b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
EVENT = {"event": "runner_on_ok", "stdout": "changed: [host]\r\n" * 50}


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


def open_deflated(edge: Edge, *, v1: bool = False) -> Client:
    """A client that asked for compression as Chromium does, its welcome read."""
    client = edge.connect().send(request(v1=v1, added=[OFFER]))
    assert len(client.take()) == 1
    return client


def deflate(message: bytes) -> bytes:
    """A message as a client compresses it."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


def test_it_is_off_unless_it_is_switched_on(make: Edges) -> None:
    """A client that offers compression gets plain frames by default, and a compressed one from it is a violation."""
    client = make().connect().send(request(added=[OFFER]))
    assert b"Sec-WebSocket-Extensions" not in client.response
    client.send(frame(TEXT, deflate(b'{"groups": {}}'), rsv=4))
    assert client.close_code() == 1002


@pytest.mark.parametrize("v1", [False, True])
def test_events_are_compressed_once_for_all(make: Edges, v1: bool) -> None:
    """All who negotiated it get the very same bytes of an event, compressed once; who did not gets it plain; both read the same."""
    edge = make(compression=True)
    plain = edge.open(v1=v1)
    assert b"Sec-WebSocket-Extensions" not in plain.response
    several = [open_deflated(edge, v1=v1) for _ in range(5)]
    assert all(ANSWER in client.response for client in several)
    for client in (plain, *several):
        client.listen(42)
    before = [len(client.transport.received) for client in (plain, *several)]
    edge.publish("job_events.42", EVENT)
    came = [bytes(client.transport.received[start:]) for client, start in zip((plain, *several), before, strict=True)]
    assert len(set(came[1:])) == 1
    assert came[0][0] == 0x81
    assert came[1][0] == 0xC1
    assert len(came[1]) < len(came[0]) / 3
    (expected,) = plain.take()
    assert all(client.take() == [expected] for client in several)
    assert edge.desk.deflater.frames == 1, "once, not five times"


def test_short_events_and_replies_are_plain(make: Edges) -> None:
    """What compression would not pay for is sent as it is."""
    edge = make(compression=True)
    client = open_deflated(edge).listen(42)
    edge.publish("job_events.42", {"n": 1})
    assert client.take() == [{"n": 1}]
    assert client.transport.received[len(client.response)] == 0x81
    assert edge.desk.deflater.frames == 0


def test_resume_is_compressed(make: Edges) -> None:
    """What is replayed from history is compressed as well, and the order holds."""
    edge = make(compression=True)
    first = open_deflated(edge, v1=True).listen(42)
    edge.publish("job_events.42", {**EVENT, "n": 0})
    (event,) = first.take()
    for number in (1, 2, 3):
        edge.publish("job_events.42", {**EVENT, "n": number})
    again = open_deflated(edge, v1=True).ask({"job_events": [42]}, since=event["position"])
    edge.advance(0)
    assert [message["payload"]["n"] for message in again.take() if message["type"] == "event"] == [1, 2, 3]
    assert edge.desk.deflater.frames == 7, "four live and three replayed"
    first.take()


def test_requests_may_be_compressed(make: Edges) -> None:
    """A client's compressed message is followed like a plain one, whole or in fragments, and nothing of it is kept."""
    edge = make(compression=True)
    client = open_deflated(edge)
    message = deflate(b'{"groups": {"job_events": [42]}}')
    client.send(frame(TEXT, message, rsv=4))
    assert client.take()[0]["groups_current"] == ["job_events-42"]
    client.send(frame(TEXT, message[:5], rsv=4, fin=False), frame(0, message[5:]))
    assert client.take()[0]["groups_joined"] == []
    client.send(frame(TEXT, b'{"groups": {}}'))
    assert client.take()[0]["groups_current"] == []
    assert client.connection._perMessageCompress._decompressor is None


def test_a_bomb_is_not_inflated(make: Edges) -> None:
    """A message that is small on the wire and large inflated ends with 1009, and the other clients notice nothing."""
    edge = make(compression=True)
    bystander = open_deflated(edge).listen(42)
    client = open_deflated(edge)
    client.send(frame(TEXT, deflate(b" " * 50_000_000), rsv=4))
    assert client.held < 2 * edge.settings.message_octets
    assert client.close_code() == 1009
    edge.publish("job_events.42", EVENT)
    assert bystander.take() == [EVENT]


def test_what_can_not_be_inflated(make: Edges) -> None:
    """Octets that are no deflate stream end the connection, and cost nobody else anything."""
    edge = make(compression=True)
    client = open_deflated(edge)
    client.send(frame(TEXT, b"\xff" * 20, rsv=4))
    assert client.close_code() in (1002, 1007)
