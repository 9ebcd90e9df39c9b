from __future__ import annotations

import errno
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web import http

from tests.kit.rows import each_row
from tests.kit.ws_kit import Edges, edges
from towerws.admin import AdminSite, PageContent
from towerws.admin.endpoint import DISCARDED_BODIES
from towerws.admin.publish import LINES_PER_TURN, STATUS
from towerws.admin.site import ENVELOPE_BYTES
from towerws.core.errors import BadDelivery
from towerws.core.identity import Disconnection, Revocation
from towerws.core.publication import Outcome, Publication, Published
from towerws.core.sources import SourceState, SourceStatus

LOOPBACK = IPv4Address("TCP", "127.0.0.1", 9051)
LIMIT = 100_000


class Reply:
    """A parsed HTTP response."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}

    @property
    def json(self) -> Any:
        """The body."""
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error."""
        assert list(self.json) == ["error"]
        return str(self.json["error"])


class Admin:
    """An admin port in memory."""

    def __init__(self, make: Edges) -> None:
        self.edge = make()
        self.state = SourceStatus(SourceState.CONSUMING)
        self.figures: Callable[[], Mapping[str, object]] = lambda: {"version": "1"}
        self.revocations: list[Revocation] = []
        self.disconnected: Deferred[Disconnection] = succeed(Disconnection(3))
        self.answers: list[Published | Deferred[Published]] = []
        """What becomes of the next events, instead of reaching the source."""
        self.published: list[Publication] = []
        self.site = self.make_site()
        self.transport = StringTransport()

    def make_site(self, page: PageContent | None = None, *, show_details: bool = True) -> AdminSite:
        """A site that runs on the edge's clock."""
        site = AdminSite(
            status=self.status,
            source_status=lambda: self.state,
            publish=self.publish,
            flush=self.edge.source.flush,
            disconnect=self.disconnect,
            later=lambda call: self.edge.clock.callLater(0, call),
            websocket_port=lambda: 18051,
            max_payload_bytes=LIMIT,
            page=lambda: page or PageContent(),
            show_details=show_details,
        )
        site.reactor = self.edge.clock
        return site

    def status(self) -> Mapping[str, object]:
        """The figures that the test set."""
        return self.figures()

    def disconnect(self, revocation: Revocation) -> Deferred[Disconnection]:
        """Record a revocation. The test sets the result."""
        self.revocations.append(revocation)
        return self.disconnected

    def publish(self, event: Publication) -> Deferred[Published]:
        """Publish as the service does, or with the outcome that the test set."""
        if len(event.payload) > LIMIT:
            raise BadDelivery("too_large", "too large")
        self.edge.ingest.check(event.topic.routing_key, event.payload)
        self.published.append(event)
        if self.answers:
            answer = self.answers.pop(0)
            return answer if isinstance(answer, Deferred) else succeed(answer)
        position = self.edge.source.publish(event.topic.routing_key, event.payload)
        return succeed(Published(Outcome.CONFIRMED, published=True, message_id=event.message_id, position=position))

    def raw(self, *pieces: bytes, at: IAddress = LOOPBACK) -> bytes:
        """Send bytes on a new connection. Returns all bytes that come back."""
        self.transport = StringTransport(hostAddress=at)
        channel: Any = self.site.buildProtocol(at)
        channel.makeConnection(self.transport)
        for piece in pieces:
            if not self.transport.disconnecting:
                channel.dataReceived(piece)
        self.edge.clock.advance(0)
        channel.connectionLost(Failure(ConnectionDone()))
        return bytes(self.transport.value())

    def ask(self, method: str, path: str, body: bytes = b"", *, at: IAddress = LOOPBACK, **headers: str) -> Reply:
        """Send one request."""
        lines = {"Host": "127.0.0.1:9051", "Connection": "close", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body:
            lines["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return Reply(self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body, at=at))


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory. At the end they are checked for leaks, and the log for tracebacks."""
    with edges() as maker:
        yield maker


@pytest.fixture
def admin(make: Edges) -> Admin:
    """An admin port in memory."""
    return Admin(make)


@contextmanager
def admin_port() -> Iterator[Admin]:
    """The same for one row of a table."""
    with edges() as maker:
        yield Admin(maker)


def test_health_and_figures(admin: Admin) -> None:
    """Health, readiness and status are JSON, are never cached, and don't name the software."""
    assert admin.ask("GET", "/healthz").json == {"healthy": True}
    assert admin.ask("GET", "/readyz").json == {"ready": True, "state": "consuming"}
    reply = admin.ask("GET", "/status?x=y")
    assert reply.json == {"version": "1"}
    assert reply.headers["cache-control"] == "no-store"
    assert "Twisted" not in str(reply.headers)


def test_not_ready(admin: Admin) -> None:
    """While the source doesn't consume, `/readyz` is 503 with the reason. `/healthz` stays 200."""
    admin.state = SourceStatus(SourceState.BACKOFF, "403 ACCESS_REFUSED")
    reply = admin.ask("GET", "/readyz")
    assert reply.status == 503
    assert reply.json == {"ready": False, "state": "backoff", "reason": "403 ACCESS_REFUSED"}
    assert admin.ask("GET", "/healthz").status == 200


def test_what_the_live_page_is_told(admin: Admin) -> None:
    """The page has the groups, the methods and whether tokens are taken, escaped. `/live/topics` has topics and position."""
    groups = {"orders": {"events": ["o'clock", "<b>", "a&b"], "own": False}}
    page = PageContent(
        groups=groups,
        auth=("jwt", "tower"),
        takes_tokens=True,
        max_topics=50,
        topics=lambda: ["orders.<b>"],
        position=lambda: "7-5b0c7e9f21aa",
    )
    admin.site = admin.make_site(page)
    found: dict[str, str | None] = {}

    class Body(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "body":
                found.update(attrs)

    Body().feed(admin.ask("GET", "/live").body.decode())
    assert json.loads(found.pop("data-groups") or "") == groups
    assert found == {"data-websocket-port": "18051", "data-auth": "jwt tower", "data-takes-tokens": "yes", "data-max-topics": "50"}
    assert admin.ask("GET", "/live/topics").json == {"topics": ["orders.<b>"], "position": "7-5b0c7e9f21aa"}
    foreign = admin.ask("GET", "/live/topics", Origin="http://evil.example")
    assert foreign.status == 403
    for show, at in ((False, LOOPBACK), (True, IPv4Address("TCP", "192.0.2.1", 9051))):
        admin.site = admin.make_site(page, show_details=show)
        assert admin.ask("GET", "/live/topics", at=at).status == 403
        assert "orders" not in admin.ask("GET", "/live", at=at).body.decode(), "the page works without the configured groups"


def test_live_page(admin: Admin) -> None:
    """The page has the websocket's port, and a policy that loads nothing from other sites."""
    reply = admin.ask("GET", "/live")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert b'"18051"' in reply.body
    assert b"{{" not in reply.body


def test_publish(admin: Admin) -> None:
    """Subscribers get a publication byte for byte. The answer is 202 with its position."""
    client = admin.edge.open(v1=True).ask({"job_events": [42]})
    client.take()
    reply = admin.ask("POST", "/publish", b'{"topic": "job_events.42", "payload": {"a":  NaN, "b": "\\ud800"} }')
    assert reply.status == 202
    assert b'{"a":  NaN, "b": "\\ud800"}' in client.transport.received
    assert reply.json["position"].encode() in client.transport.received
    assert admin.ask("POST", "/publish", b'{"group": "job_events", "event": 42, "payload": {}}').status == 202


@each_row(
    ("body", "status", "word"),
    [
        (b"", 400, "payload"),
        (b"x", 400, "payload"),
        (b"[]", 400, "payload"),
        (b"\xff", 400, "payload"),
        (b"[" * 90_000, 400, "payload"),
        (b'{"topic":"a.b","payload":' + b"[" * 90_000, 400, "nests"),
        (b"{}", 400, "payload is missing"),
        (b'{"payload": {}}', 400, "topic, or group and event"),
        (b'{"topic": "a", "payload": {}}', 400, "routing key"),
        (b'{"topic": "a.b", "group": "a", "payload": {}}', 400, "topic, or group and event"),
        (b'{"topic": 3, "payload": {}}', 400, "not a string"),
        (b'{"group": "a", "event": true, "payload": {}}', 400, "event"),
        (b'{"topic": "a.b", "payload": []}', 400, "not a JSON object"),
        (b'{"topic": "a.b", "payload": {"a":1},"group":"job_events","event":"42","payload":{"stdout":"forged"}}', 400, "twice"),
        (b'{"topic": "a.b", "payload": {} x {}}', 400, "expected ,"),
        (b'{"topic": "a.b", "payload": {]}}', 400, "payload"),
        (b'{"topic": "a.b", "payload": {"a": "\x01"}}', 400, "payload"),
        (b'{"topic": "a.b", "payload": {"a": ' + b"[" * 512 + b"]" * 512 + b"}}", 400, "deeper than 512 levels"),
        (b'{"topic": "a.b", "payload": {}, "canary": 1}', 400, "unknown key"),
        (b'{"topic": "metrics", "payload": {}}', 400, "routing key"),
        (b'{"topic": "control.limit_reached", "payload": {}}', 400, "never forwarded"),
        (b'{"topic": "a.b", "payload": {"x": "' + b"y" * LIMIT + b'"}}', 413, "too large"),
    ],
    admin=admin_port,
)
def test_bad_publications(admin: Admin, body: bytes, status: int, word: str) -> None:
    """An invalid publication is refused with one line that has the reason."""
    reply = admin.ask("POST", "/publish", body)
    assert reply.status == status
    assert word in reply.error
    assert "\n" not in reply.error
    assert len(admin.edge.history) == 0


@each_row(
    ("outcome", "published", "status"),
    [
        (Outcome.CONFIRMED, True, 202),
        (Outcome.DUPLICATE, True, 202),
        (Outcome.UNROUTABLE, False, 502),
        (Outcome.NACKED, None, 502),
        (Outcome.REFUSED, False, 502),
        (Outcome.UNAVAILABLE, False, 503),
        (Outcome.BLOCKED, False, 503),
        (Outcome.FULL, False, 503),
        (Outcome.UNKNOWN, None, 504),
    ],
    admin=admin_port,
)
def test_what_became_of_an_event(admin: Admin, outcome: Outcome, published: bool | None, status: int) -> None:
    """Each outcome has its status and its body. The same in a batch, and both are counted."""
    admin.answers = [Published(outcome, published, "id-1", error="why")] * 2
    expected = {"outcome": outcome.value, "published": published, "message_id": "id-1", "error": "why"}
    body = b'{"topic": "a.b", "payload": {}, "message_id": "id-1"}'
    reply = admin.ask("POST", "/publish", body)
    assert (reply.status, reply.json) == (status, expected)
    reply = admin.ask("POST", "/publish", body, Content_Type="application/x-ndjson; charset=utf-8")
    assert (reply.status, json.loads(reply.body)) == (200, {"status": status, **expected})
    assert admin.site.publishing.counts == {outcome.value: 2}
    assert [event.message_id for event in admin.published] == ["id-1"] * 2


def test_outcomes_are_documented() -> None:
    """Each outcome is a row of docs/publish.md, with its status."""
    guide = (Path(__file__).parents[1] / "docs" / "publish.md").read_text()
    rows = {word: int(status) for status, word in re.findall(r"^\| (\d+) \| `(\w+)` \|", guide, re.MULTILINE)}
    assert rows == {outcome.value: status for outcome, status in STATUS.items()}


def test_a_batch(admin: Admin) -> None:
    """Each line has its answer, in order, also if the answers come in another order. A line's mistake does not touch the others."""
    late: Deferred[Published] = Deferred()
    admin.answers = [late]
    client = admin.edge.open()
    client.ask({"jobs": ["summary"]})
    client.take()
    batches = admin.edge.hub.counters.batches
    lines = [b'{"topic": "a.%d", "payload": {"n": %d}}' % (number, number) for number in range(60)]
    lines[7] = b"nonsense"
    lines[8] = b""
    lines[9] = b'{"topic": "a.9", "payload": {}, "message_id": "own"}'
    lines[10] = lines[11] = lines[30] = b'{"topic": "jobs.summary", "payload": {}}'
    body = b"\r\n".join(lines) + b"\n"
    head = b'POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nIdempotency-Key: "k"\r\n'
    admin.transport = StringTransport(hostAddress=LOOPBACK)
    channel: Any = admin.site.buildProtocol(LOOPBACK)
    channel.makeConnection(admin.transport)
    channel.dataReceived(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert len(admin.published) == LINES_PER_TURN - 3, "the rest is read in later turns"
    for _ in range(3):
        admin.edge.clock.advance(0)
    assert admin.transport.value() == b""
    assert len(client.take()) == 3
    assert admin.edge.hub.counters.batches - batches == 2, "what is published in one turn is written at once"
    late.callback(Published(Outcome.UNKNOWN, None, "late", error="no answer"))
    reply = Reply(admin.transport.value())
    answers = [json.loads(line) for line in reply.body.splitlines()]
    assert (reply.status, reply.headers["content-type"], len(answers)) == (200, "application/x-ndjson", 60)
    assert (answers[0]["status"], answers[0]["outcome"]) == (504, "unknown")
    assert [answers[number]["status"] for number in (6, 7, 8, 9, 10)] == [202, 400, 400, 400, 202]
    assert "an id twice" in answers[9]["error"]
    assert answers[59]["message_id"] == "k/60"
    assert [event.topic.event for event in admin.published] == [
        {10: "summary", 11: "summary", 30: "summary"}.get(number, str(number)) for number in range(60) if number not in (7, 8, 9)
    ]
    assert admin.site.publishing.counts == {"unknown": 1, "confirmed": 56, "invalid": 3}
    channel.connectionLost(Failure(ConnectionDone()))


@each_row(
    ("body", "headers", "word"),
    [
        (b"", {}, "no lines"),
        (b"\n", {}, "no lines"),
        (b"{}\n" * 1001, {}, "1000 are the most"),
        (b'{"topic": "a.b", "payload": {"a": [' + b"0," * 45_000 + b"0]}}", {}, ""),
        (b"[,,,,,,,,,\n" * 100 + b"," * 99_500, {}, "more than 100000 values"),
        (b"{}", {"Idempotency_Key": ""}, "Idempotency-Key must be 1 to 200"),
        (b"{}", {"Idempotency_Key": "x" * 201}, "Idempotency-Key must be 1 to 200"),
        (b"{}", {"Idempotency_Key": "a b"}, "visible ASCII"),
        (b"{}", {"Idempotency_Key": "\xfc"}, "visible ASCII"),
    ],
    admin=admin_port,
)
def test_bad_batches(admin: Admin, body: bytes, headers: dict[str, Any], word: str) -> None:
    """Bounds of a batch and of the header: one line that names them, and nothing is published."""
    reply = admin.ask("POST", "/publish", body, Content_Type="application/x-ndjson", **headers)
    assert reply.status == (400 if word else 200)
    if word:
        assert word in reply.error
        assert admin.published == []


def test_one_header_only(admin: Admin) -> None:
    """Two headers Idempotency-Key are refused: nobody knows which one is meant."""
    body = b'{"topic": "a.b", "payload": {}}'
    head = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n"
    reply = Reply(admin.raw(head + b"Content-Length: %d\r\n\r\n" % len(body) + body))
    assert (reply.status, "several headers" in reply.error) == (400, True)


def test_a_fault_in_a_batch(admin: Admin, make: Edges) -> None:
    """An exception of towerws is a 500 and a traceback in the log, and the other lines are published."""
    failed: Deferred[Published] = Deferred()
    failed.errback(ZeroDivisionError("canary"))
    admin.answers = [failed]
    reply = admin.ask("POST", "/publish", b'{"topic": "a.b", "payload": {}}\n' * 2, Content_Type="application/x-ndjson")
    (logged,) = make.failures()
    assert "canary" in logged
    assert (reply.status, b"canary" in reply.body, len(admin.published)) == (500, False, 2)


@each_row(
    ("done", "status", "answer"),
    [
        (Disconnection(3), 202, {"disconnected": 3}),
        (Disconnection(0, told=True), 202, {"disconnected": 0, "others_told": True}),
        (
            Disconnection(2, told=False, reason="connecting: connection refused"),
            503,
            {
                "disconnected": 2,
                "others_told": False,
                "error": "connections were ended on this daemon only; the others could not be told: connecting: connection refused",
            },
        ),
        (
            Disconnection(2, told=False, reason="no answer within 5 s from web2:7", no_answer=(("b" * 16, "web2:7"),)),
            503,
            {
                "disconnected": 2,
                "others_told": False,
                "no_answer": [{"id": "b" * 16, "name": "web2:7"}],
                "error": "not every daemon has said that it ended the connections: no answer within 5 s from web2:7",
            },
        ),
    ],
    admin=admin_port,
)
def test_disconnect(admin: Admin, done: Disconnection, status: int, answer: object) -> None:
    """The answer has the number closed here, and whether the other daemons know. A script sees it by the status."""
    for body, revocation in ((b'{"user": 7}', Revocation(user=7)), (b'{"session": "5e55"}', Revocation(session="5e55"))):
        admin.disconnected = succeed(done)
        reply = admin.ask("POST", "/disconnect", body)
        assert (reply.status, reply.json) == (status, answer)
        assert admin.revocations.pop() == revocation


def test_disconnect_waits_for_the_broker(admin: Admin, make: Edges) -> None:
    """The answer waits for the result. A client may leave before it. An internal error is a 500."""
    request = b'POST /disconnect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 11\r\n\r\n{"user": 7}'

    def ask() -> tuple[Any, StringTransport]:
        admin.disconnected = Deferred()
        channel: Any = admin.site.buildProtocol(LOOPBACK)
        transport = StringTransport(hostAddress=LOOPBACK)
        channel.makeConnection(transport)
        channel.dataReceived(request)
        assert transport.value() == b""
        return channel, transport

    channel, transport = ask()
    admin.disconnected.callback(Disconnection(1, told=True))
    assert Reply(transport.value()).json == {"disconnected": 1, "others_told": True}
    channel.connectionLost(Failure(ConnectionDone()))

    channel, transport = ask()
    admin.disconnected.errback(RuntimeError("canary"))
    assert Reply(transport.value()).status == 500
    assert b"canary" not in transport.value()
    assert len(make.failures()) == 1
    channel.connectionLost(Failure(ConnectionDone()))

    channel, transport = ask()
    channel.connectionLost(Failure(ConnectionDone()))
    admin.disconnected.callback(Disconnection(1, told=True))
    assert transport.value() == b""
    admin.disconnected = Deferred()  # an unhandled error of the old one would be logged now
    assert make.failures() == []


def test_bad_revocations(admin: Admin) -> None:
    """An invalid revocation closes nothing. The answer shows a valid one."""
    for body in (b"", b"{}", b'{"user": null}', b'{"user": 7, "canary": 1}'):
        reply = admin.ask("POST", "/disconnect", body)
        assert reply.status == 400
        assert '"user"' in reply.error
        assert "canary" not in reply.error
    assert admin.revocations == []


@each_row("path", ["/live", "/healthz", "/readyz", "/status", "/publish", "/disconnect"])
@each_row("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"], admin=admin_port)
def test_methods(admin: Admin, path: str, method: str) -> None:
    """Each path takes one method. Any other is a 405 in JSON that names it."""
    right = "POST" if path in ("/publish", "/disconnect") else "GET"
    reply = admin.ask(method, path)
    if method == right:
        assert reply.status in (200, 400)
    else:
        assert reply.status == 405
        assert reply.headers["allow"] == right
        assert right in reply.error


def test_head(admin: Admin) -> None:
    """HEAD is GET without the body, on every path that takes GET. It logs nothing."""
    for path in ("/live", "/healthz", "/readyz", "/status"):
        head, got = admin.ask("HEAD", path), admin.ask("GET", path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(got.body))
        assert head.headers["content-type"] == got.headers["content-type"]
    assert admin.ask("HEAD", "/publish").status == 405


@each_row("path", ["/nothing", "/healthz/x", "/%00", "/../etc/passwd", "/publish%2f", "//x", "/static/live.html"], admin=admin_port)
def test_nothing_there(admin: Admin, path: str) -> None:
    """Any other path is a 404 in JSON, for any method."""
    for method in ("GET", "POST"):
        assert "/healthz" in admin.ask(method, path).error
    assert admin.ask("HEAD", path).status == 404


@each_row(
    "origin",
    [
        "http://evil.example",
        "https://127.0.0.1",
        "http://127.0.0.1:8051",
        "null",
        "",
        "http://[",
        "\xff",
        "http://127.0.0.1:9051@evil.example",
    ],
    admin=admin_port,
)
def test_foreign_origin(admin: Admin, origin: str) -> None:
    """A page of another site can't make a browser publish here, or read anything."""
    for method, path in (("POST", "/publish"), ("GET", "/status"), ("GET", "/live")):
        reply = admin.ask(method, path, b'{"topic": "a.b", "payload": {}}' if method == "POST" else b"", Origin=origin)
        assert reply.status == 403, reply.body
        assert "origin" in reply.error


def test_own_origin(admin: Admin) -> None:
    """The live page's own requests pass."""
    assert admin.ask("GET", "/status", Origin="http://127.0.0.1:9051").status == 200


@each_row("host", ["evil.example:9051", "evil.example", "localhost.evil.example", "[", "\xff", "127.0.0.1.evil.example"], admin=admin_port)
def test_name_that_points_here(admin: Admin, host: str) -> None:
    """On loopback a foreign name that points here gets nothing (DNS rebinding), with or without a matching Origin.

    A port on `::` sees a client of 127.0.0.1 at ::ffff:127.0.0.1.
    """
    for at in (LOOPBACK, IPv6Address("TCP", "::1", 9051), IPv6Address("TCP", "::ffff:127.0.0.1", 9051)):
        assert admin.ask("GET", "/status", at=at, Host=host).status == 403
        assert admin.ask("POST", "/publish", b"{}", at=at, Host=host, Origin=f"http://{host}").status == 403


@each_row("host", ["localhost", "localhost:9051", "127.0.0.1:9051", "[::1]:9051", "LOCALHOST"], admin=admin_port)
def test_own_names(admin: Admin, host: str) -> None:
    """Addresses and localhost pass, with any port that a tunnel gave them."""
    assert admin.ask("GET", "/status", Host=host).status == 200


def test_own_name_elsewhere(admin: Admin) -> None:
    """On other addresses than loopback, and on a UNIX socket, the port answers to any name."""
    assert admin.ask("GET", "/status", Host="tower.example.com", at=IPv6Address("TCP", "2001:db8::1", 9051)).status == 200
    assert admin.ask("GET", "/status", Host="tower.example.com", at=UNIXAddress(b"/run/towerws")).status == 200


# bodies


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_takes_no_descriptor(admin: Admin, chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body is in memory only: a temporary file would need a descriptor, which a full daemon lacks, and a folder."""

    def no_file(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tempfile, "TemporaryFile", no_file)
    body = b'{"topic": "job_events.42", "payload": {"a": "' + b"y" * (LIMIT - 10) + b'"}}'
    length, sent = b"Content-Length: %d" % len(body), body
    if chunked:
        length, sent = b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    raw = admin.raw(b"POST /publish HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n\r\n" + sent)
    assert Reply(raw).status == 202


# bodies that are too long


BOUND = LIMIT + ENVELOPE_BYTES


def test_too_long_while_it_arrives(admin: Admin) -> None:
    """A body is refused once, as soon as it is too long. The rest is discarded, and then the connection ends."""
    head = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (3 * BOUND)
    raw = admin.raw(head, b"x" * BOUND)
    assert raw == b""
    raw = admin.raw(head, b"x" * BOUND, b"x")
    assert Reply(raw).status == 413
    assert str(BOUND) in Reply(raw).error
    raw = admin.raw(head, *[b"x" * 1000] * (3 * BOUND // 1000 + 1))
    assert raw.count(b"HTTP/1.1") == 1
    assert admin.transport.disconnecting


def test_too_long_in_chunks(admin: Admin) -> None:
    """A chunked body is refused too, also if the chunks come together."""
    head = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    raw = admin.raw(head + chunk * (2 * BOUND // 1000))
    assert Reply(raw).status == 413
    assert raw.count(b"HTTP/1.1") == 1
    assert not admin.transport.disconnecting
    raw = admin.raw(head, chunk * (2 * BOUND // 1000), b"0\r\n\r\n")
    assert raw.count(b"HTTP/1.1") == 1
    assert admin.transport.disconnecting


def test_endless_body(admin: Admin) -> None:
    """A client that never stops sending is disconnected."""
    head = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    admin.raw(head, *[b"x" * 65536] * (DISCARDED_BODIES * BOUND // 65536 + 2))
    assert admin.transport.disconnecting


def test_body_of_the_largest_size(admin: Admin) -> None:
    """A payload of exactly the limit is taken, also in pieces."""
    payload = b'{"x":"' + b"y" * (LIMIT - 8) + b'"}'
    body = b'{"topic":"a.b","payload":' + payload + b"}"
    head = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    raw = admin.raw(head, *(body[at : at + 1000] for at in range(0, len(body), 1000)))
    assert Reply(raw).status == 202


# internal errors


def test_fault_of_ours(admin: Admin, make: Edges) -> None:
    """An internal error is logged with its traceback. The answer is a 500 without details."""

    def broken() -> Mapping[str, object]:
        raise RuntimeError("canary")

    admin.figures = broken
    reply = admin.ask("GET", "/status")
    assert reply.status == 500
    assert "canary" not in reply.error
    (logged,) = make.failures()
    assert "canary" in logged


@each_row(
    "raw",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /status HTTP/9.9\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nCookie: \xff=\xff\r\n\r\n",
        b"GET /status HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"GET /status HTTP/1.1\r\nX: " + b"y" * 100_000,
        b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /publish HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Type: multipart/form-data\r\n\r\n{}",
        b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n{}",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    admin=admin_port,
)
def test_no_traceback(admin: Admin, raw: bytes) -> None:
    """No input makes a traceback, in an answer or in the log."""
    answer = admin.raw(raw)
    assert b"Traceback" not in answer
    assert b" 500 " not in answer


def test_curl(admin: Admin) -> None:
    """curl -d calls its JSON a form. It is taken anyway."""
    reply = admin.ask(
        "POST", "/publish", b'{"topic": "a.b", "payload": {"x": "1&2=3;4"}}', Content_Type="application/x-www-form-urlencoded"
    )
    assert reply.status == 202


@each_row(
    ("content_type", "body"),
    [
        ("application/x-www-form-urlencoded", b"a=1&" * 20_000),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n"),
        ("multipart/form-data", b"--x\r\n"),
    ],
    admin=admin_port,
)
def test_forms_are_not_parsed(admin: Admin, monkeypatch: pytest.MonkeyPatch, content_type: str, body: bytes) -> None:
    """No endpoint takes a form. A page of any site could send one, and Twisted needs a second for 4 MiB, before every check."""
    parsed: list[bytes] = []

    def parse(text: bytes, *_: object) -> dict[bytes, list[bytes]]:
        parsed.append(text)
        return {}

    for name in ("parse_qs", "_getMultiPartArgs"):
        monkeypatch.setattr(http, name, parse)
    reply = admin.ask("POST", "/publish", body, Content_Type=content_type)
    assert (reply.status, parsed) == (400, [])
    assert reply.error


def test_idle_connection_ends(admin: Admin) -> None:
    """A silent connection is closed after a minute."""
    transport = StringTransport()
    channel: Any = admin.site.buildProtocol(LOOPBACK)
    channel.makeConnection(transport)
    clock: Clock = admin.edge.clock
    clock.pump([1] * 61)
    assert transport.disconnecting
    channel.connectionLost(Failure(ConnectionDone()))
