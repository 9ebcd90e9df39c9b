from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, fail

from tests.ws_kit import (
    ACCEPT,
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Client,
    Edges,
    SlowMethod,
    close,
    edges,
    frame,
    request,
    text,
)
from towerws.auth.base import Refused, Unavailable
from towerws.auth.open import Open
from towerws.errors import CloseReason
from towerws.handshake import Head
from towerws.identity import Identity


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


def listen(client: Client, *events: int | str, group: str = "job_events") -> Client:
    """Subscribe, and read the answer."""
    client.ask({group: list(events)})
    assert client.take()
    return client


# the opening handshake


def test_open_handshake(make: Edges) -> None:
    """A handshake on …/websocket is answered with 101 and the right key; the first frame is the dialect's welcome."""
    edge = make()
    for path in ("/websocket/", "/websocket", "/a/b/websocket/?token=x", "/x/websocket?"):
        client = edge.connect().send(request(path))
        assert client.status == 101
        assert f"Sec-WebSocket-Accept: {ACCEPT}\r\n".encode() in client.response
        assert b"Server" not in client.response
        assert client.take() == [{"accept": True, "user": 0}]


def test_subprotocol_chooses_dialect(make: Edges) -> None:
    """towerws.v1 is spoken when it is asked for, also among others; any other subprotocol gets Tower's dialect and is not confirmed."""
    edge = make()
    client = edge.connect().send(request(added=["Sec-WebSocket-Protocol: chat, towerws.v1"]))
    assert b"Sec-WebSocket-Protocol: towerws.v1\r\n" in client.response
    assert client.take()[0]["type"] == "welcome"
    other = edge.connect().send(request(added=["Sec-WebSocket-Protocol: chat"]))
    assert b"Sec-WebSocket-Protocol" not in other.response
    assert other.take() == [{"accept": True, "user": 0}]


def test_handshake_octet_by_octet_with_frames_behind_it(make: Edges) -> None:
    """However the octets are cut, the handshake and what is sent right behind it are understood."""
    edge = make()
    octets = request() + text({"groups": {"job_events": [1]}})
    client = edge.connect().send(*(octets[at : at + 1] for at in range(len(octets))))
    assert client.take()[1]["groups_current"] == ["job_events-1"]
    together = edge.connect().send(octets + frame(PING, b"x"))
    assert together.take()[1]["groups_current"] == ["job_events-1"]
    assert together.control(PONG) == [b"x"]


@pytest.mark.parametrize(
    ("octets", "status", "word"),
    [
        (request("/"), 404, b"/websocket/"),
        (request("/websocket/x"), 404, b"/websocket/"),
        (request("/websocket//"), 404, b"/websocket/"),
        (request(without=["Upgrade"]), 426, b"Upgrade: websocket\r\nSec-WebSocket-Version: 13"),
        (request(without=["Upgrade"]), 426, b"proxy_set_header"),
        (b"GET /websocket/ HTTP/1.0\r\nHost: a\r\n\r\n", 426, b"this is a websocket"),
        (request().replace(b"GET", b"POST"), 405, b"Allow: GET"),
        (request().replace(b"GET", b"HEAD"), 405, b"Allow: GET"),
        (request().replace(b"HTTP/1.1", b"HTTP/1.0"), 505, b"HTTP/1.1"),
        (request().replace(b"HTTP/1.1", b"HTTP/2.0"), 400, b"request line"),
        (request(without=["Host"]), 400, b"host"),
        (request(without=["Sec-WebSocket-Key"]), 400, b"websocket"),
        (request(without=["Sec-WebSocket-Version"]), 400, b"websocket"),
        (request().replace(b"Version: 13", b"Version: 8"), 400, b"websocket"),
        (request(without=["Connection"]), 400, b"websocket"),
        (request(added=["Content-Length: 5"]), 400, b"body"),
        (request(added=[f"X-{number}: y" for number in range(200)]), 431, b"100"),
        (b"\r\n\r\n", 400, b"request line"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, b"ASCII"),
    ],
)
def test_refusals_by_http_status(make: Edges, octets: bytes, status: int, word: bytes) -> None:
    """Whatever is not an opening handshake gets the fitting status, a text that helps, and the end of the connection."""
    edge = make()
    client = edge.connect().send(octets)
    assert client.status == status
    assert word in client.response
    assert b"Connection: close\r\n" in client.response
    assert b"Autobahn" not in client.response
    edge.advance(0.5)
    assert client.transport.lost
    assert edge.factory.refused == {status: 1}


