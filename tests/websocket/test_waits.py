"""Requests with many objects: parts that need no check take effect at once, and a smaller request does not wait for a larger one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tests.auth.tower_kit import URL, me
from tests.kit.rows import each_row
from tests.kit.ws_kit import Client, Edge, Edges, edges, request, text
from towerws.auth.tower import TowerMethod
from towerws.auth.tower_api import Answer
from towerws.core.settings import TowerSettings
from towerws.websocket.waits import ANSWER_S

IDS = list(range(1, 201))


class Api:
    """A Tower whose answers take `answer_s`. It hides every second object. Used in place of `Fetcher`."""

    def __init__(self, clock: Clock, answer_s: float) -> None:
        self._clock = clock
        self.answer_s = answer_s
        self.hidden: set[str] = set()
        self.asked: list[str] = []
        self.under_way = self.most = 0

    def get(self, url: str, headers: Iterable[tuple[str, str]]) -> Deferred[Answer]:
        """Answer after a delay. The question for the user itself is answered at once."""
        path = url.removeprefix(URL)
        if path.endswith("/me/"):
            return succeed(me())
        self.asked.append(path)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        asked: Deferred[Answer] = Deferred(lambda _: call.cancel())
        call = self._clock.callLater(self.answer_s, asked.callback, Answer(403 if path.split("/")[-2] in self.hidden else 200, b"{}"))
        asked.addBoth(self._over)
        return asked

    def _over(self, result: Any) -> Any:
        self.under_way -= 1
        return result

    def stop(self) -> Deferred[None]:
        """Nothing to close."""
        return succeed(None)


class Scene:
    """A client of Tower, and the API that is asked about it."""

    def __init__(self, make: Edges, answer_s: float = 0.05, *, v1: bool = False) -> None:
        self.api = Api(make.clock, answer_s)
        self.edge: Edge = make(TowerMethod(TowerSettings(url=URL), make.clock, fetcher=self.api), ping_s=3600)
        self.client: Client = self.edge.connect().send(request(added=["Authorization: Bearer t"], v1=v1))
        self.client.take()

    def advance(self, seconds: float) -> list[Any]:
        """Let time pass. Returns the messages that the client got."""
        self.edge.advance(seconds, step=0.05)
        return self.client.take()


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


def test_two_hundred_objects(make: Edges) -> None:
    """Four questions run at a time, so they take a quarter of the time. The answer names all objects."""
    scene = Scene(make)
    scene.api.hidden = {"7"}
    scene.client.ask({"job_events": IDS})
    assert scene.advance(2.3) == []
    denied, reply = scene.advance(0.5)
    assert denied == {"error": "access denied to channel job_events for resource id 7"}
    assert len(reply["groups_current"]) == len(reply["groups_joined"]) == 199
    assert scene.api.most == 4


KNOWN = [
    {"jobs": ["status_changed"]},
    {"jobs": ["status_changed", "summary"], "schedules": ["changed"], "inventories": ["status_changed"]},
    {"control": ["limit_reached_7"]},
    {"chat": ["room"]},
]


@each_row("known", KNOWN)
@each_row("v1", [False, True], make=edges)
def test_what_needs_no_question_is_joined_at_once(make: Edges, known: dict[str, list[str]], v1: bool) -> None:
    """Their events arrive while the objects are checked. The one answer then names everything that was subscribed."""
    scene = Scene(make, v1=v1)
    scene.client.ask({**known, "job_events": IDS})
    topics = [f"{group}.{event}" for group, events in known.items() for event in events]
    for number, topic in enumerate(topics):
        scene.edge.publish(topic, {"n": number})
    heard = scene.client.take()
    assert [event["payload"] if v1 else event for event in heard] == [{"n": number} for number in range(len(topics))]
    (reply,) = scene.advance(3)
    mark = "." if v1 else "-"
    flat = sorted([topic.replace(".", mark) for topic in topics] + [f"job_events{mark}{number}" for number in IDS])
    assert (reply["groups_current"], reply["groups_joined"], reply["groups_left"]) == (flat, flat, [])
    scene.edge.publish(topics[0], {"n": "once"})
    assert len(scene.client.take()) == 1


def test_what_was_known_before_is_joined_at_once(make: Edges) -> None:
    """An object with a cached answer needs no check. A topic of another user needs none, either."""
    scene = Scene(make)
    scene.client.ask({"job_events": [1]})
    assert len(scene.advance(0.5)) == 1
    scene.client.ask({"job_events": [1, 2], "control": ["limit_reached_8"]})
    scene.edge.publish("job_events.1", {"n": 1})
    scene.edge.publish("control.limit_reached_8", {"n": 2})
    assert scene.client.take() == [{"n": 1}]
    denied, reply = scene.advance(0.5)
    assert denied == {"error": "access denied to channel control for resource id limit_reached_8"}
    assert (reply["groups_joined"], reply["groups_left"]) == (["job_events-2"], [])


def test_what_is_left_is_left_with_the_answer(make: Edges) -> None:
    """Until then the old topics deliver. The answer names what was unsubscribed since the request."""
    scene = Scene(make)
    scene.client.ask({"jobs": ["summary"]}).take()
    scene.client.ask({"jobs": ["status_changed"], "job_events": [1]})
    scene.edge.publish("jobs.summary", {"n": 1})
    scene.edge.publish("jobs.status_changed", {"n": 2})
    assert scene.client.take() == [{"n": 1}, {"n": 2}]
    (reply,) = scene.advance(0.5)
    assert reply == {
        "groups_current": ["job_events-1", "jobs-status_changed"],
        "groups_left": ["jobs-summary"],
        "groups_joined": ["job_events-1", "jobs-status_changed"],
    }
    scene.edge.publish("jobs.summary", {"n": 3})
    assert scene.client.take() == []


def test_a_request_that_resumes_joins_all_at_its_end(make: Edges) -> None:
    """The missed events come first, in order, and once."""
    scene = Scene(make, v1=True)
    scene.client.ask({"jobs": ["summary"]})
    since = scene.client.take()[0]["position"]
    for number in range(3):
        scene.edge.publish("jobs.summary", {"n": number})
    scene.edge.publish("job_events.1", {"n": 3})
    again = scene.edge.connect().send(request(added=["Authorization: Bearer t"], v1=True))
    again.take()
    again.ask({"jobs": ["summary"], "job_events": [1]}, since=since)
    scene.edge.publish("jobs.summary", {"n": 4})
    assert again.take() == []
    scene.edge.advance(0.5)
    reply, *events = again.take()
    assert reply["recovered"] is True
    assert [event["payload"]["n"] for event in events] == [0, 1, 2, 3, 4]


NEWER = [
    ({}, []),
    ({"jobs": ["status_changed"]}, ["jobs-status_changed"]),
    ({"schedules": ["changed"], "control": ["limit_reached_7"]}, ["control-limit_reached_7", "schedules-changed"]),
]


@each_row(("newer", "current"), NEWER)
@each_row("answer_s", [0.05, 1.9], make=edges)
def test_a_request_without_objects_does_not_wait(make: Edges, newer: dict[str, list[str]], current: list[str], answer_s: float) -> None:
    """awxkit's `unsubscribe()` is answered at once, after the answer to the request that it replaces. No later event follows."""
    scene = Scene(make, answer_s)
    scene.client.ask({"jobs": ["summary"], "job_events": IDS})
    scene.advance(0.5)
    scene.client.ask(newer)
    before, reply = scene.client.take()
    known = 4 * int(0.45 / answer_s)
    assert len([name for name in before["groups_current"] if name.startswith("job_events")]) in range(known, known + 9)
    assert "jobs-summary" in before["groups_current"]
    assert reply["groups_current"] == current
    assert scene.advance(15) == []
    session = scene.client.connection._session
    assert session is not None
    assert len(session.subscriber.topics) == len(current)


