from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.rows import each_row
from towerws.client.items import ITEM_BYTES, ClientError, Denied, Event, Gap, Item, Queue, Subscribed, topics_of
from towerws.client.topics import Topics

NAMES = ("jobs.a", "jobs.b", "jobs.c", "jobs.d")


class Server:
    """The log, and one connection at a time, as docs/protocol.md describes them. Frames wait in `out` until they are delivered."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.floor = 0
        """Positions before this have left history."""
        self.denied: frozenset[str] = frozenset()
        """Topics that can't be checked now."""
        self.errors: list[ClientError] = []
        self.requests: list[dict[str, Any]] = []
        self.online = False
        self.out: list[dict[str, Any]] = []
        self.reached: dict[str, int] = {}
        """The current topics, each with the place that the connection has written up to."""
        self.topics = Topics(send=self.request, report=self.errors.append, xrftoken=lambda: None)

    def connect(self) -> None:
        """A connection is open."""
        self.online, self.out, self.reached = True, [], {}
        self.topics.online()

    def lose(self) -> None:
        """The connection is lost, with all frames on it."""
        if self.online:
            self.online = False
            self.topics.offline()

    def publish(self, name: str) -> None:
        """Add an event to the log."""
        self.log.append((name, sum(topic == name for topic, _ in self.log)))

    def request(self, message: dict[str, Any]) -> None:
        """Answer a request, as the daemon does."""
        self.requests.append(message)
        self.write()
        wanted = [f"{group}.{event}" for group, events in message["groups"].items() for event in events]
        since = None if message.get("since") is None else int(message["since"])
        recovered = None if since is None else since >= self.floor
        start = since if since is not None and recovered else len(self.log)
        before = self.reached
        self.reached = {name: before.get(name, start) for name in wanted if name in before or name not in self.denied}
        self.out.append(
            {
                "type": "subscribed",
                "id": message["id"],
                "groups_current": list(self.reached),
                "denied": [{"topic": name, "reason": "unavailable"} for name in wanted if name not in self.reached],
                "position": str(start),
                "recovered": recovered,
            }
        )

    def write(self) -> None:
        """Write what the log has for the current topics, in its order."""
        for at in range(min(self.reached.values(), default=len(self.log)), len(self.log)):
            name, number = self.log[at]
            if self.reached.get(name, len(self.log)) <= at:
                group, _, event = name.partition(".")
                frame = {"type": "event", "position": str(at + 1), "group": group, "event": event, "payload": {"n": number}}
                self.out.append(frame)
        self.reached = dict.fromkeys(self.reached, len(self.log))

    def gap(self) -> None:
        """The oldest events that have not been delivered are replaced by a gap."""
        self.write()
        lost = []
        while self.out and self.out[0]["type"] == "event":
            lost.append(self.out.pop(0))
        if lost:
            names = list(dict.fromkeys(f"{frame['group']}.{frame['event']}" for frame in lost))
            self.out.insert(0, {"type": "gap", "topics": names, "from": None, "to": lost[-1]["position"], "reason": "history"})

    def deliver(self, count: int) -> None:
        """Give the client so many frames."""
        if not self.online:
            return
        self.write()
        while count and self.out:
            count -= 1
            frame = self.out.pop(0)
            if frame["type"] == "subscribed":
                self.topics.answered(frame)
            elif frame["type"] == "gap":
                self.topics.gap(frame)
            else:
                self.topics.event(frame, "x" * 50)
            self.write()


class Reader:
    """One subscriber. It checks what it gets: each event once and in order, or a notice before a jump."""

    def __init__(self, server: Server, names: tuple[str, ...], *, slow: bool, since: str | None = None) -> None:
        self.names = names
        self.last: dict[str, int] = {}
        self.jumps: set[str] = set()
        self.slow = slow
        self.items: list[Item] = []
        self._server = server
        self.queue = Queue(names, 3000, since=since)
        self.queue.wake = self._wake
        server.topics.join(self.queue)
        server.topics.settle()

    def _wake(self) -> None:
        if not self.slow:
            self.handle()

    def handle(self, count: int = 10_000) -> None:
        """Handle so many items."""
        while count and (item := self.queue.take()) is not None:
            count -= 1
            self._got(item)
            self.queue.done()

    def _got(self, item: Item) -> None:
        self.items.append(item)
        if isinstance(item, Event):
            number, last = item.payload["n"], self.last.get(item.topic)
            assert item.topic in self.names
            if last is not None:
                assert number > last, f"{item.topic}: {number} after {last}"
                assert number == last + 1 or item.topic in self.jumps, f"{item.topic}: {number} after {last}, and nothing was told"
            self.last[item.topic] = number
            self.jumps.discard(item.topic)
        elif isinstance(item, Gap) or (isinstance(item, Subscribed) and item.type != "recovered"):
            self.jumps |= set(item.topics)

    def leave(self) -> None:
        """Close the subscription."""
        self.queue.ended = True
        self.queue.clear()
        self._server.topics.leave(self.queue)
        self._server.topics.settle()


