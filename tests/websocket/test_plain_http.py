"""Event streams, pages of history and the client's files, in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionLost

from tests.auth.tower_kit import logged
from tests.kit.client_file import BUILT, SOURCE, STATIC, first_line
from tests.kit.event_stream import Event, EventReader
from tests.kit.rows import each_row
from tests.kit.ws_kit import WALL, Client, Edge, Edges, SlowMethod, edges, request
from towerws.auth.base import Refused, Throttled
from towerws.auth.chain import Open
from towerws.core.errors import CloseReason
from towerws.core.http_head import Head
from towerws.core.identity import Identity, Revocation
from towerws.core.settings import AccessSettings, GroupSettings
from towerws.core.topics import GroupTable
from towerws.websocket.replay import ReplayBounds

EVENTS = "/events?topic=job_events.1"
HISTORY = "/history?topic=job_events.1"
SITE = "https://portal.example.com"
LISTED = AccessSettings(origins=(SITE,))


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


def get(path: str, *lines: str, method: str = "GET", host: str = "tower.example.com") -> bytes:
    """A plain request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


class Stream:
    """A client of an edge that reads events."""

    def __init__(self, edge: Edge, path: str = EVENTS, *lines: str) -> None:
        self.client: Client = edge.connect()
        self.reader = EventReader()
        self._read = 0
        self.client.send(get(path, *lines))

    @property
    def head(self) -> dict[str, str]:
        """The answer's headers, in lower case."""
        return headers(self.client)

    def take(self) -> list[Event]:
        """The events since the last call."""
        received = bytes(self.client.transport.received)
        if self._read == 0:
            assert received.startswith(b"HTTP/1.1 200 "), received
            self._read = received.find(b"\r\n\r\n") + 4
        data, self._read = received[self._read :], len(received)
        return self.reader.feed(data)

    def kinds(self) -> list[str]:
        """The kinds of the events since the last call."""
        return [event.kind for event in self.take()]


def headers(client: Client) -> dict[str, str]:
    """The headers of an answer, in lower case."""
    head = bytes(client.transport.received).partition(b"\r\n\r\n")[0].decode()
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}


def status(client: Client) -> int:
    """The status of an answer."""
    return int(client.transport.received[9:12])


def body(client: Client) -> bytes:
    """The body of an answer."""
    return bytes(client.transport.received).partition(b"\r\n\r\n")[2]


