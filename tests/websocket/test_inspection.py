from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from tests.kit.rows import each_row
from tests.kit.ws_kit import Edge, Edges, SlowMethod, edges, request
from towerws.auth.chain import Open
from towerws.core.identity import Identity
from towerws.core.sources import SourceState, SourceStatus
from towerws.websocket import inspection
from towerws.websocket.inspection import (
    DEADLINE_S,
    MAX_CONNECTIONS,
    MAX_SEARCHED,
    TOPICS_SHOWN,
    canonical_topic,
    end_connection,
    explain,
    list_connections,
)

READY = SourceStatus(SourceState.CONSUMING)


class Refusing(Open):
    """Every client is user 7. Topics in `refused` are refused, and `pending` holds questions back."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.pending = self.fault = False

    def authenticate(self, head: Any, address: str) -> Deferred[Identity | None]:
        """Fires at once."""
        return succeed(Identity(user_id=7, method="open"))

    def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
        """Fires at once, or never."""
        if self.fault:
            raise ZeroDivisionError
        return Deferred() if self.pending else succeed({topic: self.refused[topic] for topic in topics if topic in self.refused})


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
    for _ in range(MAX_SEARCHED + 10):
        edge.connect()
    found = list_connections(edge.factory, after=0, text="nobody", limit=50, behind=False)
    assert (found["connections"], found["next"]) == ([], MAX_SEARCHED)
    found = list_connections(edge.factory, after=MAX_SEARCHED, text="nobody", limit=50, behind=False)
    assert (found["connections"], found["next"]) == ([], None)


def test_connections_with_many_topics(make: Edges, monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer also looks at a bounded number of topics, and `next` goes on. Without a text to search for it looks at none."""
    monkeypatch.setattr(inspection, "MAX_SEARCHED_TOPICS", 20)
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


def verdict(edge: Edge, topic: str = "job_events.42", user: str = "7", status: SourceStatus = READY) -> dict[str, Any]:
    """The rule that decides."""
    results: list[dict[str, Any]] = []
    explain(edge.factory, edge.history, user, topic, lambda: status).addCallback(results.append)
    if not results:
        edge.clock.advance(DEADLINE_S)
    (found,) = results
    decides: dict[str, Any] = found["verdict"]
    return decides


def test_every_rule_in_order(make: Edges) -> None:
    """Each rule decides once those before it pass."""
    method = Refusing()
    edge = make(method)
    assert "no such group" in verdict(edge, "nothing.1")["text"]
    assert "numbers of 1 to 18 digits" in verdict(edge, "job_events.x")["text"]
    assert "gets job_events.7" in verdict(edge, "job_events.007")["text"]
    backoff = SourceStatus(SourceState.BACKOFF, "403 ACCESS_REFUSED")
    assert verdict(edge, status=backoff)["text"] == "the source is backoff: 403 ACCESS_REFUSED"
    assert "history is empty" in verdict(edge)["text"]
    edge.publish("jobs.summary", {})
    assert "history holds none" in verdict(edge)["text"]
    edge.publish("job_events.42", {})
    assert "user 7 has no connection to this daemon" in verdict(edge)["text"]
    client = edge.open(v1=True)
    method.refused["job_events.42"] = "not granted"
    assert verdict(edge) == {
        "rule": "the user may have the topic",
        "passes": False,
        "text": "the token of this connection does not list the topic",
        "connection": 1,
    }
    method.refused["job_events.42"] = "unavailable"
    assert verdict(edge)["passes"] is None
    method.refused["job_events.42"] = "no such object"
    assert "no such object" in verdict(edge)["text"]
    method.refused.clear()
    assert "not asked for any topic" in verdict(edge)["text"]
    client.ask({"job_events": [41]})
    assert "asked for 1 topics, and not for this one" in verdict(edge)["text"]
    client.ask({"job_events": [42]})
    assert "came before the subscription" in verdict(edge)["text"]
    edge.publish("job_events.42", {})
    found = verdict(edge)
    assert (found["passes"], found["rule"]) == (True, "the event was written to the connection")


@each_row("topics", [[42], [42, 43]], make=edges)
def test_a_client_that_resumed_and_has_the_event(make: Edges, topics: list[int]) -> None:
    """Its place is after the newest event, as that of a client that subscribed later. Nobody says that it gets nothing."""
    edge = make()
    client = edge.open(v1=True).ask({"job_events": [42]})
    edge.publish("job_events.42", {"n": 1})
    edge.advance(1)
    position = client.take()[-1]["position"]
    client.ask({"job_events": topics}, since=position)
    edge.advance(1)
    found = verdict(edge, user="")
    assert (found["passes"], found["rule"]) == (True, "the next event is written to the connection")
    assert "had it already" in found["text"]


def test_behind(make: Edges) -> None:
    """A client that does not read is behind, and gets the event later."""
    edge = make(Refusing(), backlog_bytes=2000)
    client = edge.open(v1=True).ask({"job_events": [42]})
    client.transport.stalled = True
    for _ in range(5):
        edge.publish("job_events.42", {"text": "x" * 40_000})
    assert "reads more slowly" in verdict(edge)["text"]
    client.transport.stalled = False
    client.transport.drain()
    edge.advance(1)
    assert verdict(edge)["passes"] is True


def test_other_users(make: Edges) -> None:
    """A group whose events belong to one user is refused by its policy. An anonymous client has no user."""
    edge = make(Refusing())
    edge.open(v1=True)
    edge.publish("control.limit_reached_8", {})
    assert "belongs to another user" in verdict(edge, "control.limit_reached_8")["text"]
    assert "an anonymous client has no connection" in verdict(edge, "control.limit_reached_8", user="")["text"]


def test_no_answer(make: Edges) -> None:
    """A method that does not answer in time, or fails, ends nothing: the rule can't be known. A fault is logged."""
    method = Refusing()
    edge = make(method)
    edge.publish("job_events.42", {})
    edge.open(v1=True)
    method.pending = True
    assert verdict(edge)["passes"] is None
    assert make.failures() == []
    method.pending = False
    method.fault = True
    assert verdict(edge)["passes"] is None
    (logged,) = make.failures()
    assert "ZeroDivisionError" in logged


def test_many_connections(make: Edges) -> None:
    """A bounded number of connections is looked at, and the first that doesn't get it decides."""
    edge = make(Refusing())
    for number in range(MAX_CONNECTIONS + 3):
        edge.open(v1=True).ask({"job_events": [42 if number != 4 else 41]})
    edge.publish("job_events.42", {})
    results: list[dict[str, Any]] = []
    explain(edge.factory, edge.history, "7", "job_events.42", lambda: READY).addCallback(results.append)
    assert (len(results[0]["connections"]), results[0]["more_connections"]) == (MAX_CONNECTIONS, 3)
    assert results[0]["verdict"]["connection"] == 5


@each_row("text,topic", [("job_events.42", "job_events.42"), ("job_events-42", "job_events.42"), ("a.b-c", "a.b-c")])
def test_names(text: str, topic: str) -> None:
    """A routing key and a flat name both name a topic."""
    assert canonical_topic(text) == topic


@each_row("text", ["", "job_events", "a.b.c", "-", "a b.c", "x.", ".x"])
def test_bad_names(text: str) -> None:
    """Any other text is refused, with the reason."""
    with pytest.raises(ValueError, match=r"expected|has no"):
        canonical_topic(text)