def test_what_the_replaced_request_is_told_in_v1(make: Edges) -> None:
    """Each item that was still undecided is listed with its reason. The ids tell which answer belongs to which request."""
    scene = Scene(make, 1.0, v1=True)
    scene.client.ask({"job_events": [1, 2], "jobs": ["summary"]}, id="a").ask({}, id="b")
    first, second = scene.client.take()
    assert (first["id"], first["groups_current"], first["groups_joined"]) == ("a", ["jobs.summary"], ["jobs.summary"])
    assert first["denied"] == [{"topic": f"job_events.{number}", "reason": "superseded"} for number in (1, 2)]
    assert (second["id"], second["groups_current"], second["groups_left"]) == ("b", [], ["jobs.summary"])
    assert scene.advance(2) == []


@each_row("other", ["x", '{"groups": 3}', '{"groups": {"jobs": [NaN]}}', "{}", '{"token": "x"}'], make=edges)
def test_what_is_no_request_replaces_none(make: Edges, other: str) -> None:
    """It waits in line, and the request before it is carried out in full."""
    scene = Scene(make)
    scene.client.ask({"job_events": [1, 2, 3]}).send(text(other))
    reply, *_ = scene.advance(0.5)
    assert len(reply["groups_current"]) == 3


def test_a_request_with_a_wrong_xrftoken_replaces_none(make: Edges) -> None:
    """A page of another site can't change a connection's subscriptions."""
    scene = Scene(make)
    client = scene.edge.connect().send(request(added=["Cookie: sessionid=k; csrftoken=c"]))
    client.take()
    client.ask({"job_events": [1]}, xrftoken="c").ask({}, xrftoken="wrong")
    assert client.take() == []
    scene.edge.advance(0.5)
    assert [next(iter(reply)) for reply in client.take()] == ["groups_current", "error"]