class Named(Open):
    """Every client is the same user, who may hear only some topics."""

    def __init__(self, *allowed: str, expires_at: float | None = None) -> None:
        self.allowed = set(allowed) or {"job_events.1"}
        self.expires_at = expires_at
        self.problem: Exception | None = None

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        if self.problem is not None:
            raise self.problem
        return succeed(Identity(7, "open", session="5e55", cookie=True, expires_at=self.expires_at))

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires at once."""
        return succeed({topic: "not allowed" for topic in topics if topic not in self.allowed})


class Nobody(Open):
    """No client has a credential, but one may follow in a message."""

    takes_tokens = True

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(None)

    def identify(self, token: str, address: str) -> Deferred[Identity]:
        """No test here sends a token."""
        raise AssertionError("a token was looked at")


# Streams


def test_a_stream_from_its_first_event_to_its_last(make: Edges) -> None:
    """Welcome, subscribed and deliveries come as events, and the head tells proxies to hold nothing back."""
    edge = make(auth=Named())
    stream = Stream(edge)
    welcome, subscribed = stream.take()
    assert (welcome.kind, welcome.frame["user"], welcome.id) == ("welcome", 7, None)
    assert welcome.retry is not None, "a reader knows from the first event on how long to wait"
    assert 500 <= welcome.retry <= 5000
    assert (subscribed.kind, subscribed.frame["groups_current"], subscribed.frame["recovered"]) == ("subscribed", ["job_events.1"], None)
    assert subscribed.id == subscribed.frame["position"] == edge.hub.position
    position = edge.publish("job_events.1", {"n": 1})
    edge.publish("job_events.2", {"n": 2})
    (event,) = stream.take()
    assert (event.kind, event.id) == ("message", position)
    assert event.frame == {"group": "job_events", "event": "1", "payload": {"n": 1}}
    assert stream.head == {
        "content-type": "text/event-stream",
        "cache-control": "no-store, no-transform",
        "x-accel-buffering": "no",
        "x-content-type-options": "nosniff",
        "vary": "Origin",
        "connection": "close",
    }
    assert edge.factory.opened == 1
    stream.client.hang_up()
    assert edge.factory.closed_for == {"client": 1}
    Stream(edge).client.transport.lose(ConnectionLost())
    assert edge.factory.closed_for == {"client": 1, "lost": 1}, "a reset, or an end by TCP_USER_TIMEOUT"


def test_streams_and_websockets_share_what_they_get(make: Edges) -> None:
    """A delivery is framed once for all streams, and comes in the same order as to a websocket."""
    edge = make()
    streams = [Stream(edge) for _ in range(3)]
    websocket = edge.open(v1=True).listen(1)
    for stream in streams:
        stream.take()
    for n in range(5):
        edge.publish("job_events.1", {"n": n})
    frames = [frame["payload"]["n"] for frame in websocket.take()]
    for stream in streams:
        assert [event.frame["payload"]["n"] for event in stream.take()] == frames == list(range(5))


@each_row("how", ["header", "parameter"])
def test_a_reader_resumes(make: Edges, how: str) -> None:
    """Everything after its position follows, in order, once."""
    edge = make()
    first = Stream(edge)
    edge.publish("job_events.1", {"n": 1})
    assert first.kinds() == ["welcome", "subscribed", "message"]
    position = first.reader.last_id
    first.client.hang_up()
    for n in (2, 3):
        edge.publish("job_events.1", {"n": n})
    again = Stream(edge, EVENTS, f"Last-Event-ID: {position}") if how == "header" else Stream(edge, f"{EVENTS}&since={position}")
    edge.clock.advance(0)
    edge.publish("job_events.1", {"n": 4})
    _, subscribed, *events = again.take()
    assert subscribed.frame["recovered"] is True
    assert subscribed.id == position
    assert [event.frame["payload"]["n"] for event in events] == [2, 3, 4]


@each_row("last_id", ["5-other", "nonsense", "\u00ff", "1" * 5000])
def test_a_position_of_another_log_is_told(make: Edges, last_id: str) -> None:
    """The reader is told that it missed something, and gets a position of this log."""
    edge = make()
    client = edge.connect()
    client.send(get(EVENTS, f"Last-Event-ID: {last_id}").replace(last_id.encode(), last_id.encode("latin-1")))
    events = EventReader().feed(body(client))
    assert [event.kind for event in events] == ["welcome", "subscribed"]
    assert events[1].frame["recovered"] is False
    assert events[1].id == edge.hub.position


def test_a_slow_reader_falls_behind_and_catches_up_or_is_told_of_the_gap(make: Edges) -> None:
    """Nothing is queued for it beyond the send buffer's bound. What left history meanwhile is a gap, with an id to go on from."""
    edge = make(backlog_bytes=65536)
    stream = Stream(edge)
    stream.take()
    transport = stream.client.transport
    transport.stalled = True
    for n in range(60):
        edge.publish("job_events.1", {"n": n, "pad": "x" * 50_000})
    assert len(transport.waiting) < 65536 * 3
    for _ in range(60):
        transport.drain()
        edge.clock.advance(0)
    events = stream.take()
    (gap,) = [event for event in events if event.kind == "gap"]
    assert gap.frame["reason"] == "history"
    assert gap.id == gap.frame["to"]
    numbers = [event.frame["payload"]["n"] for event in events if event.kind == "message"]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 59
    transport.stalled = False
    transport.drain()


def test_comments_as_signs_of_life(make: Edges) -> None:
    """A comment as often as a websocket gets a ping. A full buffer takes none."""
    edge = make(ping_s=20)
    stream = Stream(edge)
    assert stream.kinds() == ["welcome", "subscribed"]
    edge.advance(61)
    assert (stream.take(), stream.reader.comments) == ([], 3)


def test_what_a_reader_sends_is_dropped(make: Edges) -> None:
    """It sent its request. More of it is neither kept nor answered, and too much ends the connection."""
    edge = make()
    stream = Stream(edge)
    stream.take()
    stream.client.send(b"x" * 65536, request())
    assert (stream.take(), stream.client.held) == ([], 0)
    stream.client.send(*[b"x" * 65536] * 17)
    assert stream.client.transport.aborted