def test_refusal_repeats_nothing(make: Edges) -> None:
    """A refusal never repeats what was sent: no token from the URL, no header, nor does the log."""
    edge = make()
    for octets in (
        request("/websocket/?token=canary", without=["Sec-WebSocket-Key"]),
        request("/canary"),
        request("/websocket/", added=["Origin: canary"]),
        request("/websocket/", added=["Sec-WebSocket-Extensions: permessage-deflate; canary=1"]),
        request("/websocket/", added=["canary"]),
    ):
        client = edge.connect().send(octets)
        assert b"canary" not in client.transport.received, client.transport.received


@pytest.mark.parametrize("octet", [*b"\x00\x01\x08\x0b\x0c\x0d\x0a\x0e\x1b\x1c\x1d\x1e\x1f\x7f\x80\x85\xa0\xff"])
@pytest.mark.parametrize("position", ["value", "name", "path"])
def test_no_header_smuggling(make: Edges, octet: int, position: str) -> None:
    """No octet that somebody might take for the end of a line gets through, wherever it stands; authentication never sees the head."""
    method = SlowMethod()
    edge = make(method)
    bad = chr(octet)
    octets = {
        "value": request(added=[f"User-Agent: x{bad}X-Forwarded-For: 203.0.113.9"]),
        "name": request(added=[f"X{bad}Forwarded-For: 203.0.113.9"]),
        "path": request(f"/websocket/?a={bad}b"),
    }[position]
    client = edge.connect().send(octets)
    assert client.status == 400
    assert method.handshakes == []


@pytest.mark.parametrize(
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
)
def test_no_second_opinion_of_a_head(make: Edges, lines: list[str]) -> None:
    """A header that decides something stands there once, and a line that two parsers could read in two ways not at all."""
    method = SlowMethod()
    client = make(method).connect().send(request(added=lines))
    assert client.status == 400
    assert method.handshakes == []


def test_endless_head(make: Edges) -> None:
    """A head is cut off with 431 at 16 KiB, and nothing behind that is kept, however much comes."""
    edge = make()
    client = edge.connect()
    client.transport.stalled = True
    client.send(b"GET /websocket/ HTTP/1.1\r\nX: ", b"a" * 16_000)
    assert client.transport.waiting == b""
    client.send(b"a" * 1000)
    assert b" 431 " in client.transport.waiting
    for _ in range(100):
        client.send(b"a" * 65536)
    assert held(client) < 1024
    assert client.transport.waiting.count(b"HTTP/1.1") == 1
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.lost, "a client that does not read its refusal is aborted"


def test_head_of_the_largest_size(make: Edges) -> None:
    """A head of 16 KiB is fine, one octet more is 431."""
    edge = make()
    for more, status in ((0, 101), (1, 431)):
        fill = edge.settings.head_octets - len(request(added=["X: "])) + 4 + more
        assert edge.connect().send(request(added=["X: " + "a" * fill])).status == status


def test_slow_head_is_cut(make: Edges) -> None:
    """A handshake that is not finished after `handshake_s` is cut, whatever trickles in."""
    edge = make(handshake_s=15)
    client = edge.connect()
    for at in range(30):
        client.send(request()[at : at + 1])
        edge.advance(0.5)
    edge.advance(1)
    assert client.transport.lost


# authentication and the opening


@pytest.mark.parametrize(("error", "status"), [(Refused("canary"), 403), (Unavailable("canary"), 503), (KeyError("canary"), 500)])
def test_failing_authentication(make: Edges, error: Exception, status: int) -> None:
    """A bad credential is a 403, one that can't be checked a 503, our own fault a 500 with its traceback in the log only."""

    class Failing(Open):
        def authenticate(self, head: Head, address: str) -> Deferred[Identity]:
            return fail(error)

    class Raising(Open):
        def authenticate(self, head: Head, address: str) -> Deferred[Identity]:
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
    """A credential that is accepted after the handshake's time was up opens nothing (F3); asking is cancelled with the connection."""
    method = SlowMethod(slow_handshake=True)
    edge = make(method, handshake_s=15)
    client = edge.connect().send(request())
    edge.advance(16)
    assert client.transport.lost
    assert method.cancelled == 1
    assert edge.factory.opened == 0

    class Deaf(SlowMethod):
        def authenticate(self, head: Head, address: str) -> Deferred[Identity]:
            asked: Deferred[Identity] = Deferred(lambda _: None)
            self.handshakes.append((head, asked))
            return asked

    deaf = Deaf()
    edge = make(deaf)
    client = edge.connect().send(request())
    client.transport.abortConnection = lambda: None  # type: ignore[method-assign]
    edge.advance(16)  # the state is CLOSED, the transport not yet lost
    deaf.handshakes[0][1].callback(Identity(7))
    edge.advance(0)
    assert client.transport.received == b""
    assert edge.factory.opened == 0


