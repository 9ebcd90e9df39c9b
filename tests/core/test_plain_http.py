from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_hub import STREAM, Log
from tests.core.test_wire import CHANGE, OUTPUT
from tests.kit.event_stream import read_events
from tests.kit.rows import each_row
from towerws.core.deliveries import BEFORE, Delivery, Fingerprint
from towerws.core.errors import CloseReason, HandshakeError, QueryError
from towerws.core.http_head import END, Head, error_response, parse_head
from towerws.core.hub import Hub
from towerws.core.identity import Identity
from towerws.core.plain_http import (
    EVENT_STREAM,
    HEARTBEAT,
    ClientFile,
    HistoryPage,
    PlainRequest,
    Route,
    all_refused,
    cors_headers,
    file_response,
    find_route,
    page_json,
    plain_error,
    read_plain_request,
    retry_line,
)
from towerws.core.requests import Denied
from towerws.core.settings import GroupSettings
from towerws.core.topics import GroupTable
from towerws.core.wire import V1, Gap

GROUPS = GroupTable({"chat": GroupSettings(), "hidden": GroupSettings(policy="never")})
TOPIC = "topic=job_events.42"


def head(path: str, query: str = "", method: str = "GET", **headers: str) -> Head:
    """A request's head."""
    return Head(method, path, query, {"host": "a", **{name.replace("_", "-"): value for name, value in headers.items()}})


@each_row(
    ("found", "route"),
    [
        (head("/websocket/"), Route.WEBSOCKET_PATH),
        (head("/api/websocket"), Route.WEBSOCKET_PATH),
        (head("/websocket/", upgrade="websocket"), None),
        (head("/websocket/", upgrade="h2c"), None),
        (head("/websocket/", method="POST"), None),
        (head("/events"), Route.EVENTS),
        (head("/events/", upgrade="h2c"), Route.EVENTS),
        (head("/websocket/events"), Route.EVENTS),
        (head("/websocket/history/"), Route.HISTORY),
        (head("/events//"), None),
        (head("/event"), None),
        (head("/x/client.js"), Route.FILE),
        (head("/client.ts"), None),
        (head("/"), None),
    ],
)
def test_which_path_is_for_what(found: Head, route: Route | None) -> None:
    """The last segment decides, as for the websocket."""
    assert find_route(found, {"client.js"}) is route


@each_row(
    ("route", "query", "wanted"),
    [
        (Route.EVENTS, TOPIC, PlainRequest(Route.EVENTS, ("job_events.42",))),
        (Route.EVENTS, f"{TOPIC}&{TOPIC}&topic=jobs.summary", PlainRequest(Route.EVENTS, ("job_events.42", "jobs.summary"))),
        (Route.EVENTS, "topic=job_events.042", PlainRequest(Route.EVENTS, ("job_events.42",))),
        (Route.EVENTS, "topic=chat.a%2Bb%26", PlainRequest(Route.EVENTS, ("chat.a+b&",))),
        (Route.EVENTS, f"{TOPIC}&since=12-ab&token=x&session_key=y", PlainRequest(Route.EVENTS, ("job_events.42",), "12-ab")),
        (Route.EVENTS, f"{TOPIC}&since=", PlainRequest(Route.EVENTS, ("job_events.42",))),
        (Route.HISTORY, f"{TOPIC}&since=12-ab&limit=1000", PlainRequest(Route.HISTORY, ("job_events.42",), "12-ab", 1000)),
        (Route.HISTORY, f"{'&'.join([TOPIC] * 4)}&since=&token=x&limit=9", PlainRequest(Route.HISTORY, ("job_events.42",), None, 9)),
        (Route.WEBSOCKET_PATH, "anything=else", PlainRequest(Route.WEBSOCKET_PATH)),
    ],
)
def test_good_requests(route: Route, query: str, wanted: PlainRequest) -> None:
    """Topics are as in a websocket's request: each counts once, and a number has one form."""
    found = read_plain_request(head("/", query), route, GROUPS, 3)
    assert found._replace(groups=None) == wanted
    assert (found.groups is GROUPS) == bool(found.topics)


