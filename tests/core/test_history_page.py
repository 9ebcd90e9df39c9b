from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_hub import STREAM, Log
from tests.kit.rows import each_row
from towerws.core.deliveries import BEFORE, Delivery
from towerws.core.history_page import HistoryPage, page_json
from towerws.core.hub import Hub
from towerws.core.requests import Denied

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