def test_hang_up_while_authenticating(make: Edges) -> None:
    """A client that is gone while its credential is checked is not asked about any more."""
    method = SlowMethod(slow_handshake=True)
    edge = make(method)
    client = edge.connect().send(request())
    client.hang_up()
    assert method.cancelled == 1
    assert edge.hub.members == {}


def test_one_handshake_per_connection(make: Edges) -> None:
    """A second request behind the first is not read as one (F4): one question, one 101, and the identity of the first."""
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


def test_early_octets_are_bounded(make: Edges) -> None:
    """While the credential is checked at most 16 KiB are kept; a client that sends a MiB is cut, and asking cancelled."""
    method = SlowMethod(slow_handshake=True)
    edge = make(method)
    client = edge.connect().send(request(), *[b"x" * 65536] * 16)
    assert held(client) <= edge.settings.head_octets
    edge.advance(0)
    assert client.transport.lost
    assert method.cancelled == 1
    at_once = edge.connect().send(request() + b"x" * 1024**2)
    assert held(at_once) <= edge.settings.head_octets
    edge.advance(0)
    assert at_once.transport.lost
    assert len(method.handshakes) <= 2


def test_early_frames_are_followed(make: Edges) -> None:
    """A request sent before the 101 (a client in a hurry) is answered after it."""
    method = SlowMethod(slow_handshake=True)
    edge = make(method)
    client = edge.connect().send(request(), text({"groups": {}}))
    method.handshakes[0][1].callback(Identity(7))
    method.questions[0][1].callback({})
    assert len(client.take()) == 2


def test_unix_socket(make: Edges) -> None:
    """A client on a UNIX socket (a proxy on the same machine) has no address, and is served like any other."""
    edge = make()
    client = edge.connect()
    client.transport.getPeer = client.transport.getHost = lambda: UNIXAddress(None)  # type: ignore[assignment,method-assign,return-value]
    client.send(request())
    assert client.take() == [{"accept": True, "user": 0}]
    listen(client, 1)
    client.hang_up()
    assert edge.hub.members == {}


def test_no_compression(make: Edges) -> None:
    """Compression is never agreed to, and a compressed frame is a violation."""
    edge = make()
    client = edge.connect().send(request(added=["Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"]))
    assert client.status == 101
    assert b"Sec-WebSocket-Extensions" not in client.response
    client.send(frame(TEXT, b"x", rsv=4))
    assert client.close_code() == 1002


# closing


def test_client_closes(make: Edges) -> None:
    """A client's close is answered with its echo or 1000, and the connection ends."""
    edge = make()
    client = listen(edge.open(), 1)
    client.send(close())
    assert client.close_code() == 1000
    edge.advance(0)
    assert client.transport.lost


def test_close_then_stall(make: Edges) -> None:
    """A client that closes and does not read is out of the hub at once, its backlog grows no more, and it is aborted (F5)."""
    edge = make()
    client = listen(edge.open(), 1)
    client.transport.stalled = True
    edge.publish("job_events.1", {"x": "y" * 100_000})
    client.send(close())
    assert edge.hub.members == {}
    waiting = len(client.transport.waiting)
    edge.publish("job_events.1", {"x": "y" * 100_000})
    assert len(client.transport.waiting) == waiting
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.aborted
    assert client.transport.lost


def test_talks_but_never_reads(make: Edges) -> None:
    """A client that sends and never reads is fed no more than the bound, and dropped when it answers no ping (F6)."""
    edge = make(ping_s=20, pong_s=30)
    client = listen(edge.open(), 1)
    client.transport.stalled = True
    bound = edge.settings.backlog_octets + 65536 + 40_000
    for _ in range(51 * 4):
        client.send(frame(PONG))
        edge.publish("job_events.1", {"x": "y" * 30_000})
        assert len(client.transport.waiting) < bound
        edge.advance(0.25)
    edge.advance(1)
    assert client.transport.lost


def test_answering_pings_stays(make: Edges) -> None:
    """A client that answers the pings stays for ever; each ping has octets that nobody can guess."""
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
    assert len(set(answered)) == len(answered)