def steps_of(seed: int) -> list[tuple[Any, ...]]:
    """A long run: hypothesis' own lists are too short for replays that break."""
    random = Random(seed)

    def some() -> tuple[str, ...]:
        return tuple(name for name in NAMES if random.random() < 0.5) or NAMES[:1]

    kinds: list[Callable[[], tuple[Any, ...]]] = [
        lambda: ("publish", random.choices(NAMES, k=5)),
        lambda: ("publish", random.choices(NAMES, k=3)),
        lambda: ("deliver", random.randint(1, 4)),
        lambda: ("deliver", 100),
        lambda: ("join", some(), random.random() < 0.3, random.random() < 0.6),
        lambda: ("leave", random.randint(0, 9)),
        lambda: ("lose",),
        lambda: ("connect",),
        lambda: ("handle", random.randint(0, 5), random.randint(1, 5)),
        lambda: ("gap",),
        lambda: ("forget", random.random()) if random.random() < 0.2 else ("connect",),
        lambda: ("unsure", frozenset(some()) if random.random() < 0.3 else frozenset()),
        lambda: ("ask",),
    ]
    return [random.choice(kinds)() for _ in range(120)]


@settings(max_examples=200)
@given(st.integers(0, 2**32).map(steps_of))
def test_each_event_once_and_in_order_or_a_notice(steps: list[Any]) -> None:  # noqa: C901, PLR0912 - a table of steps
    """Random runs with a model of the daemon. In the end each reader has the last event of each topic."""
    server = Server()
    readers: list[Reader] = []
    for name, *values in steps:
        if name == "publish":
            for topic in values[0]:
                server.publish(topic)
        elif name == "deliver":
            server.deliver(values[0])
        elif name == "join" and len(readers) < 6:
            since = str(server.floor) if values[2] and server.floor <= int(server.topics.position or "0") else None
            readers.append(Reader(server, values[0], slow=values[1], since=since))
        elif name == "leave" and len(readers) > values[0]:
            readers.pop(values[0]).leave()
        elif name == "lose":
            server.lose()
        elif name == "connect" and not server.online:
            server.connect()
        elif name == "handle" and len(readers) > values[0]:
            readers[values[0]].handle(values[1])
        elif name == "gap" and server.online:
            server.gap()
        elif name == "forget":
            server.floor = max(server.floor, int(values[0] * len(server.log)))
        elif name == "unsure":
            server.denied = values[0]
        elif name == "ask":
            server.topics.ask_again("unavailable")
    server.denied = frozenset()
    if not server.online:
        server.connect()
    for name in (*NAMES, ""):
        for _ in range(10):
            server.topics.ask_again()
            server.topics.settle()
            server.deliver(10_000)
            for reader in readers:
                reader.handle()
        if name:
            server.publish(name)
    assert server.errors == []
    for reader in readers:
        assert not reader.queue.waiting
        for name in reader.names:
            assert reader.last[name] == sum(topic == name for topic, _ in server.log) - 1, f"the end of {name}"


def told(reader: Reader) -> list[Any]:
    """What a reader got: numbers of events, and the types of the rest."""
    return [item.payload["n"] if isinstance(item, Event) else item.type for item in reader.items]


def opened(*names: str) -> tuple[Server, Reader]:
    """A server and a reader whose topics are subscribed."""
    server = Server()
    server.connect()
    reader = Reader(server, names, slow=False)
    server.deliver(100)
    return server, reader


def test_the_server_hears_the_union() -> None:
    """Subscribers share topics, and leave without each other."""
    server, one = opened("jobs.a", "jobs.b")
    two = Reader(server, ("jobs.b", "jobs.c"), slow=False)
    assert told(two) == ["subscribed"], "jobs.b is there already"
    server.deliver(100)
    for name in NAMES:
        server.publish(name)
    server.deliver(100)
    one.leave()
    server.deliver(100)
    server.publish("jobs.b")
    server.deliver(100)
    two.leave()
    assert [message["groups"] for message in server.requests] == [
        {"jobs": ["a", "b"]}, {"jobs": ["a", "b", "c"]}, {"jobs": ["b", "c"]}, {},
    ]  # fmt: skip
    assert told(one) == ["subscribed", 0, 0]
    assert told(two) == ["subscribed", "subscribed", 0, 0, 1]


def test_a_replay_that_is_cut_off_repeats_nothing() -> None:
    """A topic is added from an older place. The connection breaks within the replay: each topic resumes at its own place."""
    server, one = opened("jobs.a")
    for name in ("jobs.b", "jobs.a", "jobs.b", "jobs.a"):
        server.publish(name)
    server.deliver(100)
    two = Reader(server, ("jobs.b",), slow=False, since="0")
    server.deliver(2)  # the answer, and the first event
    assert told(two) == ["recovered", 0]
    assert server.topics.handled() is None, "no single position has all that is missing"
    server.lose()
    server.publish("jobs.a")
    server.connect()
    server.deliver(100)
    assert [(message["groups"], message.get("since")) for message in server.requests[-2:]] == [
        ({"jobs": ["a"]}, "4"),
        ({"jobs": ["a", "b"]}, "1"),
    ]
    assert told(one) == ["subscribed", 0, 1, "recovered", 2]
    assert told(two) == ["recovered", 0, "recovered", 1]
    server.publish("jobs.a")
    server.deliver(100)
    assert server.topics.handled() == "6", "the replay has been overtaken"


