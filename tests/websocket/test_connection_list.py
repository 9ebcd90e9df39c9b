from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.ws_kit import Edges, SlowMethod, edges, request
from towerws.websocket import connection_list
from towerws.websocket.connection_list import SEARCHED, TOPICS_SHOWN, end_connection, list_connections


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory. At the end they are checked for leaks, and the log for tracebacks."""
    with edges() as maker:
        yield maker


def test_rows(make: Edges) -> None:
    """A row says who, from where, what it hears, and its state."""
    edge = make()
    edge.open(v1=True).ask({"job_events": list(range(TOPICS_SHOWN + 5))})
    edge.advance(3)
    edge.connect("192.0.2.9")
    found = list_connections(edge.factory, after=0, text="", limit=50, behind=False)
    rows: Any = found["connections"]
    first, second = rows
    assert first.pop("topics") == [f"job_events.{number}" for number in range(TOPICS_SHOWN)]
    assert first == {
        "connection": 1,
        "address": "192.0.2.1",
        "state": "open",
        "user": None,
        "method": "open",
        "session": None,
        "dialect": "v1",
        "behind": False,
        "age_s": 3.0,
        "requests": 1,
        "topic_count": TOPICS_SHOWN + 5,
    }
    assert second == {"connection": 2, "address": "192.0.2.9", "state": "handshake"}
    assert (found["next"], found["present"]) == (None, 2)


def test_pages_and_search(make: Edges) -> None:
    """`next` leads through all connections, also while others come and go. A text is looked for in address and topics."""
    edge = make()
    clients = [edge.open().ask({"job_events": [number]}) for number in range(7)]
    first: Any = list_connections(edge.factory, after=0, text="", limit=3, behind=False)
    assert ([row["connection"] for row in first["connections"]], first["next"]) == ([1, 2, 3], 3)
    clients[2].hang_up()
    clients[4].hang_up()
    second: Any = list_connections(edge.factory, after=3, text="", limit=3, behind=False)
    assert ([row["connection"] for row in second["connections"]], second["next"]) == ([4, 6, 7], None)
    for text, numbers in (("job_events.5", [6]), ("192.0.2", [1, 2, 4, 6, 7]), ("nobody", [])):
        found: Any = list_connections(edge.factory, after=0, text=text, limit=50, behind=False)
        assert [row["connection"] for row in found["connections"]] == numbers
    assert list_connections(edge.factory, after=0, text="", limit=50, behind=True)["connections"] == []


def test_ten_thousand_connections(make: Edges) -> None:
    """One answer looks at a bounded number of connections, and `next` goes on from there, also if none matched."""
    edge = make(limits={"connections": 10_000, "per_address": 10_000, "half_open": 10_000})
    for _ in range(SEARCHED + 10):
        edge.connect()
    found = list_connections(edge.factory, after=0, text="nobody", limit=50, behind=False)
    assert (found["connections"], found["next"]) == ([], SEARCHED)
    found = list_connections(edge.factory, after=SEARCHED, text="nobody", limit=50, behind=False)
    assert (found["connections"], found["next"]) == ([], None)


def test_connections_with_many_topics(make: Edges, monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer also looks at a bounded number of topics, and `next` goes on. Without a text to search for it looks at none."""
    monkeypatch.setattr(connection_list, "SEARCHED_TOPICS", 20)
    edge = make()
    for count in (10, 10, 10, 30):
        edge.open(v1=True).ask({"job_events": list(range(count))})
    after: int | None = 0
    pages = []
    while after is not None:
        found: Any = list_connections(edge.factory, after=after, text="job_events.9", limit=50, behind=False)
        pages.append([row["connection"] for row in found["connections"]])
        after = found["next"]
    assert pages == [[1, 2], [3], [4]]
    found = list_connections(edge.factory, after=0, text="job_events.29", limit=50, behind=False)
    assert (found["connections"], found["next"]) == ([], 2)
    found = list_connections(edge.factory, after=0, text="", limit=50, behind=False)
    assert [row["connection"] for row in found["connections"]] == [1, 2, 3, 4]


def test_end_one(make: Edges) -> None:
    """The client is told to reconnect, and gets 1012. The others stay. A number that is gone ends nothing."""
    edge = make()
    client, other = edge.open(v1=True), edge.open(v1=True)
    assert end_connection(edge.factory, 1)
    assert client.take()[-1]["action"] == "reconnect"
    assert client.close_code() == 1012
    assert other.close_code() is None
    assert not end_connection(edge.factory, 99)
    client.hang_up()
    assert not end_connection(edge.factory, 1)


def test_end_one_during_its_handshake(make: Edges) -> None:
    """A connection that has no session yet is cut off."""
    edge = make(SlowMethod(slow_handshake=True))
    client = edge.connect().send(request())
    assert end_connection(edge.factory, 1)
    edge.advance(1)
    assert client.transport.lost