@pytest.mark.parametrize("reason", list(CloseReason))
@pytest.mark.parametrize("v1", [False, True])
def test_server_closes(make: Edges, reason: CloseReason, v1: bool) -> None:
    """The server's close has the reason's code, never 1000; v1 clients are told before, whether to come back and when."""
    edge = make()
    client = listen(edge.open(v1=v1), 1)
    client.connection.end(reason)
    assert edge.hub.members == {}
    messages = client.take()
    assert client.close_code() == reason.value.code != 1000
    if v1:
        (bye,) = messages
        assert (bye["type"], bye["reason"]) == ("bye", reason.value.reason)
        assert (500 <= bye["reconnect_after_ms"] <= 5000) if reason.value.reconnect else bye["reconnect_after_ms"] == 0
    else:
        assert messages == []
    client.connection.end(reason)
    client.send(close(reason.value.code))
    edge.advance(0)
    assert client.transport.lost


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
    """What comes between the server's close and its answer is bounded: neither kept nor looked at without end."""
    edge = make()
    for flood in (frame(TEXT, b"x" * 60_000, fin=False), frame(9, octets=2**40) + b"x" * 60_000, text("x" * 60_000)):
        client = edge.open()
        client.connection.end(CloseReason.RESTART)
        for _ in range(200):
            client.send(flood)
        assert held(client) < 128 * 1024
        edge.advance(0)
        assert client.transport.lost or not client.transport.reading, "it is not looked at for the whole linger time"
        edge.advance(edge.settings.linger_s + 0.5)
        assert client.transport.lost


def test_requests_under_way_at_the_servers_close(make: Edges) -> None:
    """Requests that were under way when the server closed are dropped, and the answer to the close is still taken as one."""
    edge = make()
    client = edge.open()
    client.connection.end(CloseReason.RESTART)
    client.ask({"job_events": [1]}).ask({"job_events": [2]})
    assert edge.hub.topics == 0
    client.send(close(1012))
    edge.advance(0)
    assert client.transport.lost


def test_nothing_follows_a_close(make: Edges) -> None:
    """After a close frame nothing is sent, whatever is published or answered late."""
    method = SlowMethod()
    edge = make(method)
    client = edge.open().ask({"job_events": [1]})
    client.connection.end(CloseReason.RESTART)
    assert method.cancelled == 1
    edge.publish("job_events.1", {})
    assert client.close_code() == 1012
    assert edge.hub.topics == 0


# what a client may send


def test_size_limits_are_one_way(make: Edges) -> None:
    """64 KiB in are taken, one octet more in one frame or in several is 1009; 1 MiB out arrives whole."""
    edge = make()
    limit = edge.settings.message_octets
    assert "error" in edge.open().send(text("x" * limit)).take()[0]
    assert edge.open().send(text("x" * (limit + 1))).close_code() == 1009
    in_two = edge.open().send(frame(TEXT, b"x" * limit, fin=False), frame(CONTINUATION, b"x"))
    assert in_two.close_code() == 1009
    announced = edge.open().send(frame(TEXT, octets=2**40))
    assert announced.close_code() == 1009
    client = listen(edge.open(), 1)
    payload = {"x": "y" * (1024**2 - 100)}
    edge.publish("job_events.1", payload)
    assert client.take() == [payload]


def test_too_large_is_v1s_bye(make: Edges) -> None:
    """A v1 client whose message is too large is told so before the close, as before every other."""
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


@pytest.mark.parametrize("payload", [b"", b"ab"])
def test_fragment_flood(make: Edges, payload: bytes) -> None:
    """More than 64 fragments in a message are 1008, also empty ones, and the rest of the flood is not kept."""
    edge = make()
    client = edge.open().send(frame(TEXT, payload, fin=False), *[frame(CONTINUATION, payload, fin=False)] * 63)
    assert client.close_code() is None
    client.send(frame(CONTINUATION, payload, fin=False))
    assert client.close_code() == 1008
    client.send(*[frame(CONTINUATION, payload, fin=False) * 1000] * 1000)
    assert held(client) < 64 * 1024
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.lost


def test_64_fragments_are_taken(make: Edges) -> None:
    """A message of exactly 64 fragments is fine."""
    client = make().open().send(frame(TEXT, b"", fin=False), *[frame(CONTINUATION, b"", fin=False)] * 62)
    client.send(frame(CONTINUATION, b'{"groups":{}}'))
    assert client.take()[0]["groups_current"] == []


