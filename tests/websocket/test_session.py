from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from twisted.internet.defer import Deferred

from tests.kit.rows import each_row
from tests.kit.ws_kit import BINARY, Client, Edges, SlowMethod, edges, frame, text
from towerws.auth.chain import Open
from towerws.core.identity import Identity
from towerws.core.settings import WebSocketSettings

RESUME_WAIT_S = WebSocketSettings().resume_wait_s


@pytest.fixture
def make() -> Iterator[Edges]:
    """Edges in memory, checked for leaks at the end."""
    with edges() as maker:
        yield maker


# Requests and their answers


def test_tower_request(make: Edges) -> None:
    """A request is answered by one `groups_…` frame. Events published after it arrive, events published before it do not."""
    edge = make()
    client = edge.open()
    edge.publish("jobs.status_changed", {"n": 0})
    client.ask({"jobs": ["status_changed"], "job_events": [42, "42", "7"]})
    everything = ["job_events-42", "job_events-7", "jobs-status_changed"]
    assert client.take() == [{"groups_current": everything, "groups_left": [], "groups_joined": everything}]
    edge.publish("jobs.status_changed", {"n": 1})
    edge.publish("job_events.8", {"n": 2})
    edge.publish("job_events.42", {"n": 3})
    assert client.take() == [{"n": 1}, {"n": 3}]
    client.ask({"jobs": ["status_changed"]})
    assert client.take()[0]["groups_left"] == ["job_events-42", "job_events-7"]
    edge.publish("job_events.42", {"n": 4})
    client.ask({})
    assert client.take() == [{"groups_current": [], "groups_left": ["jobs-status_changed"], "groups_joined": []}]


def test_v1_request_and_resume(make: Edges) -> None:
    """A v1 client that reconnects with its position gets the missed events, in order and once, before any live event."""
    edge = make()
    client = edge.open(v1=True).ask({"job_events": [1, 2]}, id="a")
    (answer,) = client.take()
    assert (answer["type"], answer["id"], answer["recovered"], answer["denied"]) == ("subscribed", "a", None, [])
    edge.publish("job_events.1", {"n": 0})
    (event,) = client.take()
    assert event == {"type": "event", "position": event["position"], "group": "job_events", "event": "1", "payload": {"n": 0}}
    client.hang_up()
    for number in range(1, 6):
        edge.publish(f"job_events.{number % 2 + 1}", {"n": number})
    again = edge.open(v1=True).ask({"job_events": [1, 2]}, since=event["position"])
    edge.advance(1)
    edge.publish("job_events.1", {"n": 6})
    first, *events = again.take()
    assert first["recovered"] is True
    assert [found["payload"]["n"] for found in events] == [1, 2, 3, 4, 5, 6]
    unknown = edge.open(v1=True).ask({"job_events": [1]}, since="9-nothing")
    edge.advance(1)
    (answer,) = unknown.take()
    assert answer["recovered"] is False


def test_items_denied(make: Edges) -> None:
    """An invalid item is refused alone: Tower's own text comes before the reply, v1's answer has an entry."""
    edge = make()
    tower = edge.open().ask({"jobs": ["foo"], "nothing": [1], "job_events": [None, 1]})
    *errors, reply = tower.take()
    assert [error["error"] for error in errors] == [
        "access denied to channel jobs for resource id foo",
        "access denied to channel nothing for resource id 1",
        "access denied to channel job_events for resource id None",
    ]
    assert reply["groups_current"] == ["job_events-1"]
    (answer,) = edge.open(v1=True).ask({"jobs": ["foo"], "job_events": [1]}).take()
    assert [item["topic"] for item in answer["denied"]] == ["jobs.foo"]
    assert edge.context.denied == 4


@each_row(
    ("message", "code"),
    [
        (text("x"), "not_json"),
        (text("[]"), "not_an_object"),
        (text("null"), "not_an_object"),
        (text("{}"), "no_groups"),
        (text({"groups": 3}), "groups_not_an_object"),
        (text({"groups": {"job_events-42": True}}), "not_a_list"),
        (frame(BINARY, b'{"groups": {}}'), "binary"),
        (text(""), "not_json"),
        (text('{"groups": {"jobs": ["\\ud800"]}}'), "not_unicode"),
        (text("[" * 65_000), "too_deep"),
        (text('{"groups": {}, "id": ' + "9" * 5000 + "}"), "number_too_long"),
        (text('{"groups": {}, "groups": {}}'), "duplicate_key"),
        (text('{"groups": {"jobs": [NaN]}}'), "not_json"),
        (text("\ufeff{}"), "not_json"),
        (text({"groups": {"job_events": list(range(1001))}}), "too_many_topics"),
    ],
    make=edges,
)
def test_whole_message_faults(make: Edges, message: bytes, code: str) -> None:
    """A message that is invalid as a whole gets one error and changes nothing. The connection stays."""
    edge = make()
    for v1 in (False, True):
        client = edge.open(v1=v1).ask({"job_events": [1]})
        client.take()
        (error,) = client.send(message).take()
        if v1:
            assert (error["type"], error["code"]) == ("error", code)
        else:
            assert list(error) == ["error"]
        edge.publish("job_events.1", {"n": 0})
        assert len(client.take()) == 1
        assert client.close_code() is None


