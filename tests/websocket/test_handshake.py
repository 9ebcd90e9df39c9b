from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, fail

from tests.kit.rows import each_row
from tests.kit.ws_kit import (
    ACCEPT,
    KEY,
    PING,
    PONG,
    Edges,
    SlowMethod,
    edges,
    frame,
    request,
    text,
)
from towerws.auth.base import Refused, Unavailable
from towerws.auth.chain import Open
from towerws.core.http_head import Head
from towerws.core.identity import Identity


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


def test_open_handshake(make: Edges) -> None:
    """A handshake on …/websocket is answered with 101 and the right key. The first frame is the dialect's welcome."""
    edge = make()
    for path in ("/websocket/", "/websocket", "/a/b/websocket/?token=x", "/x/websocket?"):
        client = edge.connect().send(request(path))
        assert client.status == 101
        assert f"Sec-WebSocket-Accept: {ACCEPT}\r\n".encode() in client.response
        assert b"Server" not in client.response
        assert client.take() == [{"accept": True, "user": 0}]


def test_subprotocol_chooses_dialect(make: Edges) -> None:
    """towerws.v1 is spoken when the client offers it, also among others. Any other subprotocol gets Tower's dialect, unconfirmed."""
    edge = make()
    client = edge.connect().send(request(added=["Sec-WebSocket-Protocol: chat, towerws.v1"]))
    assert b"Sec-WebSocket-Protocol: towerws.v1\r\n" in client.response
    assert client.take()[0]["type"] == "welcome"
    for among in (
        ["Sec-WebSocket-Protocol: towerws.v2, ,towerws.v1,"],
        ["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: towerws.v1"],
    ):
        assert edge.connect().send(request(added=among)).take()[0]["type"] == "welcome"
    # Findings P10: a client that needs v1 must look at the chosen subprotocol.
    for name in (
        "chat",
        "towerws.v2",
        "TOWERWS.V1",
        "towerws.v1.1",
        "towerws.v",
        "xtowerws.v1",
        "towerws.v2, chat",
        "",
        ",",
        "towerws.v1\xa0",
    ):
        other = edge.connect().send(request(added=[f"Sec-WebSocket-Protocol: {name}"]))
        assert b"Sec-WebSocket-Protocol" not in other.response
        assert other.take() == [{"accept": True, "user": 0}]


def test_handshake_byte_by_byte_with_frames_behind_it(make: Edges) -> None:
    """The handshake and the frames right behind it are understood, however the bytes are cut."""
    edge = make()
    raw = request() + text({"groups": {"job_events": [1]}})
    client = edge.connect().send(*(raw[at : at + 1] for at in range(len(raw))))
    assert client.take()[1]["groups_current"] == ["job_events-1"]
    together = edge.connect().send(raw + frame(PING, b"x"))
    assert together.take()[1]["groups_current"] == ["job_events-1"]
    assert together.control(PONG) == [b"x"]


@each_row(
    ("raw", "status", "word"),
    [
        (request("/"), 404, b"/websocket/"),
        (request("/websocket/x"), 404, b"/websocket/"),
        (request("/websocket//"), 404, b"/websocket/"),
        (request(without=["Upgrade"]), 426, b"Upgrade: websocket\r\nSec-WebSocket-Version: 13"),
        (request(without=["Upgrade"]), 426, b"proxy_set_header"),
        (b"GET /websocket/ HTTP/1.0\r\nHost: a\r\nSec-WebSocket-Key: a\r\n\r\n", 426, b"this is a websocket"),
        (request().replace(b"GET", b"POST"), 405, b"Allow: GET"),
        (request().replace(b"GET", b"HEAD"), 405, b"Allow: GET"),
        (request().replace(b"HTTP/1.1", b"HTTP/1.0"), 505, b"HTTP/1.1"),
        (request().replace(b"HTTP/1.1", b"HTTP/2.0"), 400, b"request line"),
        (request(without=["Host"]), 400, b"host"),
        (request(without=["Sec-WebSocket-Key"]), 400, b"websocket"),
        (request(without=["Sec-WebSocket-Version"]), 400, b"websocket"),
        (request().replace(b"Version: 13", b"Version: 8"), 426, b"Sec-WebSocket-Version: 13"),
        (request().replace(KEY.encode(), b"c2hvcnQ="), 400, b"key"),
        (request().replace(b"tower.example.com", b"tower.example.com:x"), 400, b"host"),
        (request(added=["Sec-WebSocket-Protocol: towerws.v1, towerws.v1"]), 400, b"twice"),
        (request(without=["Connection"]), 400, b"websocket"),
        (request(added=["Content-Length: 5"]), 400, b"body"),
        (request(added=[f"X-{number}: y" for number in range(200)]), 431, b"100"),
        (b"\r\n\r\n", 400, b"request line"),
        (b"\x80\x2e\x01\x03\x01", 400, b"request line"),
        (b"\r\n" + request(without=["Host"]), 400, b"host"),
        (request(added=["Sec-WebSocket-Extensions: ;;;"]), 400, b"extensions"),
        (request(added=['Sec-WebSocket-Extensions: foo; bar="a, permessage-deflate, b"']), 400, b"extensions"),
        (request("http://user@tower.example.com/websocket/"), 400, b"request line"),
        (request("http://tower.example.com:x/websocket/"), 400, b"host"),
        (request("http://tower.example.com"), 404, b"/websocket/"),
    ],
    make=edges,
)
def test_refusals_by_http_status(make: Edges, raw: bytes, status: int, word: bytes) -> None:
    """A request that is not an opening handshake gets the fitting status and a helpful text. Then the connection ends."""
    edge = make()
    client = edge.connect().send(raw)
    assert client.status == status
    assert word in client.response
    assert b"Connection: close\r\n" in client.response
    assert b"Autobahn" not in client.response
    edge.advance(0.5)
    assert client.transport.lost
    assert edge.factory.refused == {status: 1}