@each_row(
    ("reason", "action"),
    [(CloseReason.RESTART, "reconnect"), (CloseReason.CREDENTIAL, "authenticate"), (CloseReason.POLICY, "stop")],
)
def test_the_daemon_ends_a_stream(make: Edges, reason: CloseReason, action: str) -> None:
    """The last event says what to do, and when: an EventSource obeys `retry` by itself. The connection ends then."""
    edge = make()
    stream = Stream(edge)
    stream.take()
    stream.client.connection.end(reason)
    (bye,) = stream.take()
    assert (bye.kind, bye.frame["action"], bye.id) == ("bye", action, None)
    assert (bye.retry is None) == (action == "stop")
    assert bye.retry == bye.frame["reconnect_after_ms"]
    edge.publish("job_events.1", {"n": 1})
    edge.clock.advance(0)
    assert stream.take() == []
    assert stream.client.transport.lost
    assert edge.factory.closed_for[reason.name.lower()] == 1


def test_a_credential_ends_its_streams(make: Edges) -> None:
    """By its expiry, and by a revocation, like a websocket's."""
    method = Named(expires_at=WALL + 10)
    edge = make(auth=method)
    edge.context.credential_monitor.start()
    stream = Stream(edge)
    assert stream.kinds() == ["welcome", "subscribed"]
    edge.advance(12)
    assert stream.kinds() == ["bye"]
    edge.context.credential_monitor.stop()
    method.expires_at = None
    other = Stream(edge)
    other.take()
    edge.context.credential_monitor.disconnect(Revocation(user="7"))
    assert other.kinds() == ["bye"]


def test_topics_that_are_taken_away(make: Edges) -> None:
    """A right that ends is told by `revoked`, and the rest goes on."""
    method = Named("job_events.1", "job_events.2")
    edge = make(auth=method, access=AccessSettings(revalidate_s=60))
    stream = Stream(edge, f"{EVENTS}&topic=job_events.2")
    stream.take()
    method.allowed = {"job_events.2"}
    edge.context.credential_monitor.recheck_user("7")
    (revoked,) = stream.take()
    assert (revoked.kind, revoked.frame["groups_current"]) == ("revoked", ["job_events.2"])
    edge.publish("job_events.1", {"n": 1})
    edge.publish("job_events.2", {"n": 2})
    (event,) = stream.take()
    assert event.frame["payload"] == {"n": 2}


def test_a_topic_that_is_refused(make: Edges) -> None:
    """Among others it is listed. A stream without any topic is refused, so that an EventSource stops."""
    edge = make(auth=Named("job_events.1"))
    (_, subscribed) = Stream(edge, f"{EVENTS}&topic=job_events.2").take()
    assert subscribed.frame["denied"] == [{"topic": "job_events.2", "reason": "not allowed"}]
    for path in ("/events", "/history"):
        client = edge.connect().send(get(f"{path}?topic=job_events.2"))
        assert (status(client), body(client)) == (403, b"this user may have none of these topics: job_events.2: not allowed\n")
    assert edge.factory.refused_for == {"topics": 2}


def test_the_answer_of_a_slow_authority(make: Edges) -> None:
    """The stream waits for it, for as long as a handshake may take. A reader that leaves meanwhile ends the question."""
    method = SlowMethod()
    edge = make(auth=method)
    waiting, leaving, late = (edge.connect().send(get(EVENTS)) for _ in range(3))
    assert not waiting.transport.received
    leaving.hang_up()
    assert method.cancelled == 1
    method.questions[0][1].callback({})
    assert body(waiting).startswith(b"retry: ")
    method.questions[3][1].callback({})  # the session's own
    assert b"event: subscribed" in body(waiting)
    edge.advance(16)
    assert late.transport.lost
    assert method.cancelled == 2
    broken = edge.connect().send(get(EVENTS))
    method.questions[-1][1].errback(RuntimeError("a fault"))
    assert status(broken) == 500
    assert len(make.failures()) == 1


