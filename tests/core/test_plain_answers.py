from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_hub import STREAM, Log
from tests.core.test_wire import CHANGE, OUTPUT
from tests.kit.event_stream import read_events
from tests.kit.rows import each_row
from towerws.core.deliveries import BEFORE, Delivery, Fingerprint
from towerws.core.errors import CloseReason
from towerws.core.hub import Hub
from towerws.core.identity import Identity
from towerws.core.plain_answers import EVENT_STREAM, HEARTBEAT, HistoryPage, page_json, retry_line
from towerws.core.requests import Denied
from towerws.core.wire import V1, Gap

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