def test_refusal_repeats_nothing(make: Edges) -> None:
    """Neither the answer nor the log repeats anything that was sent: no token from the URL, and no header."""
    edge = make()
    for raw in (
        request("/websocket/?token=canary", without=["Sec-WebSocket-Key"]),
        request("/canary"),
        request("/websocket/", added=["Origin: canary"]),
        request("/websocket/", added=["Sec-WebSocket-Extensions: permessage-deflate; canary=1"]),
        request("/websocket/", added=["canary"]),
    ):
        client = edge.connect().send(raw)
        assert b"canary" not in client.transport.received, client.transport.received


@each_row(
    "raw",
    [
        request("http://tower.example.com/websocket/"),
        request("wss://TOWER.example.com:443/api/websocket?token=x"),
        b"\r\n" + request(),
        request(added=["Upgrade: websocket"]),
        request(without=["Host"], added=["Host: tower.example.com:"]),
        request(added=["Cookie: city=M\u00fcnchen"]),
        request().replace(b"tower.example.com", b"tower.example.com\r\ncf-ipcity: Montr\xc3\xa9al"),
        request(added=["X-SSL-Client-S-DN: CN=\u00e9\u0085\u00a0"]),
        request(added=["Sec-WebSocket-Protocol: \u00e9"]),
        request(added=["Sec-WebSocket-Extensions: foo", "Sec-WebSocket-Extensions: bar; baz, permessage-deflate"]),
        request(added=["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: superchat"]),
        request(without=["Connection"], added=["Connection: keep-alive", "Connection: Upgrade"]),
    ],
    ids=range(12),
    make=edges,
)
def test_heads_that_a_strict_server_takes(make: Edges, raw: bytes) -> None:
    """Findings P2 and P3: heads that RFC 9110 and 9112 allow are accepted, in one piece and byte by byte."""
    edge = make()
    assert edge.connect().send(raw).status == 101
    assert edge.connect().send(*(raw[at : at + 1] for at in range(len(raw)))).status == 101


@each_row("path", ["/websocket/", "/", "/favicon.ico"])
@each_row("lead", [b"", b"\r\n"], make=edges)
def test_head_gets_a_head_only(make: Edges, path: str, lead: bytes) -> None:
    """Findings P3: the answer to HEAD has no body."""
    edge = make(limits={"per_address": 2})
    client = edge.connect().send(lead + request(path).replace(b"GET", b"HEAD"))
    assert client.status in (404, 405)
    assert client.response.endswith(b"\r\n\r\n")
    edge.open()
    edge.open()
    too_many = edge.connect().send(request().replace(b"GET", b"HEAD"))
    assert too_many.status == 503
    assert too_many.response.endswith(b"\r\n\r\n")


@each_row("first", [1, 2, 5, 200])
@each_row("version", [0, 1, 3], make=edges)
def test_a_tls_hello_is_turned_away_at_once(make: Edges, version: int, first: int) -> None:
    """Findings P11: the connection is closed without an answer, which the client could not read, however its first bytes are cut."""
    edge = make()
    hello = b"\x16\x03%c\x02\x00\x01\x00\x01\xfc\x03\x03" % version + bytes(range(256)) * 2
    client = edge.connect().send(hello[:first], hello[first:])
    assert client.transport.closing
    assert client.transport.received == b""
    assert edge.factory.refused_for == {"tls": 1}
    edge.advance(0)
    assert client.transport.lost


