"""The numbered promises about hostile clients, each with fifty bystanders that must notice nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from twisted.internet.defer import Deferred, succeed

from tests.auth.tower_kit import FakeFetcher, me
from tests.kit.bystanders import Bystanders
from tests.kit.hostile_heads import LISTED, PAGE_ORIGINS, PageOrigin
from tests.kit.rows import each_row
from tests.kit.ws_kit import CONTINUATION, PING, PONG, TEXT, Edge, Edges, SlowMethod, close, edges, frame, request, text
from towerws.auth.chain import Open
from towerws.auth.tower import TowerMethod
from towerws.auth.tower_api import Answer
from towerws.core.http_head import Head
from towerws.core.identity import Identity
from towerws.core.settings import AccessSettings, Secret, TowerSettings

MANY = {"connections": 20_000, "per_address": 20_000, "half_open": 20_000, "per_user": 20_000}


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


def test_slow_heads(make: Edges) -> None:
    """Promise 19: 5,000 clients with one byte a second are cut off at 15 ± 1 s. New clients meanwhile connect at once."""
    edge = make(limits=MANY)
    others = Bystanders(edge)
    slow = [edge.connect(f"203.0.113.{number % 250}") for number in range(5000)]
    head = request()
    for second in range(14):
        for client in slow:
            client.send(head[second : second + 1])
        others.pump(1)
        assert edge.connect().send(request()).status == 101
    assert not any(client.transport.lost for client in slow)
    others.pump(2)
    assert all(client.transport.lost for client in slow)
    for client in edge.clients[-14:]:
        client.hang_up()
    others.alone()


@each_row(
    "pieces",
    [
        [b"GET /websocket/ HTTP/1.1\r\nX: " + b"a" * 16_384],
        [b"GET /websocket/ HTTP/1.1\r\nX: "] + [b"a" * 64] * 256,
        [request(added=[f"X-{number}: y" for number in range(10_000)])],
        [request(added=[f"X: {number}" for number in range(101)])],
        [b"GET /websocket/ HTTP/1.1\r\n" + b"\r\n".join(b"X:" for _ in range(6000))],
    ],
    ids=["endless", "endless in pieces", "10,000 headers", "101 headers", "6,000 headers without an end"],
    make=edges,
)
def test_huge_heads(make: Edges, pieces: list[bytes]) -> None:
    """Promise 19: an endless head, or one with 10,000 headers, gets 431. Its connection is gone within the linger time."""
    edge = make()
    others = Bystanders(edge)
    client = edge.connect().send(*pieces)
    assert client.status == 431
    assert client.held == 0
    others.pump(edge.settings.linger_s + 1)
    assert client.transport.lost
    others.alone()


@each_row("talks", [False, True], ids=["silent", "talking"], make=edges)
def test_never_reads(make: Edges, talks: bool) -> None:
    """Promises 20 and 22: a client that never reads 1 MB/s costs at most its bound. It is aborted when it answers no ping.

    Meanwhile it falls behind. It is not dropped after 10 s, because AWX's pages would not reconnect.
    """
    edge = make()
    others = Bystanders(edge)
    client = edge.open().listen(1)
    client.transport.stalled = True
    most = 0

    def load() -> None:
        nonlocal most
        for _ in range(10):
            edge.publish("job_events.1", {"x": "y" * 25_000})
        most = max(most, len(client.transport.waiting))
        if talks:
            client.send(frame(PONG))

    others.pump(edge.settings.ping_s + edge.settings.pong_s + 1, load)
    assert most < edge.settings.backlog_bytes + 2 * 65_536
    assert client.transport.aborted
    assert client.transport.lost
    others.alone()


def test_closes_and_stalls(make: Edges) -> None:
    """Promise 21: a client that closes and does not read gets nothing more. Its connection is gone within 3 s."""
    edge = make()
    others = Bystanders(edge)
    client = edge.open().listen(1)
    client.transport.stalled = True
    edge.publish("job_events.1", {"x": "y" * 200_000})
    client.send(close())
    waiting = len(client.transport.waiting)
    others.pump(3, lambda: edge.publish("job_events.1", {"x": "y" * 100_000}))
    assert len(client.transport.waiting) <= waiting
    assert client.transport.lost
    others.alone()


def test_vanished(make: Edges) -> None:
    """Promise 23: 1,000 clients that vanish without a close are gone a second after the timeout of a ping."""
    edge = make(limits=MANY)
    others = Bystanders(edge)
    gone = [edge.open().listen(1) for _ in range(1000)]
    for client in gone:
        client.transport.stalled = True
    others.pump(edge.settings.ping_s + edge.settings.pong_s - 1)
    assert not any(client.transport.lost for client in gone)
    others.pump(2)
    assert all(client.transport.lost for client in gone)
    others.alone()


def test_ping_flood(make: Edges) -> None:
    """Promise 24: of 100,000 unread pongs the first second's worth is sent. Then comes 1008, and input is ignored."""
    edge = make()
    others = Bystanders(edge)
    client = edge.open().listen(1)
    client.transport.stalled = True
    flood = frame(PING, b"x" * 125) * 1000
    for _ in range(100):
        client.send(flood)
    assert not client.transport.reading
    assert len(client.transport.waiting) < 65_536
    client.transport.drain()
    assert client.close_code() == 1008
    others.pump(edge.settings.linger_s + 1)
    others.alone()


