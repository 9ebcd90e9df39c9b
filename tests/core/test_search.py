from __future__ import annotations

from tests.kit.rows import each_row
from towerws.core.deliveries import MARKER_TOPIC
from towerws.core.history import History
from towerws.core.search import MAX_EVENTS, MAX_TOPICS, SEARCHED, SEARCHED_BYTES, count_topics, find_events


def held(*events: tuple[str, bytes], max_bytes: int = 64 * 1024**2) -> History:
    """A history with these events, one a second."""
    history = History(max_bytes, 1e9)
    for number, (topic, payload) in enumerate(events):
        history.append(topic, payload, number, "log", None, float(number))
    return history


ORDERS = held(("orders.1", b'{"a": "x"}'), ("jobs.summary", b"{}"), ("orders.2", b'{"b": 1}'), (MARKER_TOPIC, b"{}"), ("metrics", b"{}"))


@each_row(
    "asked,topics",
    [
        ({}, ["orders.2", "jobs.summary", "orders.1"]),
        ({"after": 2}, ["orders.2"]),
        ({"after": 5}, []),
        ({"group": "orders"}, ["orders.2", "orders.1"]),
        ({"group": "order"}, []),
        ({"text": "orders.1"}, ["orders.1"]),
        ({"text": '"x"'}, ["orders.1"]),
        ({"text": "nothing"}, []),
        ({"text": "summary", "group": "orders"}, []),
    ],
)
def test_find(asked: dict[str, str], topics: list[str]) -> None:
    """The newest comes first. A text is found in topics and payloads. Markers and withheld topics are never shown."""
    found = find_events(ORDERS, **asked)  # type: ignore[arg-type]  # rows have both kinds
    assert ([delivery.topic for delivery in found.events], found.complete) == (topics, True)


def test_bounds() -> None:
    """A search ends at its bounds in events, in deliveries and in bytes, and says so."""
    many = held(*[("a.b", b"{}")] * (SEARCHED + 10))
    found = find_events(many)
    assert (len(found.events), found.complete) == (MAX_EVENTS, False)
    assert find_events(many, text="no such text") == ([], False)
    large = held(*[("a.b", b"x" * 1024**2)] * (SEARCHED_BYTES // 1024**2 + 5))
    assert find_events(large, text="no such text") == ([], False)
    assert find_events(large, after=large.head.seq - 3, text="no such text") == ([], True)


def test_count_topics() -> None:
    """Each topic is counted once, the newest first, with its newest event. The number of topics is bounded."""
    found = count_topics(held(("a.b", b"{}"), ("a.c", b"{}"), ("a.b", b'{"n": 2}'), (MARKER_TOPIC, b"{}")))
    assert [(topic, count, newest.payload) for topic, count, newest in found] == [("a.b", 2, b'{"n": 2}'), ("a.c", 1, b"{}")]
    assert len(count_topics(held(*[(f"a.{number}", b"{}") for number in range(MAX_TOPICS + 5)]))) == MAX_TOPICS
    assert count_topics(held()) == []