def test_the_header_counts_before_the_parameter() -> None:
    """An EventSource that reconnects repeats its URL, and has the newer position in the header. `/history` has no such header."""
    asked = head("/events", f"{TOPIC}&since=1-a", last_event_id="2-b")
    assert read_plain_request(asked, Route.EVENTS, GROUPS, 3).since == "2-b"
    assert read_plain_request(asked, Route.HISTORY, GROUPS, 3).since == "1-a"


@each_row(
    ("route", "query", "status", "named"),
    [
        (Route.EVENTS, "", 400, "no topic"),
        (Route.EVENTS, f"{TOPIC}&topics=jobs.summary", 400, "unknown parameter topics: known are since, topic"),
        (Route.EVENTS, f"{TOPIC}&limit=1", 400, "unknown parameter limit"),
        (Route.EVENTS, f"{TOPIC}&%0d%0aX-Evil:%201=2", 400, r"unknown parameter \r\nX-Evil: 1"),
        (Route.EVENTS, f"{TOPIC}&{'x' * 999}=", 400, "unknown parameter xxx"),
        (Route.EVENTS, f"{TOPIC}&since=1-a&since=2-b", 400, "the parameter since may come once"),
        (Route.EVENTS, "topic=job_events", 400, "topic job_events: a topic is GROUP.EVENT"),
        (Route.EVENTS, "topic=job_events.x", 400, "topic job_events.x: no such event in this group"),
        (Route.EVENTS, "topic=nothing.1", 400, "topic nothing.1: no such group"),
        (Route.EVENTS, "topic=hidden.1", 400, "topic hidden.1: no client may subscribe to this group"),
        (Route.EVENTS, "topic=towerws.marker", 400, "topic towerws.marker"),
        (Route.EVENTS, "topic=chat.%E2%98%83", 400, r"topic chat.\u2603: a topic is"),
        (Route.EVENTS, "topic=%ff", 400, "in UTF-8"),
        (Route.EVENTS, "topic=chat.a&topic=chat.b&topic=chat.c&topic=chat.d", 400, "more than 3 topics"),
        (Route.EVENTS, "&".join([TOPIC] * 8), 400, "more than 7 parameters: 3 topics are the most"),
        (Route.HISTORY, "&" * 7, 400, "more than 7 parameters"),
        (Route.HISTORY, f"{TOPIC}&limit=0", 400, "limit 0: a number from 1 to 1000"),
        (Route.HISTORY, f"{TOPIC}&limit=1001", 400, "limit 1001"),
        (Route.HISTORY, f"{TOPIC}&limit=x", 400, "limit x"),
        (Route.HISTORY, f"{TOPIC}&limit=%D9%A1", 400, r"limit \u0661"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(route: Route, query: str, status: int, named: str) -> None:
    """One line of ASCII names the parameter or topic, and the rule."""
    with pytest.raises(HandshakeError) as caught:
        read_plain_request(head("/", query), route, GROUPS, 3)
    assert caught.value.status == status
    assert named in str(caught.value)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)))
def test_any_query_is_read_or_refused(query: str) -> None:
    """No query raises anything else, and the answer to it is one good HTTP head."""
    try:
        read_plain_request(head("/events", query), Route.EVENTS, GROUPS, 1000)
    except HandshakeError as error:
        block, found, body = error_response(error, more=cors_headers("https://a.example", credentials=True)).partition(END)
        assert found
        assert parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n" + block.split(b"\r\n", 1)[1].replace(b"Content-Length", b"X") + END, 100)
        assert body.isascii()


def test_other_methods() -> None:
    """Only GET."""
    for route in (Route.EVENTS, Route.HISTORY, Route.WEBSOCKET_PATH):
        with pytest.raises(HandshakeError, match="GET only"):
            read_plain_request(head("/events", TOPIC, "POST"), route, GROUPS, 3)


