from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from twisted.internet.defer import fail

from tests.kit.rows import each_row
from tests.kit.ws_kit import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Edges,
    SlowMethod,
    close,
    edges,
    frame,
    request,
    text,
)
from towerws.core.errors import CloseReason


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


INVALID_CODES = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 9999, 65535]
"""Codes that no endpoint may send: reserved, not registered, or out of range (RFC 6455 section 7.4)."""

# Closing


@each_row("code", [None, 1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3001, 3999, 4000, 4001, 4999])
@each_row("reason", [b"", "grund f\u00fcr alles".encode()], make=edges)
def test_client_closes(make: Edges, code: int | None, reason: bytes) -> None:
    """Findings P6: a client's close is answered with its own code, or without one. The connection ends without a reset."""
    edge = make()
    client = edge.open().listen(1)
    client.send(frame(CLOSE) if code is None else frame(CLOSE, struct.pack("!H", code) + reason))
    assert client.control(CLOSE) == [b"" if code is None else struct.pack("!H", code)]
    assert edge.hub.subscribers == {}
    edge.advance(0)
    assert client.transport.lost
    assert not client.transport.aborted


def test_close_then_stall(make: Edges) -> None:
    """F5: a client that closes and does not read leaves the hub at once. Its backlog stops growing, and it is aborted."""
    edge = make()
    client = edge.open().listen(1)
    client.transport.stalled = True
    edge.publish("job_events.1", {"x": "y" * 100_000})
    client.send(close())
    assert edge.hub.subscribers == {}
    waiting = len(client.transport.waiting)
    edge.publish("job_events.1", {"x": "y" * 100_000})
    assert len(client.transport.waiting) == waiting
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.aborted
    assert client.transport.lost


def test_talks_but_never_reads(make: Edges) -> None:
    """F6: a client that sends and never reads is sent no more than the bound. It is dropped when it answers no ping."""
    edge = make(ping_s=20, pong_s=30)
    client = edge.open().listen(1)
    client.transport.stalled = True
    bound = edge.settings.backlog_bytes + 65536 + 40_000
    for _ in range(51 * 4):
        client.send(frame(PONG))
        edge.publish("job_events.1", {"x": "y" * 30_000})
        assert len(client.transport.waiting) < bound
        edge.advance(0.25)
    edge.advance(1)
    assert client.transport.lost


def test_asks_but_never_reads(make: Edges) -> None:
    """F6: requests are no sign of life. A client that sends them and reads nothing is dropped as well."""
    edge = make(ping_s=20, pong_s=30)
    client = edge.open().listen(1)
    client.transport.stalled = True
    for _ in range(51):
        client.ask({"job_events": [1]})
        edge.advance(1)
    edge.advance(1)
    assert client.transport.aborted
    assert client.transport.lost


def test_answering_pings_stays(make: Edges) -> None:
    """A client that answers the pings stays for ever. Each ping has unpredictable bytes."""
    edge = make()
    client = edge.open()
    answered: list[bytes] = []
    for _ in range(400):
        edge.advance(1, step=1)
        for ping in client.control(PING)[len(answered) :]:
            client.send(frame(PONG, ping))
            answered.append(ping)
    assert not client.transport.lost
    assert len(answered) >= 18
    assert len({ping[12:] for ping in answered}) == len(answered), "behind time and number stand random bytes"


@each_row("reason", list(CloseReason))
@each_row("v1", [False, True], make=edges)
def test_server_closes(make: Edges, reason: CloseReason, v1: bool) -> None:
    """The server's close has the reason's code, never 1000. A v1 client is told before whether and when to reconnect."""
    edge = make()
    client = edge.open(v1=v1).listen(1)
    client.connection.end(reason)
    assert edge.hub.subscribers == {}
    messages = client.take()
    assert client.close_code() == reason.value.code != 1000
    if v1:
        (bye,) = messages
        assert (bye["type"], bye["reason"]) == ("bye", reason.value.reason)
        assert bye["reconnect_after_ms"] is None if bye["action"] == "stop" else 500 <= bye["reconnect_after_ms"] <= 5000
    else:
        assert messages == []
    client.connection.end(reason)
    client.send(close(reason.value.code))
    edge.advance(0)
    assert client.transport.lost
    assert not client.transport.aborted, "browsers report a reset as unclean (findings P5)"