@each_row("byte", [*range(0x80, 0x100)], make=edges)
def test_bytes_beyond_ascii_stay_in_their_value(make: Edges, byte: int) -> None:
    """Promise 30: a byte that some parser takes for a line end ends no line here. It stays in its value."""
    method = SlowMethod()
    client = make(method).connect().send(request(added=[f"User-Agent: x{chr(byte)}X-Forwarded-For: 203.0.113.9{chr(byte)}y: z"]))
    assert client.status == 101
    ((head, _),) = method.handshakes
    assert head.headers["user-agent"].encode("latin-1") == b"x%cX-Forwarded-For: 203.0.113.9%cy: z" % (byte, byte)
    assert head.headers.keys().isdisjoint({"x-forwarded-for", "y"})


@each_row(
    ("byte", "position"),
    [
        *[(byte, "value") for byte in b"\x00\x01\x08\x0b\x0c\x0d\x0a\x0e\x1b\x1c\x1d\x1e\x1f\x7f"],
        *[
            (byte, position)
            for byte in b"\x00\x01\x08\x0b\x0c\x0d\x0a\x0e\x1b\x1c\x1d\x1e\x1f\x7f\x80\x85\xa0\xff"
            for position in ("name", "path", "host")
        ],
    ],
    make=edges,
)
def test_no_header_smuggling(make: Edges, byte: int, position: str) -> None:
    """Promise 30: a byte that some parser may take for a line end is refused. Authentication never sees the head."""
    method = SlowMethod()
    edge = make(method)
    bad = chr(byte)
    raw = {
        "value": request(added=[f"User-Agent: x{bad}X-Forwarded-For: 203.0.113.9"]),
        "name": request(added=[f"X{bad}Forwarded-For: 203.0.113.9"]),
        "path": request(f"/websocket/?a={bad}b"),
        "host": request(without=["Host"], added=[f"Host: tower.example.com{bad}X-Forwarded-For: 203.0.113.9"]),
    }[position]
    client = edge.connect().send(raw)
    assert client.status == 400
    assert method.handshakes == []


@each_row(
    "lines",
    [
        ["Host: evil.example"],
        ["Origin: https://a.example", "Origin: https://b.example"],
        ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="],
        ["Authorization: Bearer a", "authorization: Bearer b"],
        ["X-Folded: a", " b"],
        ["X-Space : a"],
        [": a"],
    ],
    make=edges,
)
def test_no_second_opinion_of_a_head(make: Edges, lines: list[str]) -> None:
    """A header that decides something may occur only once. A line that two parsers could read differently is refused."""
    method = SlowMethod()
    client = make(method).connect().send(request(added=lines))
    assert client.status == 400
    assert method.handshakes == []


def test_endless_head(make: Edges) -> None:
    """A head is cut off with 431 at 16 KiB. Nothing behind that is kept, however much comes."""
    edge = make()
    client = edge.connect()
    client.transport.stalled = True
    client.send(b"GET /websocket/ HTTP/1.1\r\nX: ", b"a" * 16_000)
    assert client.transport.waiting == b""
    client.send(b"a" * 1000)
    assert b" 431 " in client.transport.waiting
    for _ in range(100):
        client.send(b"a" * 65536)
    assert client.held < 1024
    assert client.transport.waiting.count(b"HTTP/1.1") == 1
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.lost, "a client that does not read its refusal is aborted"


def test_head_of_the_largest_size(make: Edges) -> None:
    """A head of 16 KiB is accepted. One byte more gets 431."""
    edge = make()
    for more, status in ((0, 101), (1, 431)):
        fill = edge.settings.head_bytes - len(request(added=["X: "])) + 4 + more
        assert edge.connect().send(request(added=["X: " + "a" * fill])).status == status


def test_slow_head_is_cut(make: Edges) -> None:
    """A handshake that is not finished after `handshake_s` is cut, even if bytes still trickle in."""
    edge = make(handshake_s=15)
    client = edge.connect()
    for at in range(30):
        client.send(request()[at : at + 1])
        edge.advance(0.5)
    edge.advance(1)
    assert client.transport.lost


# Authentication and the opening