@each_row(
    ("first", "rest"),
    [
        (frame(TEXT, fin=False), frame(CONTINUATION, fin=False) * 1000),
        (frame(TEXT, b"ab", fin=False), frame(CONTINUATION, b"ab", fin=False) * 1000),
        (frame(TEXT, b"x" * 100)[:50], b""),
        (frame(TEXT, b"ab", fin=False), b""),
        (frame(TEXT, raw=60_000), b"x" * 100),
    ],
    ids=["empty", "two bytes", "half a frame", "never finished", "trickling"],
    make=edges,
)
def test_fragment_flood(make: Edges, first: bytes, rest: bytes) -> None:
    """Promise 25: after 64 fragments or 10 s it gets 1008. At most 128 KiB were held for it at any time."""
    edge = make()
    others = Bystanders(edge)
    client = edge.open().send(first)

    def go_on() -> None:
        client.send(rest)
        assert client.held < 128 * 1024

    others.pump(10.5, go_on)
    assert client.close_code() == 1008
    others.pump(edge.settings.linger_s + 1, go_on)
    assert client.transport.lost
    others.alone()


@each_row(
    "offer", ["permessage-deflate", "permessage-deflate; server_max_window_bits=9", "permessage-bzip2, x-webkit-deflate-frame"], make=edges
)
def test_no_compression(make: Edges, offer: str) -> None:
    """Promise 27: no offer of compression is accepted, and a compressed bomb gets 1002 without being inflated."""
    edge = make()
    others = Bystanders(edge)
    client = edge.connect().send(request(added=[f"Sec-WebSocket-Extensions: {offer}"]))
    assert client.status == 101
    assert b"Extensions" not in client.response
    client.send(frame(TEXT, b"\xec\xc1\x01\x01" + b"\x00" * 60_000, rsv=4))
    assert client.close_code() == 1002
    others.pump(edge.settings.linger_s + 1)
    others.alone()


COOKIE = "Cookie: sessionid={}; csrftoken=c"


def tower(make: Edges, **settings: float) -> tuple[Edge, FakeFetcher]:
    """An edge that uses the Tower API. The test gives the answers."""
    fetcher = FakeFetcher()
    method = TowerMethod(TowerSettings(url="http://tower.example", **settings), make.clock, fetcher=fetcher)  # type: ignore[arg-type]
    edge = make(method, access=AccessSettings(check_xrftoken=False), limits=MANY, ping_s=3600)
    edge.context.credential_monitor.start()
    fetcher.answers["/api/v2/me/"] = me(7)
    return edge, fetcher