def test_ten_malformed_messages_in_a_row(make: Edges) -> None:
    """The tenth malformed message in a row closes with 1008. A valid one in between resets the count."""
    edge = make()
    client = edge.open().send(*[text("x")] * 9, text({"groups": {}}), *[text("x")] * 9)
    assert len(client.take()) == 19
    assert client.close_code() is None
    client.send(text("x"))
    assert client.close_code() == 1008
    assert edge.context.bad_requests == 19


# Order, and slow authorization


def answer(method: SlowMethod, number: int, refused: Sequence[str] = ()) -> None:
    """Answer a question of the slow method."""
    method.questions[number][1].callback(dict.fromkeys(refused, "no"))


def test_what_is_another_users_own(make: Edges) -> None:
    """A topic of another user is denied without asking the method. The rest of the request is handled."""
    method = SlowMethod()
    client = make(method).open(v1=True)
    client.ask({"control": ["limit_reached_7", "limit_reached_8"]})
    (asked,) = method.questions
    assert list(asked[0]) == ["control.limit_reached_7"]
    asked[1].callback({})
    (answer,) = client.take()
    assert answer["groups_current"] == ["control.limit_reached_7"]
    assert answer["denied"] == [{"topic": "control.limit_reached_8", "reason": "another user's"}]


def test_slow_authorization_keeps_order(make: Edges) -> None:
    """Answers come in the order of the requests, however slow authorization is. The newest request wins, and waits for no other."""
    method = SlowMethod()
    edge = make(method)
    client = edge.open().ask({"job_events": [1]}).ask({"job_events": [2]}).send(text("x"))
    assert [reply["groups_current"] for reply in client.take()] == [[]]
    assert [question[0] for question in method.questions] == [("job_events.1",), ("job_events.2",)]
    client.ask({"job_events": [3, 4]})
    second, error = client.take()
    assert (second["groups_current"], "error" in error) == ([], True)
    answer(method, 2, ["job_events.3"])
    denied, third = client.take()
    assert denied == {"error": "access denied to channel job_events for resource id 3"}
    assert third["groups_current"] == ["job_events-4"]
    assert edge.hub.topics == 1


def test_events_go_on_while_authorizing(make: Edges) -> None:
    """A client's current topics deliver while its next request is decided, and through the change."""
    method = SlowMethod()
    edge = make(method)
    client = edge.open().ask({"job_events": [1]})
    answer(method, 0)
    client.take()
    client.ask({"job_events": [1, 2]})
    edge.publish("job_events.1", {"n": 0})
    edge.publish("job_events.2", {"n": 1})
    answer(method, 1)
    edge.publish("job_events.1", {"n": 2})
    edge.publish("job_events.2", {"n": 3})
    event, _, *events = client.take()
    assert [event, *events] == [{"n": 0}, {"n": 2}, {"n": 3}]


def test_failing_authorization_grants_nothing(make: Edges) -> None:
    """A question that fails, for any reason, grants nothing and is logged. The next request is handled."""

    class Raising(Open):
        def refusals(self, identity: Identity, topics: Sequence[str]) -> Deferred[dict[str, str]]:
            raise RuntimeError("ours")

    method = SlowMethod()
    for edge in (make(method), make(Raising())):
        client = edge.open(v1=True).ask({"job_events": [1]})
        if method.questions and not method.questions[0][1].called:
            method.questions[0][1].errback(RuntimeError("ours"))
        (reply,) = client.take()
        assert reply["denied"] == [{"topic": "job_events.1", "reason": "unavailable"}]
        assert reply["groups_current"] == []
        assert edge.hub.topics == 0
        assert len(make.failures()) == 1
        assert client.close_code() is None