def test_close_without_answer(make: Edges) -> None:
    """A client that does not answer the server's close is aborted after the linger time."""
    edge = make()
    client = edge.open()
    client.connection.end(CloseReason.RESTART)
    edge.advance(edge.settings.linger_s - 1)
    assert not client.transport.lost
    edge.advance(1.5)
    assert client.transport.aborted


def test_hang_up_after_servers_close(make: Edges) -> None:
    """A client that hangs up instead of answering leaves no timer behind."""
    edge = make()
    client = edge.open()
    client.connection.end(CloseReason.RESTART)
    client.hang_up()


def test_flood_after_servers_close(make: Edges) -> None:
    """Input between the server's close and its answer is bounded: it is not kept, and not processed without end."""
    edge = make()
    for first, flood in (
        (frame(TEXT, b"x" * 60_000, fin=False), frame(CONTINUATION, b"x" * 60_000, fin=False)),
        (frame(TEXT, fin=False), frame(TEXT, b"x" * 60_000)),
        (frame(PING, raw=2**40), b"x" * 60_000),
        (frame(PING), frame(PING) * 10_000),
        (text(""), text("x" * 60_000)),
    ):
        client = edge.open()
        client.connection.end(CloseReason.RESTART)
        client.send(first)
        for _ in range(200):
            client.send(flood)
        assert client.held < 128 * 1024
        edge.advance(0)
        assert client.transport.lost or not client.transport.reading, "it is not looked at for the whole linger time"
        edge.advance(edge.settings.linger_s + 0.5)
        assert client.transport.lost


def test_endless_control_frame(make: Edges) -> None:
    """A ping that announces a terabyte is a violation. Nothing of it is kept."""
    edge = make()
    client = edge.open().send(frame(PING, raw=2**40), *[b"x" * 65536] * 100)
    assert client.close_code() == 1002
    assert client.held < 1024
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.lost


def test_requests_under_way_at_the_servers_close(make: Edges) -> None:
    """Pending requests are dropped when the server closes. The answer to the close is still recognized."""
    edge = make()
    client = edge.open()
    client.connection.end(CloseReason.RESTART)
    client.ask({"job_events": [1]}).ask({"job_events": [2]})
    assert edge.hub.topics == 0
    client.send(close(1012))
    edge.advance(0)
    assert client.transport.lost


def test_nothing_follows_a_close(make: Edges) -> None:
    """After a close frame nothing is sent, even if an event or a late answer comes."""
    method = SlowMethod()
    edge = make(method)
    client = edge.open().ask({"job_events": [1]})
    client.connection.end(CloseReason.RESTART)
    assert method.cancelled == 1
    edge.publish("job_events.1", {})
    assert client.close_code() == 1012
    assert edge.hub.topics == 0


# What a client may send


def test_no_compression(make: Edges) -> None:
    """Compression is never accepted, and a compressed frame is a violation."""
    edge = make()
    client = edge.connect().send(request(added=["Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"]))
    assert client.status == 101
    assert b"Sec-WebSocket-Extensions" not in client.response
    client.send(frame(TEXT, b"x", rsv=4))
    assert client.close_code() == 1002


def test_size_limits_are_one_way(make: Edges) -> None:
    """64 KiB in are accepted, and one byte more gets 1009, in one frame or several. 1 MiB out arrives whole."""
    edge = make()
    limit = edge.settings.message_bytes
    assert "error" in edge.open().send(text("x" * limit)).take()[0]
    assert edge.open().send(text("x" * (limit + 1))).close_code() == 1009
    in_two = edge.open().send(frame(TEXT, b"x" * limit, fin=False), frame(CONTINUATION, b"x"))
    assert in_two.close_code() == 1009
    announced = edge.open().send(frame(TEXT, raw=2**40))
    assert announced.close_code() == 1009
    client = edge.open().listen(1)
    payload = {"x": "y" * (1024**2 - 100)}
    edge.publish("job_events.1", payload)
    assert client.take() == [payload]