def test_an_api_that_is_down(make: Edges) -> None:
    """Promise 28: if the API is silent, new clients get a 503 in time, it has at most 50 open calls, and open connections deliver."""
    edge, fetcher = tower(make, valid_s=0)
    others = Bystanders(edge, head=request(added=[COOKIE.format("good")]))
    fetcher.answers.clear()
    fetcher.asked.clear()
    new = [edge.connect(f"192.0.2.{number}").send(request(added=[COOKIE.format(f"s{number}")])) for number in range(200)]
    assert len(fetcher.asked) <= 50
    others.pump(3)
    assert {client.status for client in new} == {503}
    assert all(client.transport.lost for client in new)
    asked = len(fetcher.asked)
    late = [edge.connect().send(request(added=[COOKIE.format("later")])) for _ in range(20)]
    assert {client.status for client in late} == {503}, "the breaker is open: nobody waits"
    others.pump(1)
    assert len(fetcher.asked) == asked
    for _, _, answer in fetcher.asked:
        answer.callback(me(7))  # too late
    assert edge.factory.opened == len(others.clients)
    others.pump(4, lambda: edge.connect().send(request(added=[COOKIE.format("probe")])))
    assert asked < len(fetcher.asked) <= asked + 3, "it is probed once in 5 s"
    others.pump(300)
    fetcher.answers["/api/v2/me/"] = me(7)
    others.pump(12)
    assert edge.connect().send(request(added=[COOKIE.format("back")])).status == 101
    edge.clients[-1].hang_up()
    edge.context.credential_monitor.stop()
    others.alone()


@each_row("more", [request("/b/websocket/", v1=True), text({"groups": {}}), b"x" * 1024**2], ids=["request", "frames", "1 MiB"], make=edges)
def test_one_opening(make: Edges, more: bytes) -> None:
    """Promise 29: bytes sent while the credential is checked are no second opening: one check, one 101, the first identity."""

    class Gate(SlowMethod):
        def refusals(self, identity: Identity, topics: object) -> Deferred[dict[str, str]]:
            return succeed({})

    method = Gate()
    edge = make(method)
    others = Bystanders(edge)
    method.handshakes.clear()
    method._slow_handshake = True
    client = edge.connect().send(request("/a/websocket/"), *(more[at : at + 65_536] for at in range(0, len(more), 65_536)))
    assert [head.path for head, _ in method.handshakes] == ["/a/websocket/"]
    assert client.held <= 16 * 1024
    asked = method.handshakes[0][1]
    if not asked.called:
        asked.callback(Identity(9))
    assert client.transport.received.count(b"HTTP/1.1 101 ") == (0 if len(more) > 16 * 1024 else 1)
    others.pump(edge.settings.linger_s + 1)
    client.hang_up()
    others.alone()