def test_hang_up_while_authorizing(make: Edges) -> None:
    """When a client disconnects, its question is cancelled and grants nothing. Its waiting messages are dropped."""
    method = SlowMethod()
    edge = make(method)
    client = edge.open().ask({"job_events": [1]}).send(text("x"))
    client.hang_up()
    assert method.cancelled == 1
    assert len(method.questions) == 1
    assert client.take() == []
    assert edge.hub.topics == 0


# Rates and bounds


def test_rate_delays(make: Edges) -> None:
    """Requests beyond burst and rate are delayed, not refused: 20 per second, all of them, in order."""
    edge = make()
    client = edge.open().send(*(text({"groups": {"job_events": [number]}}) for number in range(100)))
    assert len(client.take()) == 40
    edge.advance(1, step=0.05)
    assert 19 <= len(client.take()) <= 21
    edge.advance(2.5, step=0.05)
    assert client.take()[-1]["groups_current"] == ["job_events-99"]
    assert edge.context.requests == 100
    assert client.close_code() is None


def test_inbox_is_bounded(make: Edges) -> None:
    """Waiting messages are bounded in bytes. Beyond the bound the connection closes with 1008."""
    edge = make()
    large = text({"groups": {}, "id": "x", "x": "y" * 20_000})
    client = edge.open().send(*[text({"groups": {}})] * 40, *[large] * 3)
    assert client.close_code() is None
    client.send(large)
    assert client.close_code() == 1008
    assert edge.hub.subscribers == {}


def test_empty_messages_count_too(make: Edges) -> None:
    """A flood of empty messages is bounded like any other: each one that waits costs more than its bytes."""
    client = make(malformed=10**9).open()
    sent = 0
    while client.close_code() is None and sent < 5000:
        client.send(text(""))
        client.take()
        sent += 1
    assert sent < 1100


def test_one_message_of_the_largest_size_may_wait(make: Edges) -> None:
    """A single message of the largest size always fits the inbox."""
    method = SlowMethod()
    client = make(method).open().ask({})
    client.send(text({"groups": {}, "x": "y" * 65_000}))
    assert client.close_code() is None


def test_asks_and_does_not_read(make: Edges) -> None:
    """A client that sends requests and reads no answers is closed at the bound. Nothing of it stays in the hub."""
    edge = make(messages_burst=10**6, messages_per_s=10**6)
    client = edge.open()
    client.transport.stalled = True
    message = text({"groups": {"nothing": list(range(800)), "job_events": [1]}})
    for _ in range(50):
        client.send(message)
        assert len(client.transport.waiting) < 1024**2
    assert edge.hub.subscribers == {}
    assert edge.hub.topics == 0
    client.transport.drain()
    client.take()
    assert client.close_code() == 1013


def test_answer_is_one_write(make: Edges) -> None:
    """The answer to a request leaves in one write with all its denials."""
    edge = make()
    client = edge.open()
    writes: list[bytes] = []
    write = client.transport.write

    def noted(data: bytes) -> None:
        writes.append(data)
        write(data)

    client.transport.write = noted  # type: ignore[method-assign]
    client.ask({"nothing": list(range(500))})
    assert len(client.take()) == 501
    assert len(writes) == 1


# Before history is there


def test_requests_without_a_position_are_answered_at_once(make: Edges) -> None:
    """In any state of the log the answer comes at once. It has no position while none is known, and events follow as they come."""
    edge = make(start=False)
    client = edge.open(v1=True).ask({"job_events": [1]}, id=1).ask({"job_events": [2]}, id=2)
    replies = client.take()
    assert [(reply["id"], reply["position"], reply["recovered"]) for reply in replies] == [(1, None, None), (2, None, None)]
    edge.source.start()
    client.take()
    edge.publish("job_events.2", {})
    assert client.take()[0]["type"] == "event"


def test_a_position_waits_until_it_can_be_judged(make: Edges) -> None:
    """While history is refilled, a request with a position waits with all messages behind it. Then they are handled in order."""
    edge = make(start=False)
    client = edge.open(v1=True).ask({"job_events": [1]}, id=1, since="5-0123456789ab").ask({"job_events": [2]}, id=2)
    edge.advance(RESUME_WAIT_S - 1)
    assert client.take() == []
    edge.source.start()
    replies = [message for message in client.take() if message["type"] == "subscribed"]
    assert [(reply["id"], reply["recovered"]) for reply in replies] == [(1, False), (2, None)]
    edge.publish("job_events.2", {})
    assert client.take()[0]["type"] == "event"