@each_row("path", [EVENTS, HISTORY, f"{HISTORY}&since=0-mark"], make=edges)
def test_a_revocation_while_the_answer_waits(make: Edges, path: str) -> None:
    """The topics or the position are checked meanwhile. The request gets nothing, as a handshake would."""
    method = SlowMethod()
    edge = make(auth=method, start="since" not in path)
    waiting = edge.connect().send(get(path))
    if "since" in path:
        method.questions[0][1].callback({})
    edge.advance(1)
    edge.context.credential_monitor.disconnect(Revocation(user="7"))
    if "since" in path:
        edge.source.start()
    else:
        method.questions[0][1].callback({})
    assert (status(waiting), body(waiting)) == (401, b"the credential was refused\n")
    assert edge.factory.refused_for == {"revoked": 1}


@each_row("path", ["/events?", "/history?", "/history?since=0-mark&"], make=edges)
def test_a_reload_while_the_answer_waits(make: Edges, path: str) -> None:
    """Topics that the new groups lack are left out. Without any other the request is refused."""
    method = SlowMethod()
    edge = make(auth=method, start="since" not in path)
    some = edge.connect().send(get(f"{path}topic=chat.a&topic=job_events.1"))
    none = edge.connect().send(get(f"{path}topic=chat.a"))
    questions = list(method.questions)
    if "since" in path:
        for _, asked in questions:
            asked.callback({})
        edge.context.groups = GroupTable()
        edge.source.start()
    else:
        edge.context.groups = GroupTable()
        for _, asked in questions:
            asked.callback({})
    if path == "/events?":
        method.questions[2][1].callback({})  # the session's own
    assert status(some) == 200
    assert b'"denied":[{"topic":"chat.a","reason":"no such group"' in body(some)
    assert (status(none), body(none)) == (403, b"this user may have none of these topics: chat.a: no such group\n")


@each_row("groups", [{}, {"chat": GroupSettings(policy="never")}])
@each_row("path", ["/events?", "/history?"], make=edges)
def test_a_reload_during_authentication(make: Edges, path: str, groups: dict[str, GroupSettings]) -> None:
    """The request was read by the former groups. Its answer follows the new ones."""
    method = SlowMethod(slow_handshake=True)
    edge = make(auth=method)
    some = edge.connect().send(get(f"{path}topic=chat.a&topic=job_events.1"))
    none = edge.connect().send(get(f"{path}topic=chat.a"))
    edge.context.groups = GroupTable(groups)
    for _, handshake in method.handshakes:
        handshake.callback(Identity(7))
    for topics, asked in method.questions:
        assert "chat.a" not in topics
        asked.callback({})
    assert status(some) == 200
    assert b'"denied":[{"topic":"chat.a","reason":"' in body(some)
    assert status(none) == 403
    assert make.failures() == []


# Refusals


@each_row(
    ("path", "named"),
    [
        ("/events", b"no topic"),
        ("/events?topic=nothing.1", b"nothing.1"),
        (f"{EVENTS}&from=3", b"unknown parameter from"),
        (f"{HISTORY}&limit=none", b"limit none"),
    ],
)
def test_bad_requests(make: Edges, path: str, named: bytes) -> None:
    """400 names what is wrong, and nobody is asked about the user."""
    method = SlowMethod(slow_handshake=True)
    edge = make(auth=method, access=LISTED)
    client = edge.connect().send(get(path, f"Origin: {SITE}"))
    assert (status(client), method.handshakes) == (400, [])
    assert named in body(client)
    assert headers(client)["access-control-allow-origin"] == SITE, "the page learns it, too"
    for line in ("Origin: https://evil.example", "Sec-Fetch-Site: cross-site"):
        assert status(edge.connect().send(get(path, line))) == 403, "no query of a foreign page is read"


@each_row(
    ("problem", "events", "websocket"),
    [(Refused("no"), 401, 403), (Throttled("no"), 429, 503), (None, 200, 101)],
)
def test_the_status_of_a_refusal(make: Edges, problem: Exception | None, events: int, websocket: int) -> None:
    """401 and 429 tell apart what AWX's clients don't. A probe has the handshake's own status, or 426 where that is let in."""
    method = Named()
    method.problem = problem
    edge = make(auth=method, access=LISTED)
    lines = [f"Origin: {SITE}", "Cookie: a=b"]
    for path in (EVENTS, HISTORY):
        client = edge.connect().send(get(path, *lines))
        assert status(client) == events
        assert headers(client)["access-control-allow-origin"] == SITE
        assert headers(client)["access-control-allow-credentials"] == "true"
        assert ("www-authenticate" in headers(client)) == (events == 401)
        assert ("retry-after" in headers(client)) == (events == 429)
    assert status(edge.connect().send(request(added=lines))) == websocket
    probe = edge.connect().send(get("/websocket/", *lines))
    assert status(probe) == (426 if websocket == 101 else websocket)
    assert headers(probe)["access-control-allow-origin"] == SITE