class Browser(Open):
    """Every client is user 7, by a cookie or not."""

    def __init__(self, *, cookie: bool) -> None:
        self._identity = Identity(7, cookie=cookie, csrftoken=Secret("t") if cookie else None, session="5e55")

    def authenticate(self, head: Head, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(self._identity)


@each_row("page", PAGE_ORIGINS, ids=lambda page: f"{page.origin!s:.40} on {page.host:.40}", make=edges)
def test_origins(make: Edges, page: PageOrigin) -> None:
    """Promise 31: the table of origins under each policy, with a cookie and without. With the check off all pages connect."""
    lines = [f"Host: {page.host}", *([] if page.origin is None else [f"Origin: {page.origin}"])]
    malformed = page.host in ("", "2001:db8::1")  # no host: a 400 may come first
    own = page.allowed and page.origin not in (None, *LISTED, f"{LISTED[0]}:443")
    for cookie, access, allowed in (
        (True, AccessSettings(origins=LISTED), page.allowed),
        (True, AccessSettings(), own or page.origin is None),
        (True, AccessSettings(check_origin=False), True),
        (False, AccessSettings(origins=LISTED), page.allowed),
    ):
        edge = make(Browser(cookie=cookie), access=access)
        bystander = edge.open()
        client = edge.connect().send(request(without=["Host"], added=lines))
        assert client.status in ({101 if allowed else 403} | ({400} if malformed else set()))
        if client.status == 403:
            assert client.response.endswith(b"\r\n\r\na page of this origin may not connect here\n")
        assert len(edge.hub.subscribers) - edge.context.credential_monitor.watchers - 1 == (client.status == 101)
        assert bystander.close_code() is None


NAMES = ["job_events", "jobs", "control", "metrics", "workflow_events", "chat", "job_events-42", "broadcast-group_send", "JOB_EVENTS", ""]
ITEMS: list[Callable[[Random], object]] = [
    lambda random: random.randint(0, 10 ** random.randint(0, 19)),
    lambda random: -random.randint(0, 10**6),
    lambda random: str(random.randint(0, 10**22)),
    lambda random: random.choice(
        ["#", "*", "job_events.#", "a.b", ".", "", " 42", "42 ", "42.0", "4\u00b2", "\u0664\u0662", "x" * 300, "a\0b", "42\n"]
    ),
    lambda random: random.choice([True, False, None, 42.0, 1e308, [], [42], {}, {"a": 1}]),
    lambda random: "".join(
        chr(random.choice([random.randrange(32, 127), random.randrange(0xD800), random.randrange(0xE000, 0x110000)]))
        for _ in range(random.randrange(1, 12))
    ),
    lambda random: random.choice(["status_changed", "summary", "changed", "limit_reached_7", "limit_reached_8", "limit_reached"]),
]


def test_names_are_inert(make: Edges) -> None:
    """Promise 32: of 100,000 generated names and values only exact names of known groups are subscribed. The connection stays."""
    random = Random("names")
    edge = make(messages_burst=100_000, malformed=100_000)
    others = Bystanders(edge)
    client = edge.open()
    asked = 0
    while asked < 100_000:
        groups: dict[str, object] = {}
        for name in [*random.sample(NAMES, 3), f"x{random.random()}"]:
            items = [random.choice(ITEMS)(random) for _ in range(25)]
            groups[name] = items if random.random() < 0.98 else random.choice([True, 42, None, "job_events-42", {}])
            asked += 25
        client.ask(groups)
        *errors, answer = client.take()
        assert all(set(error) == {"error"} for error in errors)
        if "error" in answer:
            assert any(not isinstance(items, list) for items in groups.values()), answer
            continue
        held = {topic.partition(".")[::2] for topic in next(m for m in edge.hub.subscribers if m.peer is client.connection).topics}
        assert answer["groups_current"] == sorted(f"{group}-{event}" for group, event in held)
        for group, event in held:
            assert group in {"job_events", "jobs", "control", "workflow_events", "chat"}
            assert event in {str(item) for item in groups[group] if isinstance(item, int | str)} or event.isdigit()  # type: ignore[attr-defined]
            assert not set(event) & set("#*. \0\n")
        if asked % 10_000 == 0:
            others.check()
    client.hang_up()
    others.alone()


def test_subscribe_flood(make: Edges) -> None:
    """Promise 33: 10,000 subscriptions at once get 1008 at the bound and leave nothing. At the rate all are answered."""
    edge = make()
    others = Bystanders(edge)
    client = edge.open()
    message = text({"groups": {"job_events": list(range(20))}})
    client.send(*[message * 100] * 100)
    client.take()
    assert client.close_code() == 1008
    assert edge.context.requests < 100 + len(others.clients)
    others.pump(edge.settings.linger_s + 1)
    assert client.transport.lost
    others.alone()
    steady = edge.open()
    for _ in range(30):
        steady.send(message * 20)
        others.pump(1)
    assert len(steady.take()) == 600
    assert steady.close_code() is None
    steady.hang_up()
    others.alone()


def test_1001_topics(make: Edges) -> None:
    """Promise 33: a request with one topic too many is refused as a whole, and changes nothing."""
    edge = make()
    others = Bystanders(edge)
    client = edge.open().listen(*range(1000))
    client.ask({"job_events": list(range(1001))})
    (answer,) = client.take()
    assert "error" in answer
    assert edge.hub.topics == 1001
    client.hang_up()
    others.alone()


def test_revocation(make: Edges) -> None:
    """Promise 34: after a session is deleted or a job hidden, no event of it comes after 60 s. Other clients miss nothing."""
    edge, fetcher = tower(make)
    others = Bystanders(edge, head=request(added=[COOKIE.format("good")]))
    fetcher.answers |= {"/api/v2/jobs/1/": me(), "/api/v2/jobs/2/": me()}
    fetcher.answers["/api/v2/me/"] = me(8)
    ended, limited = (edge.connect().send(request(added=[COOKIE.format(session)])) for session in ("ended", "limited"))
    for client in (ended, limited):
        client.ask({"job_events": [1, 2]})
        assert client.take()[-1]["groups_current"] == ["job_events-1", "job_events-2"]
    sessions = {"good": me(7), "limited": me(8)}

    def answer() -> None:
        for path, headers, asked in fetcher.asked:
            session = dict(headers)["Cookie"].partition(";")[0].partition("=")[2]
            if not asked.called and path == "/api/v2/me/":
                asked.callback(sessions.get(session, Answer(401, b"{}")))
            elif not asked.called:
                asked.callback(Answer(403, b"{}") if path == "/api/v2/jobs/2/" and session == "limited" else me())
        fetcher.asked.clear()

    del fetcher.answers["/api/v2/me/"], fetcher.answers["/api/v2/jobs/2/"]
    others.pump(60, answer)
    assert ended.close_code() == 1008
    edge.publish("job_events.2", {"n": 2})
    edge.publish("job_events.1", {"n": 1})
    assert limited.take() == [{"error": "access denied to channel job_events for resource id 2"}, {"n": 1}]
    assert limited.close_code() is None
    limited.hang_up()
    others.pump(3, answer)
    edge.context.credential_monitor.stop()
    others.alone()


BOMBS = {
    "brackets": "[" * 65_536,
    "braces": '{"a":' * 13_000,
    "deep groups": '{"groups":' + "[" * 60_000,
    "5,000 digits": '{"groups":{"job_events":[' + "9" * 5000 + "]}}",
    "duplicate keys": '{"groups":{},"groups":{"job_events":[1]}}',
    "NaN": '{"groups":{"job_events":[NaN]}}',
    "Infinity": '{"groups":{"job_events":[-Infinity]}}',
    "10,000 keys": json.dumps({f"{number}": 0 for number in range(5000)} | {"groups": {f"{number}": [] for number in range(4000)}})[
        :65_000
    ],
    "byte order mark": '\ufeff{"groups":{}}',
    "escapes": '{"groups":{"' + "\\u0000" * 10_000 + '":[1]}}',
}


@each_row("name", BOMBS, make=edges)
def test_json_bombs(make: Edges, name: str) -> None:
    """Promise 35: it gets an error, subscribes to nothing and causes no traceback. The next request is handled."""
    edge = make()
    others = Bystanders(edge)
    client = edge.open().send(text(BOMBS[name]))
    answers = client.take()
    assert "error" in answers[0]
    assert edge.hub.topics == 1
    assert make.failures() == []
    client.listen(1)
    client.hang_up()
    others.alone()


def test_utf_16(make: Edges) -> None:
    """Promise 35: UTF-16 is not UTF-8: it gets 1007 if it is invalid UTF-8, an error otherwise."""
    edge = make()
    others = Bystanders(edge)
    assert edge.open().send(frame(TEXT, '{"groups":{}}'.encode("utf-16"))).close_code() == 1007
    client = edge.open().send(frame(TEXT, '{"groups":{}}'.encode("utf-16-le")))
    assert "error" in client.take()[0]
    for each in edge.clients[-2:]:
        each.hang_up()
    others.alone()


def test_each_promise_has_its_tests() -> None:
    """Each promise to clients has tests that name it as `Promise <number>`."""
    sources = [path.read_text() for path in Path(__file__).parent.rglob("test_*.py")]
    named = {
        int(number)
        for source in sources
        for found in re.findall(r"\bPromises? (\d+(?:(?:,| and) \d+)*)", source)
        for number in re.findall(r"\d+", found)
    }
    assert named >= {16, 17, *range(19, 36), 39}, "18 is measured: make bench SCENARIO=storm"