def test_a_position_does_not_wait_for_ever(make: Edges) -> None:
    """After `resume_wait_s` the client is told to reconnect. It gets no gap notice, because its position may still be valid."""
    edge = make(start=False)
    client = edge.open(v1=True).ask({"job_events": [1]}, since="5-0123456789ab")
    edge.advance(RESUME_WAIT_S + 0.5)
    (bye,) = client.take()
    assert (bye["type"], bye["action"], bye["reason"]) == ("bye", "reconnect", "position can't be judged yet")
    assert 500 <= bye["reconnect_after_ms"] <= 10_000
    assert client.close_code() == 1013
    assert edge.ingest.waiting == 0


def test_towers_dialect_knows_no_position(make: Edges) -> None:
    """A key that looks like a position is ignored like any other. The request does not wait."""
    edge = make(start=False)
    client = edge.open().ask({"job_events": [1]}, since="5-0123456789ab")
    assert client.take() == [{"groups_current": ["job_events-1"], "groups_left": [], "groups_joined": ["job_events-1"]}]


def test_a_ping_of_the_clients_own_is_answered(make: Edges) -> None:
    """Pages can't see ping frames. In v1 they send a ping message, and get it back with their position. AWX's dialect has none."""
    edge = make()
    client = edge.open(v1=True)
    position = edge.publish("job_events.1", {})
    client.send(text({"ping": [1, "x"]}))
    assert client.take() == [{"type": "pong", "ping": [1, "x"], "position": position}]
    client.send(text({"ping": "x" * 300}))
    assert client.take()[0]["code"] == "bad_ping"
    tower = edge.open()
    tower.send(text({"ping": 1}))
    assert tower.take() == [{"error": 'message has no "groups"'}]


def test_a_ping_between_two_parts_of_a_batch(make: Edges) -> None:
    """A client may resume from the pong's position, so the events before it come first."""
    edge = make(part_bytes=1)
    first, second = (edge.open(v1=True).listen(1) for _ in range(2))
    position = edge.publish("job_events.1", {})
    assert (len(first.take()), len(second.take())) == (1, 0)
    second.send(text({"ping": 1}))
    assert [(message["type"], message["position"]) for message in second.take()] == [("event", position), ("pong", position)]
    edge.clock.advance(0)
    assert second.take() == []


def test_hang_up_while_held(make: Edges) -> None:
    """A client that disconnects while its request is held leaves nothing behind."""
    edge = make(start=False)
    edge.open(v1=True).ask({"job_events": [1]}, since="5-0123456789ab").hang_up()
    edge.source.start()
    assert edge.hub.topics == 0


# Falling behind


def numbers(client: Client) -> list[int]:
    """The numbered events that arrived."""
    return [message["n"] for message in client.take() if "n" in message]


def test_falls_behind_and_catches_up(make: Edges) -> None:
    """A client that stops reading gets everything in order when it reads again. Little waits for it, and others are not delayed."""
    edge = make()
    slow, bystander = edge.open(), edge.open()
    for client in (slow, bystander):
        client.ask({"job_events": [1]})
        client.take()
    slow.transport.stalled = True
    filler = "x" * 3000
    for number in range(250):
        edge.publish("job_events.1", {"n": number, "x": filler})
        assert numbers(bystander) == [number]
        assert len(slow.transport.waiting) <= edge.settings.backlog_bytes + 65536 + 3100
    assert edge.hub.counters.fell_behind == 1
    slow.transport.stalled = False
    slow.transport.drain()
    edge.advance(1)
    assert numbers(slow) == list(range(250))
    edge.publish("job_events.1", {"n": 250})
    assert numbers(slow) == [250]


def test_out_of_history(make: Edges) -> None:
    """If a slow reader's position falls out of history, Tower's dialect closes with 1013. A v1 client gets one gap notice and stays."""
    edge = make()
    tower, v1 = edge.open(), edge.open(v1=True)
    for client in (tower, v1):
        client.ask({"job_events": [1]})
        client.take()
        client.transport.stalled = True
    for number in range(400):
        edge.publish("job_events.1", {"n": number, "x": "x" * 5000})
    for client in (tower, v1):
        client.transport.stalled = False
        client.transport.drain()
    edge.advance(1)
    tower.take()
    assert tower.close_code() == 1013
    messages = v1.take()
    assert v1.close_code() is None
    kinds = [message["type"] for message in messages]
    assert kinds.count("gap") == 1
    gap = kinds.index("gap")
    assert messages[gap]["topics"] == ["job_events.1"]
    assert messages[gap]["from"] == messages[gap - 1]["position"]
    after = [message["payload"]["n"] for message in messages[gap + 1 :]]
    assert after == list(range(after[0], 400))