def test_a_topic_that_could_not_be_checked_loses_nothing() -> None:
    """It is asked for again from the place of the first answer."""
    server = Server()
    server.denied = frozenset({"jobs.a"})
    server.connect()
    reader = Reader(server, ("jobs.a",), slow=False)
    server.deliver(100)
    assert server.topics.waits_for_unavailable()
    server.publish("jobs.a")
    server.denied = frozenset()
    server.topics.ask_again("unavailable")
    assert server.requests[-1]["since"] == "0"
    server.deliver(100)
    assert told(reader) == ["denied", "subscribed", 0]
    assert not server.topics.waits_for_unavailable()


def test_since_for_a_topic_that_is_there() -> None:
    """It can't be replayed for one subscriber alone, so that one is told `stale`."""
    server, _ = opened("jobs.a")
    assert told(Reader(server, ("jobs.a",), slow=False, since="0")) == ["stale"]


def test_an_error_of_a_request_leaves_the_others_alone() -> None:
    """Its topics are denied. So are those of a request that would be too long for the daemon."""
    server, one = opened("jobs.a")
    two = Reader(server, ("jobs.b",), slow=False)
    server.topics.request_failed("too_many_topics", "more than 1000 topics")
    three = Reader(server, tuple(f"jobs.{'x' * 100}{n}" for n in range(700)), slow=False)
    server.out.clear()
    server.publish("jobs.a")
    server.reached = {"jobs.a": 0}
    server.deliver(100)
    assert [error.code for error in server.errors] == ["too_many_topics"] * 2
    assert [told(reader) for reader in (one, two, three)] == [["subscribed", 0], ["denied"], ["denied"]]


def test_revoked() -> None:
    """It is told, and asked for again when there are new rights. Then it is stale."""
    server, reader = opened("jobs.a", "jobs.b")
    frame = {"groups_current": ["jobs.b"], "denied": [{"topic": "jobs.a", "reason": "not allowed"}], "position": "0"}
    server.topics.revoked(frame)
    server.reached.pop("jobs.a")
    assert len(server.requests) == 1, "asking again would not help"
    server.topics.ask_again()
    server.deliver(100)
    assert told(reader) == ["subscribed", "denied", "stale"]


def test_a_slow_handler() -> None:
    """Its queue is bounded, others are not slower, and the loss is one gap. The newest list of denied topics stays."""
    server, quick = opened("jobs.a")
    slow = Reader(server, ("jobs.a",), slow=True)
    for _ in range(50):
        server.publish("jobs.a")
    server.deliver(10)
    slow.queue.put(Denied(()), None, 0, 1)
    server.deliver(40)
    assert slow.queue.bytes <= 3000 + ITEM_BYTES
    slow.handle()
    gaps = [item for item in slow.items if isinstance(item, Gap)]
    assert {gap.reason for gap in gaps} == {"slow"}
    assert gaps[0].topics == ("jobs.a",)
    assert any(isinstance(item, Denied) for item in slow.items)
    assert told(slow)[-1] == 49
    assert told(quick) == ["subscribed", *range(50)]


def test_what_a_store_resumes_from() -> None:
    """The position before the oldest item that no handler has finished."""
    server, _ = opened("jobs.a")
    slow = Reader(server, ("jobs.a",), slow=True)
    slow.handle()
    for _ in range(3):
        server.publish("jobs.a")
    server.deliver(100)
    assert server.topics.handled() == "0"
    slow.handle(2)
    assert server.topics.handled() == "2"
    slow.handle()
    assert server.topics.handled() == "3"


@each_row(
    "groups, error",
    [
        ({"jobs": "a"}, TypeError), ({"jobs": {"a": 1}}, TypeError), ({"jobs": 5}, TypeError), (None, TypeError), ([], TypeError),
        ({"jobs": [None]}, ValueError), ({"jobs": [True]}, ValueError), ({"jobs": [1.5]}, ValueError), ({"jobs": ["a.b"]}, ValueError),
        ({"jobs": ["*"]}, ValueError), ({"jobs": ["\u00e9"]}, ValueError), ({"jobs": [""]}, ValueError), ({"a-b": ["x"]}, ValueError),
        ({"": [1]}, ValueError), ({5: [1]}, ValueError), ({"jobs": ["x" * 129]}, ValueError), ({"jobs": ["\ud800"]}, ValueError),
    ],
)  # fmt: skip
def test_malformed_topics(groups: Any, error: type[Exception]) -> None:
    """Each is an error at once."""
    with pytest.raises(error):
        topics_of(groups)


def test_topics_of_groups() -> None:
    """Numbers and their texts are the same event."""
    assert topics_of({"jobs": ["a"], "job_events": (42, "42", "43")}) == ("jobs.a", "job_events.42", "job_events.43")