def test_refused_topics() -> None:
    """The refusal names topics and reasons. One that could not be checked makes it 503."""
    assert all_refused([Denied("a", "1", "not allowed")]).status == 403
    assert "a.1: not allowed" in str(all_refused([Denied("a", "1", "not allowed")]))
    assert all_refused([Denied("a", "1", "not allowed"), Denied("a", "2", "unavailable")]).status == 503
    assert str(all_refused([Denied("a", str(n), "no") for n in range(12)])).endswith("a.9: no; and 2 more")


@each_row(
    ("reason", "status", "events"),
    [
        ("no_credential", 403, 401),
        ("credential", 403, 401),
        ("user", 503, 429),
        ("throttled", 503, 429),
        ("origin", 403, 403),
        ("address", 503, 503),
    ],
)
def test_statuses(reason: str, status: int, events: int) -> None:
    """A probe has the handshake's status. Events and history tell 401 and 429 apart."""
    error = HandshakeError(status, "text", reason)
    assert plain_error(error, Route.WEBSOCKET_PATH).status == status
    assert plain_error(error, Route.EVENTS).status == events
    assert plain_error(error, Route.HISTORY).reason == reason


def test_a_text_for_the_client_alone() -> None:
    """A refusal that names what the client sent has another text for the log. Its class stays on every path."""
    for error in (
        QueryError(400, "topic c4n4ry: no"),
        all_refused([Denied("c4n4ry", "1", "no")]),
        all_refused([Denied("c4n4ry", "1", "unavailable")]),
    ):
        found = plain_error(error, Route.EVENTS)
        assert isinstance(found, QueryError)
        assert "c4n4ry" in str(found)
        assert "c4n4ry" not in found.logged


def test_cors() -> None:
    """A page of an origin may read the answer. A text that is no origin is not repeated."""
    for credentials in (False, True):
        lines = cors_headers("https://a.example", credentials=credentials)
        assert "Access-Control-Allow-Origin: https://a.example" in lines
        assert ("Access-Control-Allow-Credentials: true" in lines) == credentials
        assert "Access-Control-Allow-Origin: null" in cors_headers("null", credentials=credentials)
        for text in (None, "https://a.example/\u00e9"):
            assert cors_headers(text, credentials=credentials) == ["Vary: Origin"]


