from __future__ import annotations

import gzip
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator

import pytest

from tests.kit.rows import each_row
from tests.kit.ws_kit import TEXT, Client, Edge, Edges, close, edges, frame, request

OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
ANSWER = b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
EVENT = {"event": "runner_on_ok", "stdout": "changed: [host]\r\n" * 50}


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


def open_deflated(edge: Edge, *, v1: bool = False) -> Client:
    """A client that asked for compression as Chromium does. Its welcome has been read."""
    client = edge.connect().send(request(v1=v1, added=[OFFER]))
    assert len(client.take()) == 1
    return client


def deflate(message: bytes) -> bytes:
    """A message as a client compresses it."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


def zlib_fixed(message: bytes) -> bytes:
    """A message compressed with fixed codes only."""
    compressor = zlib.compressobj(wbits=-15, strategy=zlib.Z_FIXED)
    return (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


def test_it_is_off_unless_it_is_switched_on(make: Edges) -> None:
    """By default a client that offers compression gets plain frames. A compressed frame from it is a protocol violation."""
    client = make().connect().send(request(added=[OFFER]))
    assert b"Sec-WebSocket-Extensions" not in client.response
    client.send(frame(TEXT, deflate(b'{"groups": {}}'), rsv=4))
    assert client.close_code() == 1002


@each_row("v1", [False, True], make=edges)
def test_events_are_compressed_once_for_all(make: Edges, v1: bool) -> None:
    """An event is compressed once, and all clients with compression get the same bytes. Clients without it get the event plain."""
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
    assert edge.context.deflater.frames == 1, "once, not five times"


def test_short_events_and_replies_are_plain(make: Edges) -> None:
    """A message that is too short to gain from compression is sent plain."""
    edge = make(compression=True)
    client = open_deflated(edge).listen(42)
    edge.publish("job_events.42", {"n": 1})
    assert client.take() == [{"n": 1}]
    assert client.transport.received[len(client.response)] == 0x81
    assert edge.context.deflater.frames == 0


def test_resume_is_compressed(make: Edges) -> None:
    """Events replayed from history are compressed too, and stay in order."""
    edge = make(compression=True)
    first = open_deflated(edge, v1=True).listen(42)
    edge.publish("job_events.42", {**EVENT, "n": 0})
    (event,) = first.take()
    for number in (1, 2, 3):
        edge.publish("job_events.42", {**EVENT, "n": number})
    again = open_deflated(edge, v1=True).ask({"job_events": [42]}, since=event["position"])
    edge.advance(0)
    assert [message["payload"]["n"] for message in again.take() if message["type"] == "event"] == [1, 2, 3]
    assert edge.context.deflater.frames == 7, "four live and three replayed"
    first.take()


def test_requests_may_be_compressed(make: Edges) -> None:
    """A client's compressed message is handled like a plain one, whole or in fragments. Nothing of it is kept afterwards."""
    edge = make(compression=True)
    client = open_deflated(edge)
    message = deflate(b'{"groups": {"job_events": [42]}}')
    client.send(frame(TEXT, message, rsv=4))
    assert client.take()[0]["groups_current"] == ["job_events-42"]
    client.send(frame(TEXT, message[:5], rsv=4, fin=False), frame(0, message[5:]))
    assert client.take()[0]["groups_joined"] == []
    client.send(frame(TEXT, b'{"groups": {}}'))
    assert client.take()[0]["groups_current"] == []
    inflater = client.connection._perMessageCompress
    assert inflater is not None
    assert inflater._reader is None


def test_a_bomb_is_not_inflated(make: Edges) -> None:
    """A message that inflates beyond the limit ends the connection with 1009. Other clients notice nothing."""
    edge = make(compression=True)
    bystander = open_deflated(edge).listen(42)
    client = open_deflated(edge)
    client.send(frame(TEXT, BOMB, rsv=4))
    assert client.held < 2 * edge.settings.message_bytes
    assert client.close_code() == 1009
    edge.publish("job_events.42", EVENT)
    assert bystander.take() == [EVENT]