@each_row(("error", "status"), [(Refused("canary"), 403), (Unavailable("canary"), 503), (KeyError("canary"), 500)], make=edges)
def test_failing_authentication(make: Edges, error: Exception, status: int) -> None:
    """A bad credential gets a 403. One that can't be checked gets a 503. A bug gets a 500, and its traceback is only in the log."""

    class Failing(Open):
        def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
            return fail(error)

    class Raising(Open):
        def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
            raise error

    for method in (Failing(), Raising()):
        edge = make(method)
        client = edge.connect().send(request())
        assert client.status == status
        assert b"canary" not in client.response
        edge.advance(0.5)
        assert client.transport.lost
        assert len(make.failures()) == (1 if status == 500 else 0)


def test_late_authentication_opens_nothing(make: Edges) -> None:
    """F3: a credential accepted after the handshake's timeout opens nothing. The check is cancelled with the connection."""
    method = SlowMethod(slow_handshake=True)
    edge = make(method, handshake_s=15)
    client = edge.connect().send(request())
    edge.advance(16)
    assert client.transport.lost
    assert method.cancelled == 1
    assert edge.factory.opened == 0

    class Deaf(SlowMethod):
        def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
            asked: Deferred[Identity | None] = Deferred(lambda _: None)
            self.handshakes.append((head, asked))
            return asked

    deaf = Deaf()
    edge = make(deaf)
    client = edge.connect().send(request())
    client.transport.abortConnection = lambda: None  # type: ignore[method-assign]
    edge.advance(16)  # the state is CLOSED, the transport is still connected
    deaf.handshakes[0][1].callback(Identity(7))
    edge.advance(0)
    assert client.transport.received == b""
    assert edge.factory.opened == 0


def test_hang_up_while_authenticating(make: Edges) -> None:
    """The check is cancelled when its client disconnects."""
    method = SlowMethod(slow_handshake=True)
    edge = make(method)
    client = edge.connect().send(request())
    client.hang_up()
    assert method.cancelled == 1
    assert edge.hub.subscribers == {}


def test_one_handshake_per_connection(make: Edges) -> None:
    """F4: bytes behind the first request are not read as a second one. There is one check, one 101, and the identity of the first."""
    method = SlowMethod(slow_handshake=True)
    edge = make(method)
    client = edge.connect().send(request("/a/websocket/"))
    client.send(request("/b/websocket/", v1=True))
    assert [head.path for head, _ in method.handshakes] == ["/a/websocket/"]
    method.handshakes[0][1].callback(Identity(7))
    assert client.transport.received.count(b"HTTP/1.1 101 ") == 1
    assert client.take() == [{"accept": True, "user": 7}]
    assert client.close_code() == 1002, "the second request is no frame"
    assert edge.factory.opened == 1


def test_early_bytes_are_bounded(make: Edges) -> None:
    """While the credential is checked at most 16 KiB are kept. A client that sends 1 MiB is cut, and its check is cancelled."""
    method = SlowMethod(slow_handshake=True)
    edge = make(method)
    client = edge.connect().send(request(), *[b"x" * 65536] * 16)
    assert client.held <= edge.settings.head_bytes
    edge.advance(0)
    assert client.transport.lost
    assert method.cancelled == 1
    at_once = edge.connect().send(request() + b"x" * 1024**2)
    assert at_once.held <= edge.settings.head_bytes
    edge.advance(0)
    assert at_once.transport.lost
    assert len(method.handshakes) <= 2


def test_early_frames_are_followed(make: Edges) -> None:
    """A request that an eager client sends before the 101 is answered after it."""
    method = SlowMethod(slow_handshake=True)
    edge = make(method)
    client = edge.connect().send(request(), text({"groups": {}}))
    method.handshakes[0][1].callback(Identity(7))
    method.questions[0][1].callback({})
    assert len(client.take()) == 2


def test_unix_socket(make: Edges) -> None:
    """A client on a UNIX socket, such as a proxy on the same machine, has no address. It is served like any other."""
    edge = make()
    client = edge.connect()
    client.transport.getPeer = client.transport.getHost = lambda: UNIXAddress(None)  # type: ignore[assignment,method-assign,return-value]
    client.send(request())
    assert client.take() == [{"accept": True, "user": 0}]
    client.listen(1)
    client.hang_up()
    assert edge.hub.subscribers == {}


def test_failure_of_our_own_ends_the_connection(make: Edges) -> None:
    """If a bug keeps a connection from opening, it is logged. The connection ends, and is not left half open."""
    edge = make()

    def broken(*arguments: object) -> None:
        raise RuntimeError("ours")

    edge.hub.join = broken  # type: ignore[assignment,method-assign]
    client = edge.connect().send(request())
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.lost
    assert edge.factory.connections == {}
    (logged,) = make.failures()
    assert "ours" in logged