def test_files() -> None:
    """A file comes whole or as gzip, and not at all to a client that has it."""
    file = ClientFile("text/javascript", b"body", b"packed", "abc", forever=True)
    assert file_response(head("/client.js"), file).endswith(b"\r\n\r\nbody")
    for refusal in ("gzip;q=0", "br, GZIP ; Q=0.000", "gzip;q=0.0, br"):
        assert b"Content-Encoding" not in file_response(head("/client.js", accept_encoding=refusal), file)
    for accepted in ("gzip", "br, GZIP", "gzip;q=0.001", "gzip;q=1"):
        assert b"Content-Encoding: gzip" in file_response(head("/client.js", accept_encoding=accepted), file)
    packed = file_response(head("/client.js", accept_encoding="br, gzip;q=0.5"), file)
    assert packed.endswith(b"\r\n\r\npacked")
    assert b"Content-Encoding: gzip\r\n" in packed
    assert file_response(head("/client.js", method="HEAD"), file).endswith(
        b"Content-Length: 4\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    assert file_response(head("/client.js", if_none_match='W/"abc"'), file).startswith(b"HTTP/1.1 304 ")
    with pytest.raises(HandshakeError, match="GET only"):
        file_response(head("/client.js", method="PUT"), file)


GAP = Gap(("job_events.42",), "1041-5b0c7e9f21aa", "1899-7a1f03b2c4d5", "history")
DELIVERY = Delivery(1, "job_events.42", OUTPUT, 1042, "0d4ee47ad09c")


@each_row(
    ("written", "frame", "kind", "position"),
    [
        (EVENT_STREAM.welcome(Identity(7), "1041-a", 20), V1.welcome(Identity(7), "1041-a", 20), "welcome", None),
        (
            EVENT_STREAM.frame(DELIVERY),
            V1.event(DELIVERY).replace(b'"type":"event","position":"1042-0d4ee47ad09c",', b""),
            "message",
            "1042-0d4ee47ad09c",
        ),
        (
            EVENT_STREAM.subscribed(CHANGE, [Denied("nonsense", "1", "no such group")], None),
            V1.subscribed(CHANGE, [Denied("nonsense", "1", "no such group")], None),
            "subscribed",
            CHANGE.position,
        ),
        (EVENT_STREAM.revoked(CHANGE, [])[0], V1.revoked(CHANGE, [])[0], "revoked", CHANGE.position),
        (EVENT_STREAM.gap(GAP), V1.gap(GAP), "gap", GAP.end),
        (EVENT_STREAM.bye(CloseReason.RESTART.value, 1500), V1.bye(CloseReason.RESTART.value, 1500), "bye", None),
    ],
    ids=["welcome", "event", "subscribed", "revoked", "gap", "bye"],
)
def test_each_frame_of_v1_is_one_event(written: bytes, frame: bytes, kind: str, position: str | None) -> None:
    """Its data is the frame, and its id the position that the frame moves a reader to. A welcome moves nobody.

    A delivery's frame is without what the event has already.
    """
    (event,) = read_events(written)
    assert (event.kind, event.data, event.id) == (kind, frame.decode(), position)
    assert event.retry == (1500 if kind == "bye" else None)


def test_a_reader_keeps_its_position_where_there_is_none() -> None:
    """An empty id would delete the reader's."""
    for written in (
        EVENT_STREAM.frame(Delivery(1, "job_events.42", OUTPUT, 1042, "")),
        EVENT_STREAM.subscribed(CHANGE._replace(position=""), [], None),
        EVENT_STREAM.gap(Gap((), "", "", "broker")) or b"",
    ):
        (event,) = read_events(written)
        assert event.id is None


@given(st.lists(st.sampled_from(["\n", "\r", "\r\n", " ", '"a\\n:"', "1", "\u2028", ": x", "data: x", "id: 1"])))
def test_no_payload_breaks_out_of_its_event(pieces: list[str]) -> None:
    """Line ends in a payload become line feeds. Nothing else changes, and no line of it is taken for a field."""
    text = "".join(pieces)
    written = EVENT_STREAM.frame(Delivery(1, "chat.a", text.encode(), 3, Fingerprint(b"k")))
    (event,) = read_events(written + HEARTBEAT)
    assert event.data.partition('"payload":')[2] == text.replace("\r\n", "\n").replace("\r", "\n") + "}"


def test_a_payload_over_several_lines_is_the_same_json() -> None:
    """A producer that indents its JSON loses nothing."""
    payload = json.dumps({"a": ["x\ny", 1]}, indent=2).replace("\n", "\r\n").encode()
    (event,) = read_events(EVENT_STREAM.frame(Delivery(1, "chat.a", payload, 3, "e")))
    assert json.loads(event.data)["payload"] == {"a": ["x\ny", 1]}


def test_the_documented_stream() -> None:
    """docs/protocol.md shows each event as it is sent."""
    change = CHANGE._replace(joined=CHANGE.current, left=())
    stream = b"".join(
        [
            retry_line(1730),
            EVENT_STREAM.welcome(Identity(7), "1041-5b0c7e9f21aa", 20),
            EVENT_STREAM.subscribed(change, [], None),
            EVENT_STREAM.frame(DELIVERY),
            HEARTBEAT,
            EVENT_STREAM.gap(GAP) or b"",
            EVENT_STREAM.bye(CloseReason.RESTART.value, 1500) or b"",
        ]
    )
    document = Path(__file__).parents[2] / "docs" / "protocol.md"
    assert f"```text\n{stream.decode()}```" in document.read_text()


A, B = "job_events.1", "job_events.2"
ROOM = 10**6


def numbers(page: HistoryPage) -> list[int]:
    """The numbers in the payloads."""
    return [json.loads(delivery.payload)["n"] for delivery in page.deliveries]


def read_all(hub: Hub, log: Log, topics: list[str], limit: int, max_bytes: int = ROOM) -> list[HistoryPage]:
    """All pages from the oldest delivery on, each from where the one before ends."""
    pages = [hub.read(topics, None, limit, max_bytes)]
    while not pages[-1].complete:
        since = log.history.find(pages[-1].next)
        assert since is not None
        pages.append(hub.read(topics, since, limit, max_bytes))
        assert len(pages) < 500, "each page moves on"
    return pages


@given(st.lists(st.sampled_from([A, B, "x.y"])), st.integers(1, 5), st.integers(0, 2000))
def test_the_pages_together_are_the_topics_history(topics: list[str], limit: int, max_bytes: int) -> None:
    """Each event once, in order, in pages within both bounds."""
    log = Log()
    for topic in topics:
        log.send(topic, raw=200)
    pages = read_all(log.hub, log, [A, B], limit, max_bytes)
    assert [n for page in pages for n in numbers(page)] == [n for n, topic in enumerate(topics, 1) if topic in (A, B)]
    assert all(len(page.deliveries) <= limit for page in pages)
    assert pages[-1].next == log.hub.position


def test_a_hole_is_told_where_it_is() -> None:
    """The page before a hole ends there, says what may be lost, and goes on behind it."""
    log = Log(epoch=STREAM)
    log.send(A, A)
    start = log.history.head
    end = log.history.mark(50, STREAM(A, None, b'{"n": 3, "pad": ""}') + BEFORE, barrier=False)
    log.hub.flush()
    log.hub.gap(start, end, "broker", resumable=True)
    log.offset = 49
    log.send(A)
    first, second = read_all(log.hub, log, [A], 10)
    assert numbers(first) == [1, 2]
    assert first.gap is not None
    assert (first.gap.topics, first.gap.reason, first.gap.end, first.next) == ((A,), "broker", end.position, end.position)
    assert (numbers(second), second.gap) == ([3], None)


def test_only_what_was_flushed_is_given() -> None:
    """A delivery of the open batch comes with the next page: its position can't be resumed from yet."""
    log = Log()
    log.send(A)
    log.publish(A)
    page = log.hub.read([A], None, 10, ROOM)
    assert (numbers(page), page.complete, page.next) == ([1], True, log.hub.position)


@each_row(
    ("payload", "text"),
    [(b'{"n": 1}', None), (b'{"n": NaN}', '{"n": NaN}'), (b'{"n": "\\ud800"}', None), ('{"a": "\u2603"}'.encode(), None)],
)
def test_the_answer_is_json_with_any_payload(payload: bytes, text: str | None) -> None:
    """A payload that a strict parser may refuse comes as text."""
    page = HistoryPage([Delivery(1, A, payload, 7, "e")], "7-e", None, complete=True)
    answer = json.loads(page_json(page, [Denied("chat", "a", "not allowed")], recovered=True), parse_constant=lambda name: 1 / 0)
    (event,) = answer.pop("events")
    if text is None and "text" in event:
        assert json.loads(event["text"]) == json.loads(payload)
    elif text is None:
        assert event["payload"] == json.loads(payload)
    else:
        assert (event["payload"], event["text"]) == (None, text)
    assert (event["position"], event["group"], event["event"]) == ("7-e", "job_events", "1")
    denied = [{"topic": "chat.a", "reason": "not allowed"}]
    assert answer == {"next": "7-e", "complete": True, "recovered": True, "gap": None, "denied": denied}