def test_without_a_credential(make: Edges) -> None:
    """A stream can't wait for a token: 401. A websocket of towerws.v1 can, so its probe says that it is let in."""
    edge = make(auth=Nobody())
    assert [status(edge.connect().send(get(path))) for path in (EVENTS, HISTORY, "/websocket/")] == [401, 401, 426]


def test_the_limit_of_a_user(make: Edges) -> None:
    """Streams and websockets count together. A refused stream frees its place."""
    edge = make(auth=Named(), limits={"per_user": 2})
    stream = Stream(edge)
    websocket = edge.connect().send(request())
    for _ in range(3):
        refused = edge.connect().send(get(EVENTS))
        assert (status(refused), body(refused)) == (429, b"this user has too many connections\n")
        assert status(edge.connect().send(request())) == 503
    websocket.hang_up()
    assert Stream(edge).kinds() == ["welcome", "subscribed"]
    assert stream.kinds() == ["welcome", "subscribed"]


def test_the_limit_of_an_address(make: Edges) -> None:
    """A stream is a connection like any other."""
    edge = make(limits={"per_address": 1})
    assert Stream(edge).kinds() == ["welcome", "subscribed"]
    assert status(edge.connect().send(get(EVENTS))) == 503
    assert status(edge.connect().send(get("/client.js"))) == 503


@each_row(
    ("path", "limits", "refusal"),
    [("/client.js", {"per_address": 1}, 503), (HISTORY, {"per_address": 1}, 503), (HISTORY, {"per_user": 1}, 429)],
    make=edges,
)
def test_an_answer_that_nobody_reads(make: Edges, path: str, limits: dict[str, int], refusal: int) -> None:
    """Its connection counts until it is closed. Otherwise one address or user could take all descriptors."""
    edge = make(auth=Named(), limits=limits)
    edge.publish("job_events.1", {"pad": "x" * 200_000})
    unread = edge.connect()
    unread.transport.stalled = True
    unread.send(get(path))
    assert edge.factory.answered == 1
    assert status(edge.connect().send(get(path))) == refusal
    unread.hang_up()
    assert status(edge.connect().send(get(path))) == 200


@each_row(
    ("line", "allowed"),
    [
        ("Origin: https://tower.example.com", True),
        (f"Origin: {SITE}", True),
        ("Origin: https://evil.example", False),
        ("Origin: null", False),
        ("Sec-Fetch-Site: same-origin", True),
        ("Sec-Fetch-Site: none", True),
        ("Sec-Fetch-Site: cross-site", False),
        ("Sec-Fetch-Site: same-site", False),
        ("X: y", True),
    ],
)
def test_pages_of_other_sites(make: Edges, line: str, allowed: bool) -> None:
    """Only listed origins get events. A refused page learns the status, which says nothing about the user."""
    method = SlowMethod(slow_handshake=True)
    edge = make(auth=method, access=LISTED)
    for path in (EVENTS, HISTORY, "/websocket/?token=bad"):
        client = edge.connect().send(get(path, line))
        if allowed:
            assert not client.transport.received
        else:
            assert (status(client), body(client)) == (403, b"a page of this origin may not connect here\n")
            origin = line.removeprefix("Origin: ") if line.startswith("Origin") else None
            assert headers(client).get("access-control-allow-origin") == origin
    assert bool(method.handshakes) == allowed


@each_row("origin", ["https://evil.example", "null", SITE, "https://tower.example.com"])
def test_cookies_where_origins_are_not_checked(make: Edges, origin: str) -> None:
    """A page of any origin may ask, with a token. An answer to its user's cookies is only for pages of allowed origins."""
    edge = make(access=AccessSettings(origins=(SITE,), check_origin=False))
    for path in (EVENTS, HISTORY, "/websocket/"):
        client = edge.connect().send(get(path, f"Origin: {origin}"))
        assert status(client) == (426 if path == "/websocket/" else 200)
        assert headers(client)["access-control-allow-origin"] == origin
        allowed = origin in (SITE, "https://tower.example.com")
        assert headers(client).get("access-control-allow-credentials") == ("true" if allowed else None)