def test_too_large_is_v1s_bye(make: Edges) -> None:
    """A v1 client whose message is too large gets a goodbye before the close, as before every other close."""
    client = make().open(v1=True)
    client.send(text("x" * 70_000))
    assert [(message["type"], message["reason"]) for message in client.take()] == [("bye", "too big")]
    assert client.close_code() == 1009


def test_fragmented_message(make: Edges) -> None:
    """A message in fragments, with a ping between them, is one message."""
    client = make().open()
    client.send(frame(TEXT, b'{"gro', fin=False), frame(PING, b"p"), frame(CONTINUATION, b'ups": ', fin=False), frame(CONTINUATION, b"{}}"))
    assert client.take()[0]["groups_current"] == []
    assert client.control(PONG) == [b"p"]


@each_row("payload", [b"", b"ab"], make=edges)
def test_fragment_flood(make: Edges, payload: bytes) -> None:
    """More than 64 fragments in a message get 1008, even empty ones. The rest of the flood is not kept."""
    edge = make()
    client = edge.open().send(frame(TEXT, payload, fin=False), *[frame(CONTINUATION, payload, fin=False)] * 63)
    assert client.close_code() is None
    client.send(frame(CONTINUATION, payload, fin=False))
    assert client.close_code() == 1008
    client.send(*[frame(CONTINUATION, payload, fin=False) * 1000] * 1000)
    assert client.held < 64 * 1024
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.lost


def test_64_fragments_are_taken(make: Edges) -> None:
    """A message of exactly 64 fragments is accepted."""
    client = make().open().send(frame(TEXT, b"", fin=False), *[frame(CONTINUATION, b"", fin=False)] * 62)
    client.send(frame(CONTINUATION, b'{"groups":{}}'))
    assert client.take()[0]["groups_current"] == []


def test_many_messages_in_fragments(make: Edges) -> None:
    """Each frame of a read costs Autobahn a copy of the rest. A read full of empty fragments gets 1008 before it takes 50 ms."""
    message = frame(TEXT, b"{", fin=False) + frame(CONTINUATION, fin=False) * 62 + frame(CONTINUATION, b'"groups":{}}')
    edge = make()
    client = edge.open().send(message * 2)
    assert len(client.take()) == 2
    assert client.close_code() is None
    client.send(message * 100)
    assert client.close_code() == 1008
    assert len(client.take()) <= 1
    assert not client.transport.reading, "the rest is not looked at"
    edge.advance(edge.settings.linger_s + 0.5)


def test_a_message_in_64_fragments_each_second(make: Edges) -> None:
    """A client may do so for ever."""
    message = frame(TEXT, b"{", fin=False) + frame(CONTINUATION, fin=False) * 62 + frame(CONTINUATION, b'"groups":{}}')
    edge = make(ping_s=3600)
    client = edge.open()
    for _ in range(60):
        client.send(message)
        edge.advance(1)
    assert len(client.take()) == 60


def test_message_never_finished(make: Edges) -> None:
    """A message has 10 s from its first byte to its last. A slower one gets 1008."""
    edge = make()
    for start in (frame(TEXT, b"x" * 100)[:50], frame(TEXT, b"x", fin=False), frame(TEXT, b"x")[:1]):
        client = edge.open().send(start)
        edge.advance(9)
        assert client.close_code() is None
        edge.advance(1.5)
        assert client.close_code() == 1008
        edge.advance(edge.settings.linger_s + 0.5)


def test_a_busy_client_is_not_closed_as_slow(make: Edges) -> None:
    """A client whose reads always end within a message is accepted while each message ends in time."""
    edge = make()
    client = edge.open()
    message = text({"groups": {}})
    client.send(message[:5])
    for _ in range(30):
        edge.advance(1)
        client.send(message[5:] + message[:5])
    client.send(message[5:])
    assert client.close_code() is None
    assert len(client.take()) == 31