def test_what_can_not_be_inflated(make: Edges) -> None:
    """Bytes that are not a deflate stream end the connection. Other clients are not affected."""
    edge = make(compression=True)
    client = open_deflated(edge)
    client.send(frame(TEXT, b"\xff" * 20, rsv=4))
    assert client.close_code() == 1007


LIMIT = 64 * 1024
BOMB = deflate(b" " * 50_000_000)
HELLO = b'{"groups": {"job_events": [42]}}'
NOISE = zlib.compress(b"".join(b"%d" % (number * number) for number in range(20_000)), 9)


def stored(message: bytes, block: int) -> bytes:
    """A message in stored blocks of this size: the longest form that a sender can sensibly produce."""
    pieces = [message[at : at + block] for at in range(0, len(message), block)]
    return b"".join(b"\0" + struct.pack("<HH", len(piece), 0xFFFF ^ len(piece)) + piece for piece in pieces) + b"\0"


def final(message: bytes) -> bytes:
    """A message whose stream is marked as final (RFC 7692 section 7.2.3.4), with nothing after it."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(message) + compressor.flush()


CORRUPT = {
    "no stream": b"\xff" * 20,
    "the last byte is missing": deflate(HELLO)[:-1],
    "two bytes are missing": deflate(HELLO)[:-2],
    "half is missing": deflate(HELLO)[: len(HELLO) // 2],
    "the last byte of a stored block is missing": stored(HELLO, 100)[:-2],
    "the header of the tail is missing": stored(HELLO, 100)[:-1],
    "the end of dynamic codes is missing": deflate(HELLO * 500)[:-1],
    "only a header": b"\x05",
    "garbage": deflate(HELLO) + b"\x99",
    "the tail is there twice": deflate(HELLO) + b"\0\0\xff\xff",
    "zeros": deflate(HELLO) + b"\0" * 100,
    "a last block and garbage": final(HELLO) + b"\x01",
    "a last block and more zeros": final(HELLO) + b"\0\0",
    "a last block and another stream": final(HELLO) + deflate(HELLO),
    "a zlib stream": zlib.compress(HELLO),
    "a gzip stream": gzip.compress(HELLO),
    "a distance too far back": b"\x03\x02\0",
}

WHOLE = {
    "as zlib makes it": deflate(HELLO),
    "stored": stored(HELLO, 7),
    "several flushes": deflate(HELLO[:9]) + b"\0\0\xff\xff" + deflate(HELLO[9:]),
    "a last block": final(HELLO),
    "a last block, padded": final(HELLO) + b"\0",
    "fixed codes": zlib_fixed(HELLO),
}


def cut(message: bytes, pieces: int) -> list[bytes]:
    """A compressed message in this many frames."""
    size = -(-len(message) // pieces)
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    last = len(parts) - 1
    return [frame(0 if at else TEXT, part, rsv=0 if at else 4, fin=at == last) for at, part in enumerate(parts)]


@each_row("pieces", [1, 2, 5])
@each_row("message", CORRUPT.values(), ids=CORRUPT, make=edges)
def test_truncated_streams_are_refused(make: Edges, message: bytes, pieces: int) -> None:
    """Findings P8: a stream without its end, or with bytes after it, gets 1007. No part of it is handled."""
    edge = make(compression=True)
    client = open_deflated(edge).send(*cut(message, pieces))
    assert client.take() == []
    assert client.close_code() == 1007
    assert edge.context.requests == 0


@each_row("pieces", [1, 2, 5])
@each_row("message", WHOLE.values(), ids=WHOLE, make=edges)
def test_every_way_to_end_a_stream(make: Edges, message: bytes, pieces: int) -> None:
    """A message is handled for every way in which a sender may end its stream."""
    client = open_deflated(make(compression=True)).send(*cut(message, pieces))
    assert client.take()[0]["groups_current"] == ["job_events-42"]


def test_empty_messages(make: Edges) -> None:
    """An empty message is one zero byte (RFC 7692 section 7.2.3.6), or no bytes. It is answered like any message that is not JSON."""
    client = open_deflated(make(compression=True)).send(frame(TEXT, b"\0", rsv=4), frame(TEXT, b"", rsv=4))
    assert len(client.take()) == 2
    assert client.close_code() is None


@each_row("pieces", [1, 2, 5])
@each_row("more", [-1, 0, 1, 2, 128, 255, 256, 257, 1000, LIMIT])
@each_row("kind", ["spaces", "noise", "stored", "plain"], make=edges)
def test_the_limit_is_exact(make: Edges, kind: str, more: int, pieces: int) -> None:
    """Findings P8: a message of 64 KiB after inflation is accepted, well compressed or not. One byte more gets 1009."""
    edge = make(compression=True, fragments=1000)
    message = (b" " * (LIMIT + more)) if kind == "spaces" else b'"' + (b64encode(NOISE) * 2)[: LIMIT + more - 2] + b'"'
    assert len(message) == LIMIT + more
    if kind == "plain":
        size = -(-len(message) // pieces)
        parts = [message[at : at + size] for at in range(0, len(message), size)]
        frames = [frame(0 if at else TEXT, part, fin=at == len(parts) - 1) for at, part in enumerate(parts)]
    else:
        compressed = stored(message, 16_383) if kind == "stored" else deflate(message)
        frames = cut(compressed, pieces)
    client = open_deflated(edge).send(*frames)
    if more <= 0:
        assert "error" in client.take()[0]
        assert client.close_code() is None
    else:
        assert client.take() == []
        assert client.close_code() == 1009


VIOLATIONS = {
    "corrupt": (frame(TEXT, b"\xff" * 20, rsv=4), 1007),
    "truncated": (frame(TEXT, deflate(HELLO)[:-1], rsv=4), 1007),
    "bomb": (frame(TEXT, BOMB, rsv=4), 1009),
    "bomb in a fragment": (frame(TEXT, BOMB, rsv=4, fin=False), 1009),
    "corrupt fragment": (frame(TEXT, b"\xff" * 20, rsv=4, fin=False), 1007),
    "not UTF-8": (frame(TEXT, deflate(b"\xff"), rsv=4), 1007),
    "too long": (frame(TEXT, rsv=4, raw=2**40), 1009),
    "part of a corrupt frame": (frame(TEXT, b"\xff" * 20, rsv=4, raw=30_000), 1007),
}


@each_row(("raw", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
@each_row(
    "flood",
    [
        b"\0" * 60_000,
        frame(TEXT, b"\xff" * 60_000, rsv=4),
        frame(TEXT, BOMB, rsv=4),
        frame(TEXT, b"x" * 60_000),
        frame(TEXT, deflate(HELLO), rsv=4, fin=False),
        frame(0, b"\xff" * 60_000),
    ],
    ids=range(6),
    make=edges,
)
def test_what_follows_a_violation_is_not_kept(make: Edges, raw: bytes, code: int, flood: bytes) -> None:
    """Findings P7: after its close a connection keeps almost nothing, however much the client sends and for however long."""
    edge = make(compression=True)
    client = open_deflated(edge).send(raw)
    assert client.close_code() == code
    for _ in range(100):
        client.send(flood)
    assert client.held < 2 * LIMIT
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.lost


@each_row(("raw", "code"), [row for name, row in VIOLATIONS.items() if name not in ("too long", "part of a corrupt frame")])
@each_row("together", [False, True], make=edges)
def test_the_answer_to_a_close_is_read(make: Edges, raw: bytes, code: int, together: bool) -> None:
    """Findings P7: a client that answers the close frame is not reset, even if it sent more before its answer."""
    edge = make(compression=True)
    end = b"" if raw[0] & 0x80 else frame(0, b"x")
    answer = end + frame(TEXT, deflate(HELLO), rsv=4) + frame(TEXT, b"\xff", rsv=4) + close(code)
    client = open_deflated(edge).send(*([raw + answer] if together else [raw, answer]))
    assert client.close_code() == code
    edge.advance(0)
    assert client.transport.lost
    assert not client.transport.aborted