def test_a_preflight(make: Edges) -> None:
    """A page of a listed origin may send `Authorization`. Nobody is asked about a user, and nothing is counted as refused."""
    edge = make(auth=SlowMethod(slow_handshake=True), access=LISTED)
    asked = get(EVENTS, f"Origin: {SITE}", "Access-Control-Request-Method: GET", method="OPTIONS")
    client = edge.connect().send(asked)
    assert status(client) == 204
    assert "Authorization" in headers(client)["access-control-allow-headers"]
    assert status(edge.connect().send(asked.replace(SITE.encode(), b"https://evil.example"))) == 403
    assert status(edge.connect().send(get(EVENTS, method="OPTIONS"))) == 405
    assert edge.factory.answered == 1


def test_foreign_names_for_loopback(make: Edges) -> None:
    """DNS rebinding, as for the websocket."""
    edge = make()
    for path in (EVENTS, HISTORY):
        client = edge.connect("127.0.0.1")
        transport: Any = client.transport
        transport.getHost = transport.getPeer
        assert status(client.send(get(path, host="evil.example"))) == 403


def test_a_probe_that_would_be_let_in(make: Edges) -> None:
    """It got its answer: no refusal is counted or logged. A handshake that lost its `Upgrade` on the way is still a refusal."""
    edge = make()
    with logged() as lines:
        probe = edge.connect().send(get("/websocket/"))
        assert (status(probe), edge.factory.answered, edge.factory.refused) == (426, 1, {})
        assert headers(probe)["upgrade"] == "websocket"
        edge.clock.advance(0)
        assert probe.transport.lost
        assert not [text for text in lines.texts if text.startswith("refused ")]
        assert status(edge.connect().send(request(without=["Upgrade"]))) == 426
        assert [text for text in lines.texts if text.startswith("refused ") and "proxy_set_header" in text]
    assert (edge.factory.answered, edge.factory.refused) == (1, {426: 1})


# History


def ask(edge: Edge, query: str = "") -> Any:
    """The answer to a request for history."""
    client = edge.connect().send(get(HISTORY + query))
    assert status(client) == 200, bytes(client.transport.received)
    assert int(headers(client)["content-length"]) == len(body(client))
    edge.clock.advance(0)
    assert client.transport.lost
    return json.loads(body(client))


def test_history_in_pages(make: Edges) -> None:
    """A page fills its hole: each page says where the next one begins, and the last one that it is the last."""
    edge = make()
    positions = [edge.publish("job_events.1", {"n": n}) for n in range(5)]
    edge.publish("job_events.2", {"n": 5})
    first = ask(edge, "&limit=2")
    assert [event["payload"]["n"] for event in first["events"]] == [0, 1]
    assert (first["next"], first["complete"], first["recovered"]) == (positions[1], False, None)
    rest = ask(edge, f"&since={first['next']}")
    assert [event["position"] for event in rest["events"]] == positions[2:]
    assert (rest["next"], rest["complete"], rest["recovered"], rest["gap"]) == (edge.hub.position, True, True, None)
    assert ask(edge, f"&since={rest['next']}")["events"] == []
    unknown = ask(edge, "&since=9-other")
    assert (unknown["recovered"], len(unknown["events"])) == (False, 5)
    assert edge.factory.answered == 4


def test_a_page_of_history_is_bounded(make: Edges) -> None:
    """In bytes, with any limit. An event that is larger than that comes alone."""
    edge = make()
    for n in range(5):
        edge.publish("job_events.1", {"n": n, "pad": "x" * (100_000 if n else 300_000)})
    assert [len(ask(edge, f"&since={since}")["events"]) for since in ("", ask(edge)["next"])] == [1, 2]