def test_ping_flood(make: Edges) -> None:
    """Pings beyond burst and rate get 1008 at once. Pongs stay few, and the rest of the flood is not processed."""
    edge = make()
    client = edge.open()
    client.send(frame(PING, b"x" * 125) * 500)
    assert client.close_code() == 1008
    assert len(client.control(PONG)) == edge.settings.controls_burst
    assert not client.transport.reading, "a flooder is not listened to any more"
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.lost


def test_pings_at_the_rate(make: Edges) -> None:
    """20 pings per second are answered for ever."""
    edge = make()
    client = edge.open()
    for _ in range(60):
        client.send(frame(PING) * 10)
        edge.advance(0.5)
    assert client.close_code() is None
    assert len(client.control(PONG)) == 600


def test_unsolicited_pongs(make: Edges) -> None:
    """An unsolicited pong is accepted (RFC 6455 section 5.5.3), a flood of them gets 1008."""
    edge = make()
    client = edge.open().send(frame(PONG, b"x"))
    client.listen(1)
    client.send(frame(PONG) * 100)
    assert client.close_code() == 1008


@each_row(
    ("raw", "code"),
    [
        (frame(TEXT, b"x", masked=False), 1002),
        (frame(TEXT, b"x", rsv=1), 1002),
        (frame(3), 1002),
        (frame(11), 1002),
        (frame(PING, fin=False), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(CONTINUATION, b"x"), 1002),
        (frame(TEXT, fin=False) + frame(TEXT), 1002),
        (frame(CLOSE, b"x"), 1002),
        *[(close(code), 1002) for code in INVALID_CODES],
        (frame(CLOSE, b"\x03\xe8", masked=False), 1002),
        (frame(CLOSE, b"\x03\xe8", rsv=2), 1002),
        (frame(CLOSE, b"\x03\xe8", fin=False), 1002),
        (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
        (frame(TEXT, b"x", masked=False) + close(), 1002),
        (frame(TEXT, b"x", masked=False) + close(999), 1002),
        (frame(3) + frame(CLOSE, b"x") + close(), 1002),
        (frame(3) + frame(3) + frame(3), 1002),
        (frame(TEXT, b"\xff") + close(4001), 1007),
        (frame(CLOSE, b"\x03\xe8\xed\xa0\x80"), 1007),
        (frame(CLOSE, b"\x03\xe8\xe2\x82"), 1007),
        (frame(CLOSE, b"\x03\xe7\xff"), 1002),
        (frame(TEXT, b"x" * 70_000) + close(), 1009),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),
        (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
    ],
    make=edges,
)
def test_violations(make: Edges, raw: bytes, code: int) -> None:
    """A violation of RFC 6455 is closed with its code. The connection is gone after the linger time at the latest."""
    edge = make()
    client = edge.open().listen(1).send(raw)
    assert client.close_code() == code
    assert edge.hub.subscribers == {}
    if raw[0] & 0x0F == CLOSE:
        assert client.transport.closing, "no other close frame will come"
    edge.advance(0)
    assert not client.transport.aborted, "the client may not have read the code yet"
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.lost


def test_every_open_and_close_is_counted(make: Edges) -> None:
    """Each open and each close is counted, for every way to end."""
    edge = make()
    first, second, third = edge.open(), edge.open(), edge.open()
    first.hang_up()
    second.send(close())
    third.connection.end(CloseReason.RESTART)
    edge.advance(edge.settings.linger_s + 0.5)
    fourth, fifth = edge.open(), edge.open()
    fourth.send(b"\xff\xff\xff\xff\xff\xff")
    edge.advance(edge.settings.linger_s + 0.5)
    edge.advance(edge.settings.ping_s + edge.settings.pong_s + 1)
    assert fifth.transport.lost
    assert (edge.factory.opened, edge.factory.closed) == (5, 5)
    assert edge.factory.closed_for == {"lost": 1, "client": 1, "restart": 1, "protocol": 1, "pong_timeout": 1}


def test_failure_is_a_failure() -> None:
    """The leak check of these tests notices a logged traceback."""
    with pytest.raises(AssertionError, match="unhandled"), edges():
        fail(ValueError("unhandled"))