def test_message_never_finished(make: Edges) -> None:
    """A message has 10 s from its first octet to its last: one that trickles is 1008."""
    edge = make()
    for start in (frame(TEXT, b"x" * 100)[:50], frame(TEXT, b"x", fin=False), frame(TEXT, b"x")[:1]):
        client = edge.open().send(start)
        edge.advance(9)
        assert client.close_code() is None
        edge.advance(1.5)
        assert client.close_code() == 1008
        edge.advance(edge.settings.linger_s + 0.5)


def test_busy_client_is_not_taken_for_a_slow_one(make: Edges) -> None:
    """A client whose reads always end within a message is fine as long as each message is finished in time."""
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
    """Pings beyond burst and rate are 1008 at once; pongs stay few, and the rest of the flood is not even looked at."""
    edge = make()
    client = edge.open()
    client.send(frame(PING, b"x" * 125) * 500)
    assert client.close_code() == 1008
    assert len(client.control(PONG)) == edge.settings.controls_burst
    assert not client.transport.reading, "a flooder is not listened to any more"
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.lost


def test_pings_at_the_rate(make: Edges) -> None:
    """20 pings a second are answered for ever."""
    edge = make()
    client = edge.open()
    for _ in range(60):
        client.send(frame(PING) * 10)
        edge.advance(0.5)
    assert client.close_code() is None
    assert len(client.control(PONG)) == 600


def test_unsolicited_pongs(make: Edges) -> None:
    """A pong that nobody asked for is fine (RFC 6455 section 5.5.3), a flood of them is 1008."""
    edge = make()
    client = edge.open().send(frame(PONG, b"x"))
    listen(client, 1)
    client.send(frame(PONG) * 100)
    assert client.close_code() == 1008


@pytest.mark.parametrize(
    ("octets", "code"),
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
        (close(999), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),
        (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
    ],
)
def test_violations(make: Edges, octets: bytes, code: int) -> None:
    """A violation of RFC 6455 is closed with its code, and the connection is gone after the linger time at the latest."""
    edge = make()
    client = listen(edge.open(), 1).send(octets)
    assert client.close_code() == code
    assert edge.hub.members == {}
    edge.advance(edge.settings.linger_s + 0.5)
    assert client.transport.lost


CODES = {None, 1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, *range(3000, 5000)}


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=50),
            st.builds(frame, st.integers(0, 15), st.binary(max_size=200), fin=st.booleans(), rsv=st.integers(0, 7), masked=st.booleans()),
            st.builds(frame, st.sampled_from([TEXT, BINARY, CONTINUATION, CLOSE, PING]), octets=st.integers(0, 2**63 - 1)),
            st.builds(text, st.one_of(st.text(max_size=50), st.just({"groups": {"job_events": [1]}}))),
            st.just(request()),
        ),
        max_size=8,
    ),
    st.booleans(),
    st.integers(1, 300),
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_random_octets(pieces: list[bytes], opened: bool, chunk: int) -> None:
    """Whatever octets come, before or after the handshake and however cut: no exception, no leak, only known close codes."""
    with edges() as make:
        edge = make()
        client = edge.open() if opened else edge.connect()
        octets = b"".join(pieces)
        client.send(*(octets[at : at + chunk] for at in range(0, len(octets), chunk)))
        if client.status == 101:
            client.take()
            assert client.close_code() in CODES
        edge.advance(31, step=1)


def held(client: Client) -> int:
    """The octets that the server holds of what a client sent."""
    connection = client.connection
    found = len(connection.data) + len(connection._head or b"") + len(connection._early)
    for name in ("message_data", "frame_data", "control_frame_data"):
        found += sum(len(piece) + 8 for piece in getattr(connection, name, None) or [])
    return found


def test_failure_of_our_own_ends_the_connection(make: Edges) -> None:
    """When a connection can't be opened for a fault of ours, it is logged and ended, and not left half open."""
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


def test_every_open_and_close_is_counted(make: Edges) -> None:
    """What was opened and closed is counted, whatever way it went."""
    edge = make()
    first, second, third = edge.open(), edge.open(), edge.open()
    first.hang_up()
    second.send(close())
    third.connection.end(CloseReason.RESTART)
    edge.advance(edge.settings.linger_s + 0.5)
    assert (edge.factory.opened, edge.factory.closed) == (3, 3)


def test_failure_is_a_failure() -> None:
    """The leak check of these tests notices what is logged with a traceback."""
    with pytest.raises(AssertionError, match="unhandled"), edges():
        fail(ValueError("unhandled"))