def test_what_both_requests_hold_goes_on_without_a_gap(make: Edges) -> None:
    """This holds even if the cached answer has expired and must be asked for again (contract 1.4.10)."""
    scene = Scene(make, 0.5)
    scene.client.ask({"job_events": [1]})
    assert scene.advance(1)
    scene.advance(46)  # allowed_s
    heard = []
    for number, ids in enumerate(([1, 2], [1, 2, 3], [1, 3])):
        scene.client.ask({"job_events": ids})
        scene.edge.publish("job_events.1", {"n": number})
        heard += scene.advance(0.2)
    scene.edge.publish("job_events.1", {"n": 3})
    heard += scene.advance(2)
    assert [event["n"] for event in heard if "n" in event] == [0, 1, 2, 3]


def test_an_answer_is_not_awaited_for_ever(make: Edges) -> None:
    """After some seconds the client gets the answers known so far. It may ask for the rest again, and then gets what was learned since."""
    scene = Scene(make, 1.9, v1=True)
    scene.client.ask({"job_events": IDS, "jobs": ["summary"]})
    assert scene.advance(ANSWER_S - 0.1) == []
    (reply,) = scene.advance(0.2)
    assert len(reply["groups_current"]) == 1 + 4 * int(ANSWER_S / 1.9)
    assert {item["reason"] for item in reply["denied"]} == {"unavailable"}
    scene.client.ask({"job_events": IDS, "jobs": ["summary"]})
    (again,) = scene.advance(ANSWER_S + 0.2)
    assert len(again["groups_current"]) > len(reply["groups_current"]) + 12
    scene.advance(3)


def test_hang_up_while_asking(make: Edges) -> None:
    """No timer is left (the fixture checks), and nothing is subscribed."""
    scene = Scene(make)
    scene.client.ask({"job_events": IDS, "jobs": ["summary"]})
    scene.advance(0.2)
    scene.client.hang_up()
    scene.edge.advance(1)
    assert scene.edge.hub.topics == 0


@each_row("connections", [1, 4, 40])
@each_row(("users", "ids"), [(5, [42, 43]), (1, list(range(1, 51)))], make=edges)
def test_one_question_for_each_credential_object_and_round(make: Edges, connections: int, users: int, ids: list[int]) -> None:
    """A credential with many connections asks once at the beginning, and once a round. In 145 s there are three rounds."""
    api = Api(make.clock, 0.01)
    edge = make(TowerMethod(TowerSettings(url=URL), make.clock, fetcher=api), ping_s=3600)
    edge.context.credential_monitor.start()
    clients = [
        edge.connect(f"192.0.2.{user}").send(request(added=[f"Authorization: Bearer t{user}"]), text({"groups": {"job_events": ids}}))
        for _ in range(connections)
        for user in range(users)
    ]
    edge.advance(145, step=0.05)
    assert all(client.take()[-1]["groups_current"] for client in clients)
    edge.context.credential_monitor.stop()
    edge.advance(1)
    assert 3 * users * len(ids) <= len(api.asked) <= 5 * users * len(ids)
    rounds = [api.asked.count(path) for path in set(api.asked)]
    assert len(set(rounds)) == 1 or users > 1, "each object once in each round"