def test_history_has_a_rate(make: Edges) -> None:
    """What a user replays is counted as on a websocket. Beyond a few whole histories the answer is 429, and later 200 again."""
    edge = make()
    edge.context.replays = ReplayBounds(1000, 10_000)
    edge.publish("job_events.1", {"pad": "x" * 10_600})
    assert [status(edge.connect().send(get(HISTORY))) for _ in range(6)] == [200, 200, 200, 200, 429, 429]
    refused = edge.connect().send(get(HISTORY))
    wait_s = int(headers(refused)["retry-after"])
    assert body(refused) == f"this user replays too much of history: ask again in {wait_s} s\n".encode()
    edge.advance(wait_s - 1)
    assert status(edge.connect().send(get(HISTORY))) == 429
    edge.advance(1)
    assert status(edge.connect().send(get(HISTORY))) == 200


def test_a_position_that_can_not_be_judged_yet(make: Edges) -> None:
    """The answer waits, and then says 503. A client that leaves ends that."""
    edge = make(start=False)
    waiting, leaving = (edge.connect().send(get(f"{HISTORY}&since=0-mark")) for _ in range(2))
    assert not waiting.transport.received
    leaving.hang_up()
    assert edge.ingest.waiting == 1
    edge.advance(11)
    assert status(waiting) == 503
    third = edge.connect().send(get(f"{HISTORY}&since=0-mark"))
    edge.source.start()
    assert status(third) == 200


def test_many_answers_wait_for_one_position(make: Edges) -> None:
    """Requests that waited pay before they are answered: together they get no more than requests that come one by one."""
    edge = make(start=False)
    edge.context.replays = ReplayBounds(1000, 10_000)
    edge.publish("job_events.1", {"pad": "x" * 10_600})
    waiting = [edge.connect().send(get(f"{HISTORY}&since=0-mark")) for _ in range(8)]
    assert not any(client.transport.received for client in waiting)
    edge.source.start()
    assert [status(client) for client in waiting] == [200] * 4 + [429] * 4
    assert edge.context.replays.delays == 4


def test_a_long_wait_for_a_position(make: Edges) -> None:
    """`resume_wait_s` is its bound, also where it is longer than `handshake_s`."""
    edge = make(start=False, resume_wait_s=30, handshake_s=15)
    waiting = edge.connect().send(get(f"{HISTORY}&since=0-mark"))
    edge.advance(29)
    assert not waiting.transport.received
    assert not waiting.transport.lost
    edge.advance(2)
    assert (status(waiting), body(waiting)) == (503, b"the position can't be judged yet: ask again with it\n")
    assert edge.context.limit_counts["handshake_s"] == 0


def test_a_reader_of_history_that_does_not_read(make: Edges) -> None:
    """Its connection ends after `pong_s`."""
    edge = make(pong_s=10)
    edge.publish("job_events.1", {"pad": "x" * 200_000})
    client = edge.connect()
    client.transport.stalled = True
    client.send(get(HISTORY))
    edge.advance(9)
    assert not client.transport.lost
    edge.advance(2)
    assert client.transport.lost


# The client's files


def test_the_files(make: Edges) -> None:
    """They need no credential, and any page may load them. The name with the hash may be cached for ever."""
    edge = make(auth=SlowMethod(slow_handshake=True))
    for name in edge.factory.client_files:
        client = edge.connect().send(get(f"/x/{name}", "Origin: https://evil.example"))
        stem, _, end = name.partition(".")
        kind = "client-shared" if stem.startswith("client-shared") else "client"
        assert body(client) == (STATIC / f"{kind}.{end}").read_bytes()
        found = headers(client)
        assert found["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in found
        assert ("immutable" in found["cache-control"]) == (stem != kind)
        assert found["content-type"].startswith("text/javascript" if end == "js" else "text/plain")
        again = edge.connect().send(get(f"/{name}", f"If-None-Match: {found['etag']}"))
        assert (status(again), body(again)) == (304, b"")
    assert status(edge.connect().send(get("/client-000000000000.js"))) == 404
    assert len(edge.factory.client_files) == 8


def test_the_files_are_built_from_the_clients_source() -> None:
    """`python -m tests.kit.client_file` was run after the last change. test_js_client.py builds it again."""
    for name, source in BUILT.items():
        assert (STATIC / f"{name}.js").read_text().startswith(first_line(source))
        types = (SOURCE / f"{source}.d.ts").read_text().replace("./towerws.js", "./client.js")
        assert (STATIC / f"{name}.d.ts").read_text() == types
